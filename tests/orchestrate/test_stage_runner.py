"""One stage in a fresh clone: what comes back, and what is left when somebody is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore, StageRequest
from mrmodel.orchestrate.stage_process import Listener, StageFailed, StageKilled, run_stage_process
from tests.project import Project


@dataclass
class Bench:
    """A repository of this test's own whose DVC cache is the one of the finished project."""

    folder: Path
    work: Path
    environment: RuntimeEnvironment

    def commit(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]
        subprocess.run([*command, "commit", "-qam", "edit"], cwd=self.folder, check=True)

    def switch_off_tracking(self) -> None:
        """MLflow hears of no stage from here on."""
        self.commit("params.yaml", "tracking:\n  enabled: true", "tracking:\n  enabled: false")

    def run(self, stage: str, listener: Listener | None = None, **order: Any) -> Any:
        return run_stage_process(StageRequest(stage, "HEAD", **order), listener or Listener())

    def processes(self) -> list[str]:
        """Commands of all processes that belong to a clone of this test."""
        running = [process.info for process in psutil.process_iter(["cwd", "cmdline"])]
        clones = str(self.environment.clones)
        ours = [info for info in running if clones in f"{info['cwd']} {info['cmdline']}"]
        return [" ".join(info["cmdline"]) for info in ours if info["cmdline"]]


@pytest.fixture
def tracked(
    recorded: Project, empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """A repository whose stages MLflow records."""
    folder = tmp_path / "repository"
    subprocess.run(["git", "clone", "-q", str(recorded.folder), str(folder)], check=True)
    (folder / ".dvc/cache").symlink_to(recorded.folder / ".dvc/cache")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MRMODEL_GIT_URL", str(folder))
    # Children import the code under test, not what happens to be installed.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for name in ("MRMODEL_DVC_REMOTE", "MRMODEL_HANDOVER", "MRMODEL_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    environment = RuntimeEnvironment.from_environment()
    environment.state.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_mlflow, environment.state)
    return Bench(folder, tmp_path, environment)


@pytest.fixture
def bench(tracked: Bench) -> Bench:
    """Its stages are not recorded: what MLflow has of them is in test_pipeline_record.py."""
    tracked.switch_off_tracking()
    return tracked


@dataclass
class Recorder(Listener):
    """Keeps everything, and acts once when a line or a step says something."""

    when: str = ""
    act: Callable[[], object] = lambda: None
    lines: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def line(self, text: str) -> None:
        self.lines.append(text)
        self._look(text)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._look(f"step {event['name']}" if event["event"] == "step" else "")

    def _look(self, text: str) -> None:
        if self.when and re.search(self.when, text):
            self.when = ""
            self.act()

    @property
    def steps(self) -> list[str]:
        return [event["name"] for event in self.events if event["event"] == "step"]


def kill_stage(bench: Bench, module: str) -> None:
    """SIGKILL the process of the stage's own command, not DVC's and not the attempt's."""
    deadline = time.monotonic() + 30
    while True:
        for process in psutil.process_iter(["cwd", "cmdline"]):
            inside = str(bench.environment.clones) in str(process.info["cwd"])
            if inside and module in (process.info["cmdline"] or []):
                process.kill()
                return
        assert time.monotonic() < deadline, bench.processes()
        time.sleep(0.02)


