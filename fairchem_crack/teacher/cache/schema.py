"""The two JSON files of a cache, checked field by field: a forged or damaged one is refused before anything follows it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

from fairchem_crack.teacher.cache.records import FIELDS, FORMAT, CacheError, Plan

PLAN, HEADER = "plan.json", "header.json"
LARGEST = 1 << 26  # bytes of a JSON file
SHARD = re.compile(r"shard\.\d{4}\.records")

Check = Callable[[Any], bool]


def _whole(least: int, most: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1 << 16


def _are_fields(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value) and _are_known(value)


def _are_known(names: Any) -> bool:
    return bool(names) and len(set(names)) == len(names) and set(names) <= FIELDS.keys()


def _is_graph(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    cutoff, use_pbc = value.get("cutoff"), value.get("use_pbc", True)
    return isinstance(use_pbc, bool) and (cutoff is None or (_is_number(cutoff) and cutoff > 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_shards(value: Any) -> bool:
    is_size = _whole(0, 1 << 60)
    return isinstance(value, dict) and all(SHARD.fullmatch(name) and is_size(size) for name, size in value.items())


OF_PLAN: dict[str, tuple[str, Check]] = {
    "teacher": ("text", _is_text),
    "fingerprint": ("text", _is_text),
    "systems": ("a whole number", _whole(0, 1 << 40)),
    "sample": ("text", _is_text),
    "width": ("a whole number", _whole(0, 1 << 20)),
    "vector_width": ("a whole number", _whole(0, 1 << 20)),
    "max_atomic_number": ("a whole number", _whole(1, 1 << 15)),
    "dtype": ("float16 or float32", lambda value: value in ("float16", "float32")),
    "chunk": ("a positive whole number", _whole(1, 1 << 30)),
    "fields": (f"some of {', '.join(FIELDS)}, each once", _are_fields),
    "jacobian_rows": ("a whole number", _whole(0, 1 << 20)),
    "higher_rows": ("a whole number", _whole(0, 1 << 10)),
    "has_pairs": ("true or false", lambda value: isinstance(value, bool)),
    "precision": ("text", _is_text),
    "graph": ("the settings of a graph", _is_graph),
    "identity": ("settings by name", lambda value: isinstance(value, dict)),
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
}
REQUIRED = ("teacher", "fingerprint", "systems", "sample", "width", "format")
OPTIONAL = {name: value for name, value in asdict(Plan("", "", 0, "", 0)).items() if name not in REQUIRED}
OF_HEADER: dict[str, tuple[str, Check]] = {
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
    "plan": ("the digest of plan.json", _is_text),
    "shards": ("bytes by name, shard.0000.records for example", _are_shards),
    "pages": ("a positive whole number", _whole(1, 1 << 32)),
    "index_bytes": ("a whole number", _whole(0, 1 << 60)),
    "embedding_mean": ("finite numbers", _are_numbers),
    "embedding_std": ("finite numbers", _are_numbers),
    "versions": ("versions by package", lambda value: isinstance(value, dict)),
}


def _checked(content: Any, expected: dict[str, tuple[str, Check]]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    for name in content:
        if name not in expected:
            raise ValueError(f"has an unknown entry {name[:80]!r}")
    for name, (words, check) in expected.items():
        if name not in content:
            raise ValueError(f"lacks {name}")
        if not check(content[name]):
            raise ValueError(f"has {name} {str(content[name])[:80]}, expected {words}")
    return content


def _json(file: Path) -> tuple[Any, bytes]:
    with file.open("rb") as opened:
        data = opened.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"has more than {LARGEST} bytes")
    return json.loads(data), data


def read_plan(directory: Path) -> tuple[Plan, bytes]:
    """The plan of a cache, and the bytes that it was read from.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it is damaged, or of another version.
    """
    try:
        content, data = _json(directory / PLAN)
        _check_format(directory, content)
        values = _checked({**OPTIONAL, **content} if isinstance(content, dict) else content, OF_PLAN)
    except (ValueError, RecursionError) as error:
        raise _damaged(directory, PLAN, error) from error
    return Plan(**{**values, "fields": tuple(values["fields"])}), data


def read_header(directory: Path, plan: Plan, data: bytes) -> dict[str, Any]:
    """The header of the cache with this plan, read from these bytes.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it is damaged, of another version, or of another plan.
    """
    try:
        content, _ = _json(directory / HEADER)
        _check_format(directory, content)
        digest = content.pop("digest", None) if isinstance(content, dict) else None
        header = _checked(content, OF_HEADER)
        if digest != digest_of(json.dumps(header, sort_keys=True).encode()) or header["plan"] != digest_of(data):
            raise ValueError("was altered, or belongs to another plan.json")
        for name in ("embedding_mean", "embedding_std"):
            if len(header[name]) != (plan.width if "node_embedding" in plan.fields else 0):
                raise ValueError(f"has {len(header[name])} numbers in {name} for a width of {plan.width}")
    except (ValueError, RecursionError) as error:
        raise _damaged(directory, HEADER, error) from error
    return header


def plan_text(plan: Plan) -> str:
    """The content of plan.json."""
    return json.dumps(asdict(plan), indent=1)


def digest_of(data: bytes) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _check_format(directory: Path, content: Any) -> None:
    written = content.get("format") if isinstance(content, dict) else None
    if not isinstance(written, int) or isinstance(written, bool) or written == FORMAT:
        return
    if written > FORMAT:
        raise CacheError(
            f"Teacher cache {directory} has format {written}; this fairchem-crack reads {FORMAT}. Update fairchem-crack."
        )
    raise CacheError(
        f"Teacher cache {directory} has format {written}, of an earlier fairchem-crack, which did not keep all that its "
        "records depend on. Write it anew: `fairchem-crack cache-teacher --config-yml ... --output ANOTHER_DIRECTORY`, with "
        "the flags of before."
    )


def _damaged(directory: Path, name: str, error: Exception) -> CacheError:
    if isinstance(error, CacheError):
        return error
    return CacheError(
        f"Teacher cache {directory} has a damaged {name}, which {error}. "
        + (
            "`fairchem-crack cache-teacher --config-yml ... --repair` writes it anew."
            if name == HEADER
            else "Put it back from a copy, or write another cache with `fairchem-crack cache-teacher`."
        )
    )
