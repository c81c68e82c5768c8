"""The pipeline on two workers: as good as a plain `dvc repro`, whoever is killed meanwhile.

One file, so that one process of the test run starts the servers and the workers.
"""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml

from mrmodel.orchestrate.result_store import StageResult
from mrmodel.storage import open_store
from mrmodel.tune.result import read_result
from mrmodel.tune.study import owner_of
from tests.flows.conftest import Site, assert_no_process, branch_of, wait_until
from tests.flows.searches import assert_right_end, open_study, states_of, working
from tests.project import Project
from tests.services import Service

EVALUATE = "mrmodel.stages.evaluate"
GPU_STAGES = (
    "extract@tiny.video",
    "extract_text@tiny.text",
    "scratch@moment_detr",
    "pretrain@moment_detr",
)


def span(result: StageResult) -> tuple[float, float]:
    return result.began, result.began + result.seconds["run"]


def overlap(one: StageResult, other: StageResult) -> float:
    return min(span(one)[1], span(other)[1]) - max(span(one)[0], span(other)[0])


def test_it_ends_as_a_plain_repro_does(site: Site, finished: str, reproduced: Project) -> None:
    """From nothing: every stage ran on a worker, and every hash is the one of `dvc repro`."""
    plain = yaml.safe_load(reproduced.read("dvc.lock"))["stages"]
    assert site.lock(finished) == plain
    assert_no_process(site)


def test_independent_stages_overlap_and_a_gpu_has_one_at_a_time(site: Site, finished: str) -> None:
    results = {result.stage: result for result in site.results()}
    assert overlap(results["intervid_mr"], results["scratch@moment_detr"]) > 0
    for one in GPU_STAGES:
        for other in GPU_STAGES:
            assert one == other or overlap(results[one], results[other]) <= 0, (one, other)


def test_workers_share_only_the_store(site: Site, finished: str) -> None:
    caches = [set(cache_of(site, pool)) for pool in ("cpu", "gpu")]
    assert all(caches)
    assert caches[0] != caches[1]
    assert cache_of(site, "orchestrator") == [], "the orchestrator holds no data"


def cache_of(site: Site, name: str) -> list[str]:
    folder = site.folder / (name if name == "orchestrator" else f"worker-{name}") / "cache"
    files = [path for path in folder.glob("files/md5/*/*") if not path.name.endswith(".dir")]
    return [path.name for path in files]


def test_the_data_can_be_pulled(
    site: Site, finished: str, reproduced: Project, tmp_path: Path
) -> None:
    """Whoever merges the branch gets the bytes of a plain run."""
    clone = tmp_path / "clone"
    git = ["git", "clone", "-q", "--branch", finished, str(site.project.folder), str(clone)]
    subprocess.run(git, check=True)
    remote = [
        "dvc",
        "remote",
        "add",
        "--local",
        "--default",
        "hub",
        site.environment["MRMODEL_DVC_REMOTE"],
    ]
    endpoint = site.environment["MRMODEL_S3_ENDPOINT"]
    modify = ["dvc", "remote", "modify", "--local", "hub", "endpointurl", endpoint]
    for command in (remote, modify, ["dvc", "pull", "evaluate", "finetune@moment_detr"]):
        subprocess.run(command, cwd=clone, env=site.environment, check=True, capture_output=True)
    for name in ("reports/metrics.json", "models/finetuned/moment_detr/model.safetensors"):
        assert (clone / name).read_bytes() == reproduced.read(name)


def test_nothing_to_do_is_quick(site: Site, finished: str) -> None:
    before = len(site.flow_runs("evaluate"))
    process = site.start("--rev", finished)
    # CPU time, since the machine of a test may be busy; benchmarks/RESULTS.md has the wall time.
    used_s = 0.0
    while process.poll() is None:
        used_s = max(used_s, sum(cpu_times(process.pid)))
        time.sleep(0.2)
    output = site.finish(process)
    assert "Everything is up to date." in output
    assert output.count("| unchanged |") == 14
    assert len(site.flow_runs("evaluate")) == before
    assert used_s < 25, "the start of Python, Prefect and DVC is 8 of them"


