"""A site: Prefect on PostgreSQL, S3, a repository, and two workers that share nothing else."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort, LogSort

from mrmodel.orchestrate.result_store import StageResult
from mrmodel.storage import open_store
from tests.project import Project
from tests.services import PostgresService, Service

SLOT = "gpu:test:0"
# From fresh weights: the paper's smaller learning rate is above the starting point then.
SEARCH = {
    "run": "scratch",
    "trials": 4,
    "workers": 2,
    "confirm": {"best": 1, "seeds": 2},
    "post_hoc": {"trials": 2},
    "prune": {"enabled": False},
}


@dataclass
class Site:
    """What the tests do with the servers and the workers.

    Attributes:
        project: the repository.
        folder: of the site.
        environment: what all programs get.
        workers: pool -> the process of its worker.
    """

    project: Project
    folder: Path
    environment: dict[str, str]
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def client(self) -> SyncPrefectClient:
        """A client of the server, with its password."""
        address, login = (
            self.environment[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING")
        )
        return SyncPrefectClient(address, auth_string=login)

    def start_worker(self, pool: str) -> None:
        """A process worker of a pool, with a folder of its own as if on a machine of its own."""
        own = {"MRMODEL_WORK_DIR": str(self.folder / f"worker-{pool}")}
        if pool == "gpu":
            own["MRMODEL_GPU_SLOT"] = SLOT
        with (self.folder / f"worker-{pool}.log").open("ab") as log:
            self.workers[pool] = subprocess.Popen(
                [
                    "prefect",
                    "worker",
                    "start",
                    "--pool",
                    pool,
                    "--name",
                    f"{pool}-{time.time():.0f}",
                ],
                cwd=self.folder,
                env={**self.environment, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop_workers(self) -> None:
        """End them and what they run."""
        for worker in self.workers.values():
            worker.send_signal(signal.SIGINT)
        for worker in self.workers.values():
            try:
                worker.wait(timeout=8)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The orchestrator, as a person starts it."""
        return self.start_flow("pipeline", "--workers", *arguments)

    def start_flow(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """A flow that waits for workers, from the command line."""
        return subprocess.Popen(
            [sys.executable, "-m", f"flows.{name}", *arguments],
            cwd=self.project.folder,
            env={**self.environment, "MRMODEL_WORK_DIR": str(self.folder / "orchestrator")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Its output once it has ended."""
        try:
            output: str = self.wait_until(lambda: ended(process), 900)
        finally:
            process.kill()  # One that has ended feels nothing.
        assert process.returncode == code, output + self.logs()
        return output

    def run(self, *arguments: str, code: int = 0) -> str:
        """An orchestration from start to end."""
        return self.finish(self.start(*arguments), code)

    def wait_until(self, found: Callable[[], Any], patience_s: float, every_s: float = 0.05) -> Any:
        """What `found` returns as soon as that is something.

        Raises:
            AssertionError: it took longer, or a worker is dead, so that nobody would do the work.
        """

        def look() -> Any:
            for pool, worker in self.workers.items():
                code = worker.poll()
                assert code is None, f"the worker of the pool {pool} gave {code}:\n{self.logs()}"
            return found()

        return wait_until(look, patience_s, self.logs, every_s)

    def logs(self) -> str:
        """What the workers said last, for a failed test."""
        files = sorted(self.folder.glob("worker-*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-6000:]}" for file in files)

    def lock(self, branch: str) -> dict[str, Any]:
        """dvc.lock of a run branch."""
        content: dict[str, Any] = yaml.safe_load(self.project.git("show", f"{branch}:dvc.lock"))
        return content["stages"]

    def flow_runs(self, name: str) -> list[FlowRun]:
        """Flow runs of a stage, the newest first."""
        with self.client() as client:
            wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
            return client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC
            )

    def search_workers(self, study: str) -> dict[str, str]:
        """Name and state of all flow runs that were workers of a search."""
        with self.client() as client:
            wanted = FlowFilter(name=FlowFilterName(any_=["tune-worker"]))
            found = client.read_flow_runs(flow_filter=wanted)
            named = [one for one in found if one.name.startswith(study)]
            return {one.name: one.state.name or "" for one in named if one.state is not None}

    def said(self, words: str) -> int:
        """How many lines of flow runs' logs have these words."""
        with self.client() as client:
            return sum(
                words in line.message
                for line in client.read_logs(limit=200, sort=LogSort.TIMESTAMP_DESC)
            )

    def count_waiting(self, stage: str) -> int:
        """How often an orchestrator began to wait for a stage on a pool."""
        with self.client() as client:
            wanted = TaskRunFilter(name=TaskRunFilterName(any_=[stage]))
            return len(client.read_task_runs(task_run_filter=wanted))

    def results(self) -> list[StageResult]:
        """All records in the result store."""
        store = open_store(self.environment["MRMODEL_HANDOVER"])
        found = [store.get(key) for key in store.keys("results")]
        return [StageResult(**json.loads(one.content)) for one in found if one is not None]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Processes in clones of the workers (stages, DVC, guards), whose command has the word."""
        found = []
        for process in psutil.process_iter(["cwd", "cmdline"]):
            command = " ".join(process.info["cmdline"] or [])
            inside = str(self.folder / "worker-") in str(process.info["cwd"])
            ours = inside or ("mrmodel.processes" in command and self.is_ours(process))
            if command and ours and word in command:
                found.append(process)
        return found

    def is_ours(self, process: psutil.Process) -> bool:
        """Whether a process has the environment of this site's workers."""
        try:
            return str(self.folder) in process.environ().get("MRMODEL_WORK_DIR", "")
        except psutil.Error:
            return False

    def wait_for_stage(self, module: str) -> psutil.Process:
        """The process of a stage's command, once it runs."""
        return self.wait_until(lambda: next(iter(self.processes(module)), None), 120)


def ended(process: subprocess.Popen[str]) -> str | None:
    """The output of a process that has ended, within half a second; a line feed: it has none."""
    try:
        return process.communicate(timeout=0.5)[0] or "\n"
    except subprocess.TimeoutExpired:
        return None


def wait_until(
    found: Callable[[], Any],
    patience_s: float,
    explain: Callable[[], str] = lambda: "",
    every_s: float = 0.05,
) -> Any:
    """What `found` returns as soon as that is something."""
    deadline = time.monotonic() + patience_s
    while not (value := found()):
        assert time.monotonic() < deadline, explain()
        time.sleep(every_s)
    return value


@contextmanager
def open_site(
    project: Project,
    folder: Path,
    services: Sequence[Service],
    pools: Sequence[str],
    *,
    provision: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Site]:
    """Pools, deployments and workers for a project; its places lie below ``s3://mrmodel/<name>``.

    Args:
        project: the repository.
        folder: of the site; its name is part of the addresses.
        services: servers whose variables all programs get.
        pools: one worker for each.
        provision: options of ``flows.provision``.
        variables: further ones, or others.
    """
    # Prefect's workers keep files in the TMPDIR, in a folder that belongs to whoever made it. Not
    # below pytest's folder: the path of a Unix socket has an end after 107 bytes.
    with tempfile.TemporaryDirectory(prefix="site-") as temporary:
        here = Site(project, folder, _environment(project, folder, services, temporary, variables))
        for command in (
            [sys.executable, "-m", "flows.provision", "--lost-after", "60", *provision],
            ["prefect", "--no-prompt", "deploy", "--all"],
        ):
            done = subprocess.run(
                command,
                cwd=project.folder,
                env=here.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with pytest.MonkeyPatch.context() as patch:
            for service in services:
                for name, value in service.env().items():
                    patch.setenv(name, value)
            for pool in pools:
                here.start_worker(pool)
            try:
                yield here
            finally:
                here.stop_workers()
        left = here.processes()
        assert not left, f"still running: {left}"


def _environment(
    project: Project,
    folder: Path,
    services: Sequence[Service],
    temporary: str,
    variables: Mapping[str, str] | None,
) -> dict[str, str]:
    """What all programs of a site get."""
    base = f"s3://mrmodel/{folder.name}"
    return {
        **project.environment(),
        **{name: value for service in services for name, value in service.env().items()},
        "MRMODEL_GIT_URL": str(project.folder),
        "MRMODEL_DVC_REMOTE": f"{base}/dvc",
        "MRMODEL_HANDOVER": f"{base}/handover",
        "TMPDIR": temporary,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }


@pytest.fixture(scope="module")
def site(
    reproduced: Project,
    s3: Service,
    postgres: PostgresService,
    prefect_server: Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Servers, pools, deployments and two workers; the pipeline has not run."""
    folder = tmp_path_factory.mktemp("site")
    project = Project(folder / "repository")
    pools = dict.fromkeys(("scratch", "pretrain", "extract", "extract_text"), "gpu")
    orchestrate = {"pools": pools, "attempts": 3}
    project.apply("miniature", {"orchestrate": orchestrate, "tune": SEARCH})
    project.keep_studies("seed_run", "seeds")
    project.commit()
    slot = ("--gpu-slot", SLOT)
    services, trials = (s3, prefect_server), {"OPTUNA_STORAGE": postgres.database("optuna")}
    with open_site(
        project, folder, services, ("cpu", "gpu"), provision=slot, variables=trials
    ) as here:
        yield here


@pytest.fixture(scope="module")
def finished(site: Site) -> str:
    """Run branch of the first orchestration, which had everything to do."""
    return branch_of(site.run())


def branch_of(output: str) -> str:
    """The branch that the orchestrator names."""
    words = [line.split()[2] for line in output.splitlines() if line.startswith("git merge runs/")]
    assert words, output
    return words[0]


def assert_no_process(site: Site) -> None:
    """No stage, no DVC and no guard is left, and no clone."""
    wait_until(lambda: not site.processes(), 30, lambda: str(site.processes()))
    clones = [path for path in site.folder.glob("worker-*/clones/*") if path.is_dir()]
    assert not clones
