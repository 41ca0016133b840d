"""Prose and its figures: the units of a page, the numbers in them, and whether a sentence holds what it should."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORDS = {"half": 1 / 2, "a third": 1 / 3, "A seventh": 1 / 7, "twice": 2, "three": 3, "five": 5, "six": 6, "eight": 8}
DIGITS = r"[-+]?(?:\d{1,3}(?:[ ,]\d{3})+|\d+)(?:\.\d+)?"
FIGURE = rf"({DIGITS}|{'|'.join(map(re.escape, WORDS))})"
LOOSE = 0.2  # how far from a word the figure may be, relative to it
STARTS_A_UNIT = re.compile(r"\s*([-*] |\d+\. |\||#)")


class Claim(NamedTuple):
    """A sentence of a page, a # for each of its figures, and what these are."""

    page: str
    sentence: str
    figures: Sequence[float]


def units(page: str) -> list[str]:
    """Paragraphs, bullets and rows of tables, each in one line; without blocks of code."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        is_command = line.startswith("    ")
        if not line.strip() or is_command or STARTS_A_UNIT.match(line):
            parts.append([])
        parts[-1] += [] if is_command else [line.strip()]
        if line.startswith("#"):
            parts.append([])
    return [" ".join(lines) for lines in parts if any(lines)]


def sentence_pattern(sentence: str) -> re.Pattern:
    return re.compile(FIGURE.join(re.escape(part) for part in sentence.split("#")))


def find(claim: Claim) -> re.Match:
    """The one place of a page where the sentence stands."""
    matches = [match for unit in units(claim.page) for match in sentence_pattern(claim.sentence).finditer(unit)]
    assert len(matches) == 1, f"{claim.page} has {len(matches)} times: {claim.sentence}"
    return matches[0]


def is_printed_as(figure: float, text: str) -> bool:
    """Whether the text is the figure, rounded to as many digits as it has."""
    if text in WORDS:
        return abs(figure - WORDS[text]) <= LOOSE * WORDS[text]
    digits = re.sub("[ ,]", "", text)
    decimals = len(digits.partition(".")[2])
    return abs(figure - float(digits)) <= 0.5 * 10**-decimals + 1e-9


def uncovered(unit: str, sentences: Sequence[str]) -> list[str]:
    """The numbers of a unit that stand in none of these sentences; not those of names, code and addresses."""

    def blank(match: re.Match) -> str:
        return "_" * len(match[0])

    shown = re.sub(r"`[^`]*`|\]\([^)]*\)", blank, unit)
    for sentence in sentences:
        spans = [match.span() for match in sentence_pattern(sentence).finditer(unit)]
        for start, end in spans:
            shown = shown[:start] + "_" * (end - start) + shown[end:]
    words = "|".join(map(re.escape, WORDS))
    return [match[0] for match in re.finditer(rf"(?<![\w.=^/]){DIGITS}(?!\.?\w)|\b(?:{words})\b", shown)]