def cpu_times(pid: int) -> tuple[float, float]:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return (0.0, 0.0)
    return (times.user + times.children_user, times.system + times.children_system)


def test_a_parameter_runs_what_depends_on_it(site: Site, finished: str) -> None:
    change = "evaluate.bootstrap_resamples=150"
    output = site.run("--rev", finished, "--set", change)
    ran = [line.split("|")[1].strip() for line in output.splitlines() if "| ran |" in line]
    assert ran == ["evaluate", "report"]
    branch = branch_of(output)
    assert "bootstrap_resamples: 150" in site.project.git("show", f"{branch}:params.yaml")
    before, after = site.lock(finished), site.lock(branch)
    assert [name for name in after if after[name] != before[name]] == ran


@pytest.mark.slow
def test_an_extraction_in_shards_makes_the_same_bytes(site: Site, finished: str) -> None:
    """Two processes, each with a clone and half of the videos; the stage puts them together."""
    spread = ("--set", "orchestrate.extract_shards.count=2")
    changed = ("--set", "features.max_duration_s=9999.0")  # or there would be nothing to extract
    output = site.run("--rev", finished, "--target", "extract", *spread, *changed)
    assert "| extract@tiny.video | ran |" in output
    before, after = site.lock(finished), site.lock(branch_of(output))
    stage = "extract@tiny.video"
    assert after[stage]["outs"] == before[stage]["outs"]
    assert "22 items are done already" in site.logs()
    assert not open_store(site.environment["MRMODEL_HANDOVER"]).keys("pieces")
    assert_no_process(site)


def test_a_wrong_parameter_stops_before_any_work(site: Site, finished: str) -> None:
    output = site.run("--rev", finished, "--set", "evaluate.bootstrap_resample=1", code=2)
    assert "evaluate.bootstrap_resample = 1" in output
    assert "| ran |" not in output


def test_a_failed_stage_is_reported_and_not_repeated(site: Site, finished: str) -> None:
    """A mistake of the input is no crash: it fails once, and what it blocks is named."""
    output = site.run("--rev", finished, "--set", "corpus.source=folder", code=1)
    assert "| corpus | failed |" in output
    assert "own_videos" in output
    assert output.count("| blocked | a stage before it failed |") == 13
    assert len(site.flow_runs("corpus")) == 2, "the first run, and one failure"