def assert_clean(bench: Bench) -> None:
    deadline = time.monotonic() + 15
    while running := bench.processes():
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def test_a_stage_runs_in_a_clone_and_comes_back(bench: Bench) -> None:
    bench.commit("params.yaml", "bootstrap_resamples: 200", "bootstrap_resamples: 150")
    recorder = Recorder()
    result = bench.run("evaluate", recorder)
    assert recorder.steps == ["clone", "pull", "run", "push"]
    progress = [event for event in recorder.events if event["event"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"]) == (3, 3)
    assert result.entry["params"]["params.yaml"]["evaluate"]["bootstrap_resamples"] == 150
    assert result.figures["reports/metrics/moment_detr.finetuned.json"]["mAP"] >= 0.0
    assert result.curves["reports/recall.csv"][0] > 0
    assert set(result.seconds) == {"clone", "pull", "run", "push"}
    for out in result.entry["outs"]:
        assert (bench.environment.cache / "files/md5" / out["md5"][:2] / out["md5"][2:]).exists()
    assert list(bench.environment.clones.iterdir()) == [], "the clone must be gone"
    assert bench.processes() == []
    assert not (bench.folder / "reports").exists(), "it must not touch the repository itself"

    again = Recorder()
    assert bench.run("evaluate", again) == result
    assert again.steps == ["clone"], "what is pushed is not made twice"


@pytest.mark.services
def test_locks_of_other_stages_are_used(bench: Bench) -> None:
    """A stage is given what those before it made, which no commit holds yet."""
    lock = (bench.folder / "dvc.lock").read_text()
    bench.commit("dvc.lock", lock, "schema: '2.0'\nstages: {}\n")
    with pytest.raises(
        StageFailed, match=r"(?s)could not be read from the cache: .*data/miniature"
    ):
        bench.run("extract@tiny.video")
    result = bench.run("extract@tiny.video", locks={"dvc.lock": lock})
    assert result.entry["outs"][0]["path"] == "features/miniature/tiny.video"


def test_an_error_of_the_stage_says_its_last_lines(bench: Bench) -> None:
    bench.commit("params.yaml", "bootstrap_resamples: 200", "bootstrap_resamples: -1")
    with pytest.raises(StageFailed) as failure:
        bench.run("evaluate")
    said = str(failure.value)
    assert "exited with 2" in said
    assert "error: evaluate.bootstrap_resamples = -1" in said
    assert "Traceback" not in said
    assert list(bench.environment.clones.iterdir()) == []


def test_an_unknown_revision(bench: Bench) -> None:
    with pytest.raises(StageFailed, match="has no revision 'nowhere'"):
        run_stage_process(StageRequest("evaluate", "nowhere"), Listener())


@pytest.mark.services
def test_a_killed_stage_may_be_tried_again(bench: Bench) -> None:
    bench.commit("params.yaml", "bootstrap_resamples: 200", "bootstrap_resamples: 151")
    killer = Recorder("Running stage", lambda: kill_stage(bench, "mrmodel.stages.evaluate"))
    with pytest.raises(StageKilled, match="evaluate: its process was killed"):
        bench.run("evaluate", killer)
    assert_clean(bench)
    assert list(bench.environment.clones.iterdir()) == []
    assert bench.run("evaluate").entry["outs"]


def test_a_stage_that_takes_too_long_is_ended(bench: Bench) -> None:
    bench.commit("params.yaml", "bootstrap_resamples: 200", "bootstrap_resamples: 152")
    with pytest.raises(StageFailed, match=r"longer than orchestrate\.stage_timeout_s = 3"):
        bench.run("evaluate", timeout_s=3.0)
    assert_clean(bench)


def test_no_secret_is_heard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-in-the-environment")
    leak = 'import os\n\nprint("key", os.environ["AWS_SECRET_ACCESS_KEY"])\n'
    bench.commit(
        "mrmodel/stages/evaluate.py",
        "import logging\n",
        f"import logging\n{leak}raise ValueError\n",
    )
    recorder = Recorder()
    with pytest.raises(StageFailed) as failure:
        bench.run("evaluate", recorder)
    assert "key ***" in recorder.lines
    assert "planted" not in "\n".join([*recorder.lines, str(failure.value)])


@pytest.mark.services
def test_the_stage_dies_with_the_flow_and_goes_on_from_where_it_was(bench: Bench) -> None:
    """SIGKILL of the process that wanted the stage; nothing of it can clean up."""
    bench.commit("params.yaml", "checkpoint_every_steps: 5", "checkpoint_every_steps: 2")
    bench.commit("params.yaml", "weight_decay: 1.0e-4", "weight_decay: 3.0e-4")
    program = (
        "from mrmodel.orchestrate.stage_process import Listener, run_stage_process\n"
        "from mrmodel.orchestrate.result_store import StageRequest\n"
        "run_stage_process(StageRequest('scratch@moment_detr', 'HEAD'), Listener())\n"
    )
    flow = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not list(bench.environment.state.glob("resume/scratch@moment_detr/*/state.pt")):
        assert time.monotonic() < deadline
        assert flow.poll() is None
        time.sleep(0.002)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    assert_clean(bench)
    left = [path for path in bench.environment.clones.iterdir() if path.is_dir()]
    assert len(left) == 1, "nobody could remove the clone"
    recorder = Recorder()
    result = bench.run("scratch@moment_detr", recorder)
    assert any("continuing at step" in line for line in recorder.lines)
    assert not left[0].exists(), "the next attempt removes what the killed one left"
    shutil.rmtree(bench.environment.state / "resume", ignore_errors=True)
    ResultStore(bench.environment.result_store, None).drop("scratch@moment_detr", result.key)
    shutil.rmtree(bench.environment.cache.resolve() / "runs", ignore_errors=True)
    assert bench.run("scratch@moment_detr").entry == result.entry, "resumed or not: the same bytes"
