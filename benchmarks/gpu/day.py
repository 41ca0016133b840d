"""Every check and measurement that needs a GPU, in order of importance, each within its own time; called by `run.sh`.

Writes gpu.json, gpu.md and logs.tar.gz to OUT while the parts run: one that is cut off keeps the rows it has written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import json_lines
from benchmarks.gpu.report import report

TRIALS = {  # what shows that each of the compiled packages loads and runs
    "torch_scatter": "assert torch_scatter.scatter(ones, index).tolist() == [2.0, 2.0]",
    "torch_sparse": "torch_sparse.SparseTensor(row=index, col=index, value=ones, sparse_sizes=(2, 2))[index]",
}
TRIAL = """
import torch, {package}
ones, index = torch.ones(4, device="{device}"), torch.tensor([0, 0, 1, 1], device="{device}")
{trial}
"""
PACKAGES = ("torch", "triton", "numpy", "scipy", "torch-geometric", "torch-scatter", "torch-sparse", "fairchem-core", "ase")
SLOWER = 5  # a dry run on a CPU has so many times the limits of the parts
POLL = 1.0  # s, between two looks at a part's rows


@dataclass(frozen=True)
class Part:
    """One command, and what it needs.

    Attributes:
        name: by which `--only` chooses it.
        command: arguments of Python; `{...}` are those of `Day.values`.
        seconds: its limit.
        compiled: it needs torch-scatter and torch-sparse.
        gpus: that it needs.
    """

    name: str
    command: str
    seconds: int
    compiled: bool = True
    gpus: int = 1


STEPS = "-m benchmarks.gpu.steps --device {device} --directory {work}/steps --rows {rows}"
PARTS = (
    Part("tests", "-m benchmarks.gpu.tests --rows {rows}", 90),
    Part("loss", "-m benchmarks.crack_loss --device {device} --out {work}/loss", 150, compiled=False),
    Part("steps", STEPS, 150),
    Part("amp", STEPS + " --precision amp", 120),
    Part("host", "-m benchmarks.gpu.host --device {device} --directory {work}/demo --rows {rows}", 120),
    Part("demo", "-m benchmarks.gpu.demo --device {device} --directory {work}/demo --rows {rows}", 180),
    Part("ranks", "-m benchmarks.gpu.demo --device {device} --directory {work}/demo --rows {rows} --ranks 2", 60, gpus=2),
)


def chosen(only: str | None) -> list[Part]:
    """The parts whose names stand in `only`, separated by commas, in the order of `PARTS`; all of them without it.

    Raises:
        ValueError: no part has one of the names.
    """
    names = only.split(",") if only else [part.name for part in PARTS]
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        raise ValueError(
            f"--only {only}: no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PARTS)}."
        )
    return [part for part in PARTS if part.name in names]


class Day:
    """The parts of one call, and the files they fill."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + options.seconds
        self.work = Path(options.site) / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.out = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.content = {**machine(options.device), "command": options.command, "extensions": "not needed", "parts": {}}
        self.build: subprocess.Popen | None = None

    def run(self, parts: list[Part]) -> None:
        """Run them, one after the other; torch-scatter and torch-sparse are compiled meanwhile if they must."""
        if any(part.compiled for part in parts):
            missing = [package for package in TRIALS if not self.works(package)]
            self.content["extensions"] = "carried"
            if missing:
                self.start_build(missing)
                parts = sorted(parts, key=lambda part: part.compiled)  # meanwhile those that do without
        for part in parts:
            result: dict = {"status": "running", "seconds": 0.0, "limit": part.seconds, "rows": []}
            self.content["parts"][part.name] = result
            print(f"== {part.name}", flush=True)
            result.update(self.run_part(part))
            print(f"   {result['status']}, {result['seconds']:.0f} s, {len(result['rows'])} rows", flush=True)
            self.write()
        self.content["versions"] = versions()

    def run_part(self, part: Part) -> dict:
        """Its status, rows, seconds, and the end of its log where it failed."""
        if part.gpus > self.content["gpus"] and self.options.device == "cuda":
            return {"status": f"not run: needs {part.gpus} GPUs"}
        if part.compiled and not self.wait_for_build():
            return {"status": "not run: torch-scatter and torch-sparse are not there"}
        rows, log = (self.work / f"{part.name}.{ending}" for ending in ("jsonl", "log"))
        rows.unlink(missing_ok=True)
        values = {"device": self.options.device, "work": self.work, "rows": rows}
        toy = ["--toy"] if self.options.device == "cpu" and part.name in ("steps", "amp", "demo", "ranks") else []
        command = [sys.executable, *(word.format(**values) for word in part.command.split()), *toy]
        start = time.monotonic()
        limit = min(part.seconds * (SLOWER if self.options.device == "cpu" else 1), self.end - start)
        if limit < 5:
            return {"status": "not run: no time left"}
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            while process.poll() is None and time.monotonic() - start < limit:
                time.sleep(POLL)
                self.content["parts"][part.name].update(seconds=time.monotonic() - start, rows=self.rows(part))
                self.write()
            cut = process.poll() is None
            if cut:
                os.killpg(process.pid, signal.SIGKILL)
            status = "cut off" if cut else "done" if process.wait() == 0 else "failed"
        result = {"status": status, "seconds": time.monotonic() - start, "rows": self.rows(part)}
        return result if status == "done" else {**result, "error": log.read_text(errors="replace")[-2000:]}

    def rows(self, part: Part) -> list[dict]:
        """What the part has written so far."""
        if part.name == "loss":
            return json_lines.read_loss(self.work / "loss", self.work / "loss.log")
        return json_lines.read(self.work / f"{part.name}.jsonl")

    def works(self, package: str) -> bool:
        """Whether torch-scatter or torch-sparse loads and runs here; its output is kept."""
        done = python("-c", TRIAL.format(package=package, device=self.options.device, trial=TRIALS[package]))
        (self.work / f"{package}.log").write_text(done.stderr)
        return done.returncode == 0

    def start_build(self, packages: list[str]) -> None:
        """Compile them for this card, in the background; the wheels go to OUT, for the next call's bundle."""
        command = ["bash", "benchmarks/gpu/wheels.sh", self.options.bundle, str(self.out), self.content["capability"]]
        cores = max(1, (os.cpu_count() or 1) - 2)  # the parts that run meanwhile need the others
        environment = {**os.environ, "PYTHON": sys.executable, "MAX_JOBS": str(cores)}
        options = {"env": environment, "cwd": ROOT, "stderr": subprocess.STDOUT, "start_new_session": True}
        with (self.work / "build.log").open("wb") as log:
            self.build = subprocess.Popen([*command, *packages], stdout=log, **options)
        self.build_start, self.content["extensions"] = time.monotonic(), "being compiled"

    def wait_for_build(self) -> bool:
        """Whether they are there, once the build has ended and its wheels are installed."""
        if self.build is None:
            return self.content["extensions"] in ("carried", "compiled here")
        try:
            self.build.wait(max(0.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.build.pid, signal.SIGKILL)
        self.content["build_seconds"], self.build = time.monotonic() - self.build_start, None
        wheels = [str(file) for package in TRIALS for file in self.out.glob(f"{package}-*.whl")]
        target = ["--upgrade", "--target", str(self.options.site)]
        python("-m", "pip", "install", "-q", "--no-index", "--no-deps", *target, *wheels)
        works = all(self.works(package) for package in TRIALS)
        self.content["extensions"] = "compiled here" if works else "missing, see build.log"
        return works

    def write(self) -> None:
        """The three files of OUT, each put in its place whole."""
        self.replace("gpu.json", json.dumps(self.content, indent=1))
        self.replace("gpu.md", report(self.content))
        if all(part["status"] != "running" for part in self.content["parts"].values()):
            with tarfile.open(self.out / "logs.tar.gz", "w:gz") as archive:
                for file in sorted((*self.work.glob("*.log"), *self.work.glob("loss/*"))):
                    archive.add(file, file.relative_to(self.work))

    def replace(self, name: str, text: str) -> None:
        """Write a file of OUT beside its place, and put it there."""
        partial = self.work / name
        partial.write_text(text, encoding="utf-8")
        (self.out / name).write_bytes(partial.read_bytes())


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Run this Python in a process of its own."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def machine(device: str) -> dict:
    """Card, its compute capability, and what is installed."""
    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}"
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if device == "cuda" else ""
    command = ["git", "rev-parse", "--short", "HEAD"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    return {
        "device": device,
        "card": card,
        "capability": capability,
        "gpus": torch.cuda.device_count() if device == "cuda" else 0,
        "cores": os.cpu_count(),
        "commit": git.stdout.strip() if git else "",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, CUDA and the packages that decide what runs; those installed."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    numbers = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--site", required=True, help="where the bundle was installed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help=f"of {','.join(part.name for part in PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run at toy size")
    options = parser.parse_args()
    options.command = shlex.join(["bash", "benchmarks/gpu/run.sh", "BUNDLE", "OUT", *own_options(sys.argv[1:])])
    try:
        parts = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    day = Day(options)
    day.run(parts)
    day.write()
    print((options.out / "gpu.md").read_text())


def own_options(arguments: list[str]) -> list[str]:
    """The arguments without those that `run.sh` adds."""
    added = [index for index, word in enumerate(arguments) if word in ("--bundle", "--site", "--out")]
    return [word for index, word in enumerate(arguments) if not {index, index - 1} & set(added)]


if __name__ == "__main__":
    main()
