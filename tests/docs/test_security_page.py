"""docs/explanation/security.md names a test for every promise."""

from __future__ import annotations

import re

from tests.project import ROOT

PAGE = (ROOT / "docs/explanation/security.md").read_text()


def test_every_promise_has_a_test_that_exists() -> None:
    _, table = PAGE.split("| threat |", 1)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)`", row)
        assert named, row
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_file_of_security_tests_is_named() -> None:
    files = [f"tests/security/{path.name}" for path in ROOT.glob("tests/security/test_*.py")]
    assert [name for name in files if name not in PAGE] == []
