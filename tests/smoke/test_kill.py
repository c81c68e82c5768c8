"""kill -9 in the middle of a stage: nothing goes on, and the next run ends in the same bytes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import Project

# The state that each stage leaves, and the output that says it had finished.
INTERRUPTED = [
    ("extract-miniature-tiny.video/**/*.npy", "features/miniature/tiny.video", "are done already"),
    ("pretrain@moment_detr/**/state.pt", "models/pretrained/moment_detr", "continuing at step"),
    ("finetune@moment_detr/**/state.pt", "models/finetuned/moment_detr", "continuing at step"),
]
COMPARED = [
    "data/intervid_mr/train.jsonl",
    "features/miniature/tiny.video/index.parquet",
    "features/miniature/tiny.video/manifest.json",
    "features/miniature/tiny.video/shard-00000.npy",
    "models/pretrained/moment_detr/model.safetensors",
    "models/finetuned/moment_detr/model.safetensors",
    "reports/training/finetune-moment_detr.csv",
    "reports/metrics.json",
    "models/served/moment_detr/serving.json",
    "reports/report.html",
]


@pytest.fixture
def disturbed(reproduced: Project, tmp_path: Path) -> Project:
    project = Project(tmp_path / "clone")
    project.apply("miniature")
    project.commit()
    return project


@pytest.mark.parametrize(
    "interrupted", [INTERRUPTED[1:2], pytest.param(INTERRUPTED, marks=pytest.mark.slow)]
)
def test_a_killed_pipeline_ends_in_the_same_bytes(
    reproduced: Project, disturbed: Project, interrupted: list[tuple[str, str, str]]
) -> None:
    for trace, finished, _ in interrupted:
        kill_when(disturbed, lambda trace=trace: has_trace(disturbed, trace))
        assert not (disturbed.folder / finished).exists(), f"{finished}: killed too late to tell"
    output = disturbed.run("dvc", "repro")
    assert "continuing at step" in output
    for name in COMPARED:
        assert disturbed.read(name) == reproduced.read(name), name
    left = disturbed.folder / ".mrmodel/resume"
    assert not [path for path in left.rglob("*") if path.is_file()]


def kill_when(project: Project, is_time: Callable[[], bool]) -> None:
    """Run `dvc repro` and SIGKILL DVC alone once `is_time`; all else must end by itself."""
    process = project.start("dvc", "repro")
    try:
        deadline = time.monotonic() + 300
        while not is_time():
            assert process.poll() is None, f"ended early:\n{process.stdout.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 10
    while running := processes_in(project.folder):
        assert time.monotonic() < deadline, f"still running: {running}"
        time.sleep(0.05)


def has_trace(project: Project, pattern: str) -> bool:
    return any((project.folder / ".mrmodel/resume").glob(pattern))


def processes_in(folder: Path) -> list[str]:
    """Command lines of all processes whose current folder is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]
