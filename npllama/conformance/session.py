"""The checks as tests of pytest: what ``npllama_pytest`` loads where a sampler is named.

Every law is a test.  Results travel in the reports of the tests, so that workers of
pytest-xdist can share them, and are printed at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

import npllama
from npllama.conformance.hints import hint
from npllama.conformance.offers import BadSampler, Offer, load
from npllama.conformance.report import Report, Result
from npllama.files import whole
from npllama.testing.laws import Law, counterexample

NAME = "npllama.conformance"


class Trial(NamedTuple):
    """One law and one offer."""

    offer: Offer
    law: Law

    def __str__(self) -> str:
        return f"{self.offer}: {self.law.says}"


class Session:
    """What one run of pytest knows about the sampler that it was given."""

    def __init__(self, config: pytest.Config):
        self.sampler: str = config.getoption("sampler")
        self.file: str | None = config.getoption("sampler_report")
        many: int = config.getoption("sampler_examples")
        if many < 1:
            raise pytest.UsageError(
                f"--sampler-examples is {many}; it must be 1 or more"
            )
        if self.file:
            check_place(Path(self.file))
        try:
            offers = load(self.sampler)
        except BadSampler as problem:
            raise pytest.UsageError(f"--sampler: {problem}") from problem
        self.trials = [Trial(offer, law) for offer in offers for law in offer.laws]
        self.hints: dict[str, str] = {}
        # The same cases in every run, so that a report can be compared with another.
        settings.register_profile(NAME, max_examples=many, derandomize=True)
        settings.load_profile(NAME)
        if all(NAME in arg for arg in config.args):
            self.leave_it_to_the_report(config)

    def leave_it_to_the_report(self, config: pytest.Config) -> None:
        """Say nothing twice: the report has every failure."""
        if config.option.tbstyle == "auto":
            config.option.tbstyle = "no"
        config.option.reportchars = config.option.reportchars.replace("f", "")

    def examine(self, trial: Trial) -> Result:
        """Try one law; a hint for its strategy is looked for once."""
        offer, law = trial
        example, key = counterexample(law, offer.function), str(offer)
        if example and key not in self.hints:
            self.hints[key] = hint(offer)
        words = self.hints[key] if example else None
        return Result(offer.strategy, key, law.says, example, words)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the report, and write it where a file is named."""
        reports = [
            report
            for outcome in ("passed", "failed")
            for report in terminalreporter.getreports(outcome)
        ]
        found = [
            Result(**value)
            for report in reports
            for key, value in getattr(report, "user_properties", [])
            if key == NAME
        ]
        if not found:
            return
        place = {(str(t.offer), t.law.says): i for i, t in enumerate(self.trials)}
        found.sort(key=lambda result: place[result.offer, result.law])
        report = Report(found)
        terminalreporter.section(f"{NAME}: {self.sampler}")
        for line in report.text().splitlines():
            terminalreporter.write_line(line)
        if self.file:
            write(Path(self.file), self.sampler, report)


def check_place(path: Path) -> None:
    """Raise UsageError, before all work, if no file can be written there."""
    try:
        whole.check_place(path)
    except OSError as error:
        raise pytest.UsageError(f"--sampler-report {path}: {error.strerror}") from None
    except ValueError as error:
        raise pytest.UsageError(f"--sampler-report {error}") from None


def write(path: Path, sampler: str, report: Report) -> None:
    """Write a report as JSON."""
    record = {
        "sampler": sampler,
        "npllama": npllama.__version__,
        "examples": settings().max_examples,
        **report.record(),
    }
    whole.write_file(path, json.dumps(record, indent=1) + "\n")
