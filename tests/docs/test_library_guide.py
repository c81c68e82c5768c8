"""The commands and the Python of docs/howto/search_a_library.md run as they stand there."""

from __future__ import annotations

import shlex
import shutil

import pytest

from tests.docs.test_commands import blocks_of, commands_of, follow
from tests.project import ROOT, Project

GUIDE = "howto/search_a_library.md"


def test_the_guide(reproduced: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reproduced.folder
    videos = folder / "own_videos/videos"
    first, second = sorted((folder / "data/miniature/videos").glob("test-*.mp4"))[:2]
    videos.mkdir(parents=True, exist_ok=True)
    shutil.copy(first, videos / "lake.mp4")
    shutil.copy(second, videos / "sea.mp4")
    said = "1\n00:00:11,500 --> 00:00:13,000\nLook, he jumps into the lake!\n"
    (videos / "lake.srt").write_text(said)
    output = {line: follow(reproduced, line) for line in commands_of(GUIDE)}
    found = next(text for line, text in output.items() if " search " in line)
    assert "       said at 0:11.5: Look, he jumps into the lake!" in found.splitlines()
    assert "2 encoded" in output["mrmodel index add own_videos/videos"]
    assert "gone" not in output["mrmodel index refresh"]
    command = "mrmodel index refresh --model models/served/sg_detr"
    assert f"```\n{command}\n```" in (ROOT / "docs" / GUIDE).read_text()
    shown = reproduced.invoke(*shlex.split(command.replace("sg_detr", "moment_detr"))[1:])
    assert "1 unchanged" in shown, "the same encoders: nothing is encoded"
    (python,) = blocks_of(GUIDE, "python")
    with reproduced.inside():
        exec(python, {})
    assert "1 " in capsys.readouterr().out
