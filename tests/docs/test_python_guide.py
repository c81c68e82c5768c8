"""The Python of docs/howto/use_from_python.md runs as it stands there.

Its champion is one of another project: tests/compat loads a registered one.
"""

from __future__ import annotations

import contextlib

import pytest

import mrmodel
from mrmodel import Predictor
from tests.docs.test_commands import blocks_of
from tests.project import Project


def test_the_snippets_run(
    reproduced: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search, zero_shot, champion, errors = blocks_of("howto/use_from_python.md", "python")
    video = sorted((reproduced.folder / "data/miniature/videos").glob("test-*.mp4"))[0]
    served = str(reproduced.folder / "models/served/moment_detr")
    here = {
        '"data/sample/videos/test-0001.mp4"': repr(str(video)),
        '"models/served/sg_detr"': repr(served),
    }

    def run(block: str) -> str:
        for there, place in here.items():
            block = block.replace(there, place)
        with contextlib.chdir(reproduced.folder):
            exec(block, {})
        return capsys.readouterr().out

    lines = run(search).splitlines()
    assert lines[0] == "a jack-o-lantern in outer space (24 s of video)"
    assert lines[-1].startswith("  best clip: from ")
    assert run(zero_shot).startswith("Moment(start_s=")
    assert run(errors) == "not_found\n"
    asked: list[str] = []

    def champion_of(name: str) -> Predictor:
        asked.append(name)
        return Predictor.load(served, "cpu")

    monkeypatch.setattr(mrmodel, "load_champion", champion_of, raising=False)
    run(champion)
    assert asked == ["moments"]
