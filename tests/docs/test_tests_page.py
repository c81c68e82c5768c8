"""docs/reference/tests.md lists the tests that `make test` leaves out."""

import ast
import re

import pytest

from tests.conftest import COLLECTED, OUTSIDE
from tests.project import ROOT

PAGE = (ROOT / "docs/reference/tests.md").read_text()
LISTED = re.findall(r"^\| `(tests/[\w/]+\.py(?:::\w+)?)`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in found


def test_every_test_outside_is_listed_and_no_other(request: pytest.FixtureRequest) -> None:
    """Of the files of this test run: the markers decide."""
    outside = {node.partition("[")[0] for node in request.config.stash[OUTSIDE]}
    assert {node for node in outside if not {node, node.partition("::")[0]} & set(LISTED)} == set()
    marked = outside | {node.partition("::")[0] for node in outside}
    files = request.config.stash[COLLECTED]
    assert {one for one in LISTED if one.partition("::")[0] in files and one not in marked} == set()
