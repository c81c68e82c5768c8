"""The commands and the Python of docs/howto/export.md run as they stand there."""

from __future__ import annotations

import contextlib
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from mrmodel.export import FORMATS
from mrmodel.export.hits import read_hits
from tests.docs.test_commands import blocks_of, commands_of, follow
from tests.export.videos import constant, make_video
from tests.project import ROOT, Project

GUIDE = "howto/export.md"


@pytest.fixture(scope="module")
def holiday(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with a video and nothing else: everything is answered zero-shot."""
    folder = tmp_path_factory.mktemp("holiday")
    make_video(folder / "holiday.mp4", constant(250, Fraction(25)), Fraction(1, 25))
    return Project.at(folder)


def test_the_commands_of_the_guide(holiday: Project, tmp_path: Path) -> None:
    for command in commands_of(GUIDE):
        output = follow_here(holiday, command)
        if "--top 2 --output clips" in command:
            shown = blocks_of(GUIDE, "text")[0].splitlines()
            lines = [line for line in output.splitlines() if line.startswith("clips/")]
            assert [kind_of(line) for line in lines] == [kind_of(line) for line in shown]
    made = sorted(str(path.relative_to(holiday.folder)) for path in holiday.folder.glob("*/*"))
    assert {name.partition("/")[0] for name in made} == {"clips", "picked", "lists", "best"}
    for name in ("picked/reel.mp4", "lists/holiday.vtt", "lists/hits.edl", "best/reel.mp4"):
        assert name in made
    assert (holiday.folder / "holiday.vtt").read_text().startswith("WEBVTT\n\n1\n")
    queries = (holiday.folder / "football.txt").read_text().splitlines()
    highlights = (holiday.folder / "highlights.jsonl").read_text().splitlines()
    assert {json.loads(row)["query"] for row in highlights} <= set(queries)


def test_the_python_of_the_guide(holiday: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks_of(GUIDE, "python")
    with contextlib.chdir(holiday.folder):
        exec(code, {})
    assert capsys.readouterr().out.startswith("from_python/001_holiday_a-dog-on-a-beach.mp4 ")


def test_the_row_of_the_guide_is_a_hit(tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    path.write_text(blocks_of(GUIDE, "json")[0])
    (hit,) = read_hits(path)
    assert (hit.path, hit.moment.end_s) == (Path("holiday.mp4"), 18.0)


def test_the_guide_names_every_format() -> None:
    text = (ROOT / "docs" / GUIDE).read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE) == list(FORMATS)


def kind_of(line: str) -> str:
    return re.sub(r" *\d+\.\d", " N", line)


def follow_here(project: Project, command: str) -> str:
    """In this process where the shell only writes the output to a file."""
    words, _, file = command.partition(" > ")
    if command.startswith("printf"):
        return project.run("sh", "-c", command)
    output = follow(project, words)
    if file:
        lines = [line for line in output.splitlines() if line.startswith("{")]
        (project.folder / file).write_text("\n".join(lines) + "\n")
    return output
