"""What the shards of an extraction are about, asked of a clone without videos."""

import os

import pytest
import yaml

from mrmodel.config.schema import ShardSettings
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import StageRequest
from mrmodel.orchestrate.sharding import plan_of, processes_per_shard, shard_folder, sharded_stream
from tests.project import Project

STAGE, STREAM = "extract@tiny.video", "tiny.video"
VIDEOS = "data/miniature/videos"
CORES = os.cpu_count() or 1


@pytest.fixture
def here(
    recorded: Project, environment: RuntimeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> RuntimeEnvironment:
    """The runtime environment of a test, as its variables say."""
    monkeypatch.setenv("MRMODEL_GIT_URL", environment.git)
    monkeypatch.setenv("MRMODEL_HANDOVER", environment.result_store)
    for name in ("MRMODEL_DVC_REMOTE", "MRMODEL_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    return RuntimeEnvironment.from_environment()


def on_branch(project: Project, workers: int) -> str:
    """A branch of its own on which `features.workers` is this."""
    branch = f"workers-{workers}"
    text = project.git("show", "HEAD:params.yaml")
    params = yaml.safe_load(text)
    params["features"]["workers"] = workers
    project.git("checkout", "-q", "-B", branch)
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params))
    project.git("commit", "-q", "--allow-empty", "-am", branch)
    project.git("checkout", "-q", "-")
    return branch


def test_a_stream_is_spread_by_what_the_lock_file_says(
    recorded: Project, here: RuntimeEnvironment
) -> None:
    settings = ShardSettings(count=2, runner="processes", address=None)
    order = StageRequest(STAGE, on_branch(recorded, workers=64))
    sharded = sharded_stream(order, settings)
    names = sorted(path.name for path in (recorded.folder / VIDEOS).iterdir())
    assert (sharded.stream, sharded.count) == (STREAM, 2)
    assert sorted(sharded.files) == names
    with fresh_clone(here, order.rev, {}) as folder:
        assert sharded.plan == plan_of(folder, STREAM)
        assert sharded.content == StageGraph(folder, None).contents(STAGE)
    assert sharded.content[VIDEOS].endswith(".dir")
    # `features.workers` of the revision, shared by the shards that this machine makes at once.
    assert sharded.workers == 64 // min(2, CORES)
    shards = sharded.orders()
    assert [shard.workers for shard in shards] == [sharded.workers] * 2
    assert sorted(name for shard in shards for name in shard.files) == names
    for shard in shards:
        with shard_folder(order, shard) as folder:
            pulled = sorted(path.name for path in (folder / VIDEOS).iterdir())
            assert pulled == sorted(shard.files)
    assert list(here.clones.iterdir()) == []


def test_a_folder_with_the_videos_is_used_as_it_is(
    recorded: Project, here: RuntimeEnvironment
) -> None:
    settings = ShardSettings(count=3, runner="dask", address="tcp://10.0.0.1:8786")
    sharded = sharded_stream(StageRequest(STAGE, on_branch(recorded, workers=5)), settings)
    assert (sharded.count, sharded.workers) == (3, 5)
    with shard_folder(recorded.folder, sharded.orders()[0]) as folder:
        assert folder == recorded.folder
    assert recorded.folder.is_dir()


@pytest.mark.parametrize(
    ("workers", "count", "runner", "address", "each"),
    [
        (64, 1, "processes", None, 64),
        (64, 2, "processes", None, 64 // min(2, CORES)),
        (64, 2, "dask", None, 64 // min(2, CORES)),
        (1, 2, "processes", None, 1),
        (0, 1, "ray", None, CORES),
        (0, 1000, "processes", None, 1),
        (3, 2, "dask", "tcp://10.0.0.1:8786", 3),
        (0, 2, "ray", "ray://10.0.0.1:10001", 0),
    ],
)
def test_shards_on_one_machine_share_its_processes(
    workers: int, count: int, runner: str, address: str | None, each: int
) -> None:
    settings = ShardSettings.model_validate({"count": count, "runner": runner, "address": address})
    assert processes_per_shard(settings, workers) == each
