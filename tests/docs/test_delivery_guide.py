"""The commands of the guide for senders run as they stand there."""

import json
import shutil
from pathlib import Path

import pytest

from mrmodel.presets import overlay
from tests.docs.test_commands import SMALL, commands_of
from tests.project import Project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A clone with a person's folder, and `next`, which is about to be sent."""
    project = Project(tmp_path / "clone")
    project.commit()
    source = reproduced.folder / "data/miniature"
    own, sent = project.folder / "own_videos", project.folder / "next"
    for folder in (own, sent):
        (folder / "videos").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copyfile(source / f"{split}.jsonl", own / f"{split}.jsonl")
    row = json.loads((source / "train.jsonl").read_text().splitlines()[0])
    rows = []
    for path in sorted((source / "videos").iterdir()):
        known = path.stem.startswith(("train-", "val-"))
        shutil.copyfile(path, (own if known else sent) / "videos" / path.name)
        if not known:
            rows.append(row | {"qid": f"next-{path.stem}", "vid": path.stem})
    (sent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return project


@pytest.mark.slow
def test_deliver_data(project: Project) -> None:
    for command in commands_of("howto/deliver_data.md"):
        output = project.run("sh", "-c", command)
        if command.startswith("mrmodel preset apply"):
            params = project.folder / "params.yaml"
            params.write_text(overlay(params.read_text(), SMALL))
    assert "### Delivery `next`: taken" in output
    assert "Good rows: 12 of train.jsonl. New videos: 12." in output
    assert "own_videos.dvc" in project.git("ls-files")