@pytest.fixture
def arguments(site: Site, finished: str, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """A change that makes `evaluate` run, another one for each test."""
    number = 300 + sum(map(ord, request.node.name)) % 1000
    change = f"evaluate.bootstrap_resamples={number}"
    return ("--rev", finished, "--target", "evaluate", "--set", change)


def assert_right(site: Site, output: str, attempts: int) -> None:
    """`evaluate` ran, its record is in the lock file, and nothing is left behind."""
    (row,) = [line for line in output.splitlines() if line.startswith("| evaluate |")]
    state, _, _, tries = (cell.strip() for cell in row.split("|")[2:6])
    assert (state, int(tries)) == ("ran", attempts), output
    entry = site.lock(branch_of(output))["evaluate"]
    made = [result for result in site.results() if result.entry == entry]
    assert len(made) == 1
    assert_no_process(site)


@pytest.mark.slow
def test_a_killed_stage_process(site: Site, arguments: tuple[str, ...]) -> None:
    run = site.start(*arguments)
    site.wait_for_stage(EVALUATE).kill()
    output = site.finish(run)
    assert_right(site, output, attempts=2)
    states = [flow_run.state.type.value for flow_run in site.flow_runs("evaluate")[:2]]
    assert states == ["COMPLETED", "CRASHED"]


@pytest.mark.slow
def test_a_killed_flow_process(site: Site, arguments: tuple[str, ...]) -> None:
    run = site.start(*arguments)
    stage = site.wait_for_stage(EVALUATE)
    flow_of(stage).kill()
    wait_until(lambda: not stage.is_running(), 15)
    assert_right(site, site.finish(run), attempts=2)


@pytest.mark.slow
def test_a_lost_worker(site: Site, arguments: tuple[str, ...]) -> None:
    """Worker and flow are gone at once, as when a machine is; only missing heartbeats tell."""
    run = site.start(*arguments)
    stage = site.wait_for_stage(EVALUATE)
    pool = next(name for name, worker in site.workers.items() if worker.pid in ancestors(stage))
    doomed = psutil.Process(site.workers[pool].pid).children()
    for process in [psutil.Process(site.workers[pool].pid), *doomed]:
        process.kill()
    site.workers[pool].wait()
    wait_until(lambda: not stage.is_running(), 15)
    site.start_worker(pool)
    output = site.finish(run)
    assert_right(site, output, attempts=2)
    assert "no heartbeat" in output


@pytest.mark.slow
def test_a_store_that_is_away(site: Site, s3: Service, arguments: tuple[str, ...]) -> None:
    """S3 stops while the stage runs, and is back after 20 s; the results wait to be pushed."""
    run = site.start(*arguments)
    site.wait_for_stage(EVALUATE)
    s3.stop()
    back = threading.Timer(20, s3.start)
    back.start()
    output = site.finish(run)
    back.join()
    assert_right(site, output, attempts=1)


@pytest.mark.slow
def test_a_killed_orchestrator(site: Site, arguments: tuple[str, ...]) -> None:
    """Started again it waits for the stage that still runs, and starts no second one."""
    before = len(site.flow_runs("evaluate"))
    first = site.start(*arguments)
    stage = site.wait_for_stage(EVALUATE)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert stage.is_running(), "the stage is the worker's, it goes on"
    stage.suspend()  # so that it still runs when the second orchestrator looks
    waiting = site.count_waiting("evaluate")
    second = site.start(*arguments)
    site.wait_until(lambda: site.count_waiting("evaluate") > waiting, 120)
    stage.resume()
    assert_right(site, site.finish(second), attempts=1)
    assert len(site.flow_runs("evaluate")) == before + 1

    # And a third time, when all has been pushed: nothing runs at all.
    output = site.run(*arguments)
    assert "| evaluate | restored |" in output
    assert len(site.flow_runs("evaluate")) == before + 1


@pytest.mark.slow
def test_a_search_whose_workers_are_killed(site: Site, finished: str) -> None:
    """One in the middle of a trial, another one with its flow in the middle of a confirmation."""
    run = site.start_flow("tune", "--rev", finished, "--pool", "cpu")
    working(site, "main").kill()
    confirmer = working(site, "main.confirm.")
    flow_run = confirmer.parent()
    assert flow_run is not None
    flow_run.kill()
    wait_until(lambda: not confirmer.is_running(), 15)
    output = site.finish(run)
    assert_no_process(site)

    study = open_study(site, "main")
    confirmation, post_hoc = study.later()
    assert states_of(study) == {"COMPLETE": 4, "FAIL": 1}
    assert states_of(confirmation) == {"COMPLETE": 4, "FAIL": 1}
    assert states_of(post_hoc) == {"COMPLETE": 2}
    ends = site.search_workers("main")
    assert Counter(ends.values())["Crashed"] == 2
    assert set(ends.values()) == {"Crashed", "Completed"}
    owners = {owner_of(trial) for trial in study.trials()}
    assert {owner.label for owner in owners if owner is not None} <= ends.keys()
    assert_right_end(site, output, read_result(study).changes)

    again = site.finish(site.start_flow("tune", "--rev", finished, "--trials", "5"))
    assert states_of(study) == {"COMPLETE": 5, "FAIL": 1}
    assert_right_end(site, again, read_result(study).changes)


@pytest.mark.slow
def test_a_search_that_is_killed_and_interrupted(site: Site, finished: str) -> None:
    """Workers of a killed search are followed by the next one; an interrupted one ends its own."""
    search = ("tune", "--rev", finished, "--study", "left", "--pool", "cpu", "--workers", "1")
    first = site.start_flow(*search)
    worker = working(site, "left")
    worker.suspend()  # so that it still runs when the second search looks
    (name,) = site.search_workers("left")
    first.kill()
    first.communicate()
    second = site.start_flow(*search)
    site.wait_until(lambda: site.said("left: 4 trials") == 2, 120)
    assert site.search_workers("left") == {name: "Running"}
    second.send_signal(signal.SIGINT)
    second.communicate()
    assert not worker.is_running()
    wait_until(lambda: "Cancelled" in site.search_workers("left").values(), 30)
    assert_no_process(site)
    study = open_study(site, "left")
    assert states_of(study)["RUNNING"] == 0

    output = site.finish(site.start_flow(*search))
    assert states_of(study)["COMPLETE"] == 4
    assert states_of(study).keys() == {"COMPLETE", "FAIL"}
    assert_right_end(site, output, read_result(study).changes)


def test_no_secret_is_written_anywhere(site: Site, finished: str) -> None:
    """Keys of S3, PostgreSQL and Prefect are in the environment of all that ran, nowhere else."""
    secrets = [
        site.environment["AWS_SECRET_ACCESS_KEY"],
        site.environment["PREFECT_API_AUTH_STRING"].partition(":")[2],
        str(urlsplit(site.environment["OPTUNA_STORAGE"]).password),
    ]
    wait_until(lambda: not site.processes(), 30)
    texts = [site.logs()]
    temporary = Path(site.environment["TMPDIR"])
    assert (temporary / "runner_storage").is_dir(), "Prefect's files, apart from other users'"
    patterns = ("worker-*/state/**/*", "worker-*.log", "orchestrator/**/*", "prefect/**/*")
    found = [path for pattern in patterns for path in site.folder.glob(pattern)]
    files = [path for path in [*found, *temporary.glob("**/*")] if path.is_file()]
    texts += [path.read_bytes().decode(errors="replace") for path in files]
    texts += [
        site.project.git("log", "--all", "--patch", "--format=%B", "--", "*.lock", "params.yaml")
    ]
    texts += [str(result) for result in site.results()]
    texts += everything_in_prefect(site)
    assert len(texts) > 10
    assert not [text for text in texts if any(secret in text for secret in secrets)]


def everything_in_prefect(site: Site) -> list[str]:
    """Flow runs with their parameters, logs and artifacts, as the server answers them."""
    found = []
    login = tuple(site.environment["PREFECT_API_AUTH_STRING"].split(":"))
    address = site.environment["PREFECT_API_URL"]
    with httpx.Client(base_url=address, auth=login, timeout=60) as client:
        for path in (
            "/flow_runs/filter",
            "/logs/filter",
            "/artifacts/filter",
            "/deployments/filter",
        ):
            offset = 0
            while page := client.post(
                path, json={"limit": 200, "offset": offset}
            ).raise_for_status():
                rows = page.json()
                found.append(page.text)
                offset += 200
                if len(rows) < 200:
                    break
    assert any("run-stage" in text or "evaluate" in text for text in found)
    return found


def ancestors(process: psutil.Process) -> list[int]:
    return [parent.pid for parent in process.parents()]


def flow_of(stage: psutil.Process) -> psutil.Process:
    """The process of the flow run: the one above the guard."""
    for parent in stage.parents():
        if "mrmodel.processes" in parent.cmdline():
            flow = parent.parent()
            assert flow is not None
            return flow
    raise AssertionError(f"no guard above {stage}")
