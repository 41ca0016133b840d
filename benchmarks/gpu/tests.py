"""Run the tests that have the mark `gpu`, and write a row for each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.gpu import json_lines

TESTS = ROOT / "tests"
NONE_COLLECTED = 5


class Recorder:
    """A plugin of pytest that writes the outcome of each test."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep a file that could not be imported."""
        if report.failed:
            json_lines.append(
                self.file, test=report.nodeid, outcome="failed", seconds=0.0, error=report.longreprtext[-1000:]
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call of a test, and what else of it did not pass."""
        if report.when == "call" or not report.passed:
            error = "" if report.passed else report.longreprtext[-1000:]
            json_lines.append(
                self.file, test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), error=error
            )


def main() -> None:
    """Run them; a file that cannot be imported does not keep the others from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    options = parser.parse_args()
    flags = ["-m", "gpu", "-p", "no:cacheprovider", "-q", "--continue-on-collection-errors"]
    status = pytest.main([*flags, str(TESTS)], plugins=[Recorder(options.rows)])
    sys.exit(0 if status == NONE_COLLECTED else status)


if __name__ == "__main__":
    main()
