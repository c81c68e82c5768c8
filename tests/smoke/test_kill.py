"""kill -9 in the middle of a stage: nothing goes on, and the next run ends in the same bytes."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from tests.project import Project
from tests.smoke.test_repro import stages_run

# The state that each stage leaves, and the output that it has once it has finished.
INTERRUPTED = [
    ("extract-miniature-tiny.video/**/*.npy", "features/miniature/tiny.video"),
    ("pretrain@moment_detr/**/state.pt", "models/pretrained/moment_detr"),
    ("finetune@moment_detr/**/state.pt", "models/finetuned/moment_detr"),
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


@pytest.mark.slow
def test_a_killed_pipeline_ends_in_the_same_bytes(reproduced: Project, tmp_path: Path) -> None:
    """The shorter proof: `test_a_killed_training_ends_in_the_same_bytes`."""
    disturbed = Project(tmp_path / "clone")
    disturbed.apply("miniature")
    disturbed.commit()
    interrupt(disturbed, "report", INTERRUPTED)
    output = disturbed.run("dvc", "repro")
    assert "continuing at step" in output
    assert_same(disturbed, reproduced, COMPARED)


def test_a_killed_training_ends_in_the_same_bytes(reproduced: Project, tmp_path: Path) -> None:
    """What comes before the training is up to date; what follows fine-tuning reads no more."""
    disturbed = before_training(reproduced, tmp_path / "clone")
    target = "finetune@moment_detr"
    interrupt(disturbed, target, INTERRUPTED[1:2])
    output = disturbed.run("dvc", "repro", target)
    assert stages_run(output) == {"pretrain@moment_detr", target}
    assert "continuing at step" in output
    later = ("reports/", "models/served/")
    compared = [name for name in COMPARED if not name.startswith(later)]
    assert_same(disturbed, reproduced, [*compared, "reports/training/finetune-moment_detr.csv"])


def before_training(reproduced: Project, folder: Path) -> Project:
    """A copy in which no stage after `intervid_mr` has run, nor does DVC know its results."""
    project = reproduced.copy(folder)
    # Without the third, DVC would take the results of equal runs from its cache.
    for name in ("models", "reports", ".dvc/cache/runs"):
        shutil.rmtree(folder / name)
    project.apply("miniature")
    lock = yaml.safe_load(project.read("dvc.lock"))
    done = ("corpus", "extract", "profile", "intervid")
    lock["stages"] = {n: one for n, one in lock["stages"].items() if n.startswith(done)}
    (project.folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    return project


def interrupt(project: Project, target: str, interrupted: list[tuple[str, str]]) -> None:
    for trace, finished in interrupted:
        kill_when(project, target, lambda trace=trace: has_trace(project, trace))
        assert not (project.folder / finished).exists(), f"{finished}: killed too late to tell"


def assert_same(disturbed: Project, reproduced: Project, names: Sequence[str]) -> None:
    for name in names:
        assert disturbed.read(name) == reproduced.read(name), name
    left = disturbed.folder / ".mrmodel/resume"
    assert not [path for path in left.rglob("*") if path.is_file()]


def kill_when(project: Project, target: str, is_time: Callable[[], bool]) -> None:
    """Run `dvc repro` and SIGKILL DVC alone once `is_time`; all else must end by itself."""
    process = project.start("dvc", "repro", target)
    try:
        deadline = time.monotonic() + 300
        while not is_time():
            assert process.poll() is None, f"ended early:\n{process.stdout.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
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
