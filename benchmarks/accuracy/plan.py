"""What the accuracy benchmark runs: experiments.yml, and the runs of its grids."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Optional

import yaml

from fairchem_crack import keys

EXPERIMENTS = Path(__file__).with_name("experiments.yml")
UNDISTILLED, TEACHER = "undistilled", "teacher"
SAME_TIME = {"time": "steps", "full_time": "full"}  # budgets of as much time as another takes of what it is compared with
KEPT = {  # flags of `fairchem-crack cache-teacher`, by the name of what a cache keeps; N is the plan's `jacobian_rows`
    "": [],
    "jacobian": ["--jacobian-rows", "N"],
    "response": ["--embedding-response", "--jacobian-rows", "N"],
    "responses": ["--embedding-response", "--force-response"],
}


@dataclass(frozen=True)
class Run:
    """What was varied. A row without a value has the default; a default is not part of the run's name.

    Attributes:
        teacher: none for an undistilled student; with no student, the teacher itself is evaluated.
        method: of experiments.yml; method@coefficient is with another coefficient of its first term.
        budget: of experiments.yml, how long the student is trained; none of `SAME_TIME` for an undistilled one.
        structures: of experiments.yml, which are made of the systems to train on; none for an undistilled student.
    """

    student: str = ""
    teacher: str = ""
    method: str = ""
    seed: Optional[int] = None
    train_systems: Optional[int] = None
    budget: str = ""
    structures: str = ""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Run:
        """The run of a row."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if row.get(field.name, "") != ""})

    @property
    def name(self) -> str:
        """The name of its files and arrays."""
        return "-".join(str(value) for value, field in zip(asdict(self).values(), fields(self)) if value != field.default)

    def of_method(self, method: str) -> Run:
        """The same with another method; an undistilled student is the same run for all teachers, structures and costs."""
        if method != UNDISTILLED:
            return replace(self, method=method)
        return replace(self, method=method, teacher="", structures="", budget=SAME_TIME.get(self.budget, self.budget))


@dataclass(frozen=True)
class Plan:
    """experiments.yml, which says what each section is."""

    students: dict[str, str]
    teachers: dict[str, str]
    methods: dict[str, dict]
    tables: dict[str, dict]
    validation_systems: int
    jacobian_rows: int
    structures: dict[str, str] = field(default_factory=dict)

    def runs(self, table: str, only: dict[str, list]) -> list[Run]:
        """The runs of a table's grids, seed by seed: stopped at any time, all methods have the same seeds but for the last.

        Args:
            only: what of the fields of `Run` is run; empty for all.

        Raises:
            ValueError: a grid or `only` has an unknown name, or `only` a value that no run has, or none with its others.
        """
        if unknown := only.keys() - {field.name for field in fields(Run)}:
            raise ValueError(f"--only {', '.join(sorted(unknown))}: expected one of {', '.join(asdict(Run()))}.")
        runs = dict.fromkeys(run for grid in self.tables[table]["grids"] for run in expand(grid))
        for run in runs:
            method = run.method.partition("@")[0]
            names = {"student": run.student, "teacher": run.teacher, "method": method, "structure": run.structures}
            for kind, name in names.items():
                known = getattr(self, f"{kind}s")
                if name and name not in known and name != TEACHER:
                    raise ValueError(
                        f"experiments.yml, table {table}: {kind} `{name}` is unknown; known: {', '.join(known)}."
                    )
        for name, values in only.items():
            known_values = dict.fromkeys(getattr(run, name) for run in runs)
            if absent := [str(value) for value in values if value not in known_values]:
                expected = ", ".join(str(value) for value in known_values if value not in (None, ""))
                raise ValueError(f"--only {name}={','.join(absent)}: no run of table {table} has it; there are {expected}.")
        chosen = [run for run in runs if all(getattr(run, name) in values for name, values in only.items())]
        for name, values in only.items():
            if absent := [str(value) for value in values if all(getattr(run, name) != value for run in chosen)]:
                others = " ".join(f"{other}={','.join(map(str, only[other]))}" for other in only if other != name)
                raise ValueError(f"--only {name}={','.join(absent)}: no run of table {table} has it with {others}.")
        return sorted(chosen, key=lambda run: -1 if run.seed is None else run.seed)

    def steps(self, table: str, run: Run) -> int:
        """The training steps of a run, which are rounded to whole epochs."""
        try:
            return pick(self.tables[table]["budgets"][run.budget], run.student, run.method)
        except LookupError:
            raise ValueError(f"experiments.yml, table {table}, budgets: no steps of {run.name}.") from None

    def terms(self, run: Run) -> list[dict]:
        """What the run's method adds to `loss_functions`."""
        method, _, first = run.method.partition("@")
        terms = copy.deepcopy(self.methods[method].get("terms", []))
        options = [own for term in terms for own in term.values()]
        for own in options:
            own["coefficient"] = pick(own["coefficient"], run.student)
        factor = float(first) / options[0]["coefficient"] if first else 1
        for own in options:
            own["coefficient"] *= factor
        return terms

    def kept(self, run: Run) -> str:
        """What the run's teacher cache keeps beside outputs and embeddings, see `KEPT`."""
        terms = {key for term in self.terms(run) for key in term}
        of_terms = {keys.FORCE_RESPONSE: "responses", keys.EMBEDDING_RESPONSE: "response", keys.FORCE_JACOBIAN: "jacobian"}
        return next((kept for key, kept in of_terms.items() if key in terms), "")


def expand(grid: dict[str, Any]) -> list[Run]:
    """Every combination of a grid's values but its `question`; `coefficients` are further methods, method@coefficient."""
    values = {name: value if isinstance(value, list) else [value] for name, value in grid.items() if name != "question"}
    (coefficients,) = values.pop("coefficients", [{}])
    values["method"] = [
        *values.get("method", []),
        *(f"{method}@{coefficient:g}" for method, candidates in coefficients.items() for coefficient in candidates),
    ]
    runs = (Run(**dict(zip(values, combination))) for combination in product(*values.values()))
    return [run.of_method(run.method) for run in runs]


def pick(value: Any, *names: str) -> Any:
    """A value that may differ by the first of the names, then by the next."""
    for name in names:
        value = value[name] if isinstance(value, dict) else value
    return value


def of_student(options: Any, student: str) -> Any:
    """Options of which one, at any depth, may differ by student."""
    if not isinstance(options, dict):
        return options
    return options[student] if student in options else {name: of_student(value, student) for name, value in options.items()}


def read_plan(file: Path) -> Plan:
    """Read experiments.yml.

    Raises:
        ValueError: a section is missing or unknown.
    """
    try:
        return Plan(**yaml.safe_load(file.read_text()))
    except TypeError as error:
        raise ValueError(f"{file}: expected the sections {', '.join(Plan.__annotations__)}; {error}.") from None
