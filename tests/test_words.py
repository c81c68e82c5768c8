"""Retired words stay out of code, tests and documents (docs/reference/glossary.md)."""

import re
import subprocess
from functools import cache

import pytest

from tests.project import ROOT

# What is typed or stored keeps its name: MRMODEL_HANDOVER, files of earlier versions.
EXEMPT = (
    "docs/reference/glossary.md",
    "docs/howto/upgrade.md",
    "tests/compat/",
    "tests/test_words.py",
)
RETIRED = {
    r"\bcrews?\b": "a metaphor: worker pool",
    r"\berrands?\b": "a metaphor: remote task",
    r"\bspool": "the event log is read while it is written",
    r"\bhand-over\b": "result store",
    r"\bintake\b": "ingestion",
    r"\b[Bb]rought (weights|encoders)": "user weights",
    r"\btickets?\b": "enqueued trial",
    r"new.line of comparison|\bnew_line\b": "--reset-baseline",
    r"\bmrmodel[./](promotion|track|pipeline|corpus|generate|official)\b": "packages that moved",
    r"\b(baselines|embedded|pretraining_data)\.md\b": "a design note outside of the repository",
}


TEXTS = ("*.py", "*.md", "*.yaml", "*.toml", "*.svg", "*.j2", "Makefile")


@cache
def texts() -> dict[str, str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *TEXTS]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    files = [ROOT / name for name in done.stdout.splitlines() if not name.startswith(EXEMPT)]
    return {str(path.relative_to(ROOT)): path.read_text() for path in files if path.is_file()}


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_does_not_come_back(word: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(word, line)
    ]
    assert found == [], RETIRED[word]
