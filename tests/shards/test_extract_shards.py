"""Shards on real engines, with real processes that are killed."""

import json
import shutil
import signal
import threading
from dataclasses import replace
from importlib.metadata import version

import psutil
import pytest

from flows.shards import extract_shards
from mrmodel.config.schema import ShardSettings
from mrmodel.orchestrate.result_store import ShardedStream, ShardFailed
from mrmodel.orchestrate.sharding import gather_shards, plan_of, shard_key
from mrmodel.storage import open_store
from tests.shards.processes import pieces_in, repro, shard_steps, wait_until

STREAM = "tiny.video"


@pytest.fixture(scope="module")
def sharded(clone):
    files = [path.name for path in (clone.folder / "data" / "miniature" / "videos").iterdir()]
    content = {"data/miniature/videos": "3f.dir", "mrmodel/encoders": "5a.dir"}
    return ShardedStream(STREAM, plan_of(clone.folder, STREAM), content, tuple(files), 2, workers=1)


@pytest.fixture(scope="module")
def result_store(prefect, clone, sharded, tmp_path_factory):
    """A store with the shards that the process pool has made."""
    folder = tmp_path_factory.mktemp("handover")
    run_flow(sharded, clone, folder)
    return folder


def run_flow(sharded, clone, folder, runner="processes", attempts=2):
    settings = ShardSettings(count=sharded.count, runner=runner, address=None)
    return extract_shards(sharded, clone.folder, str(folder), settings, attempts)


def tars_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("pieces/*/*.tar"))}


def test_the_stage_only_puts_together_what_the_shards_made(clone, sharded, result_store):
    # Other files of tests may have gathered shards into this clone.
    shutil.rmtree(clone.folder / ".mrmodel" / "resume", ignore_errors=True)
    said, files, lock = repro(clone, STREAM)
    assert "items are done already" not in said
    gather_shards(sharded, clone.folder, open_store(str(result_store)))
    said, merged, merged_lock = repro(clone, STREAM)
    assert "13 items are done already" in said
    assert "sound: no_video_stream" in said
    assert merged == files
    assert merged_lock == lock


@pytest.mark.services
@pytest.mark.parametrize("runner", ["dask", pytest.param("ray", marks=pytest.mark.slow)])
def test_other_engines_make_the_same_shards(clone, sharded, result_store, tmp_path, runner):
    reports = run_flow(sharded, clone, tmp_path, runner)
    assert [report.summary.n_items for report in reports] == [7, 6]
    assert tars_in(tmp_path) == tars_in(result_store)
    assert len(tars_in(tmp_path)) == 2


def test_a_shard_in_the_store_is_not_made_again(clone, sharded, result_store, tmp_path):
    shutil.copytree(result_store, tmp_path, dirs_exist_ok=True)
    before = run_flow(sharded, clone, tmp_path)
    store = open_store(str(tmp_path))
    lost, kept = (shard_key(sharded.digest, index, 2) for index in range(2))
    store.delete(lost)
    untouched = (tmp_path / kept).stat().st_mtime_ns
    after = run_flow(sharded, clone, tmp_path)
    assert after[1] == before[1]
    assert after[0].summary.wall_s != before[0].summary.wall_s
    assert (tmp_path / kept).stat().st_mtime_ns == untouched
    assert tars_in(tmp_path) == tars_in(result_store)


def test_a_pool_whose_process_was_killed_is_replaced(
    prefect, clone, sharded, result_store, tmp_path
):
    killed = []

    def kill():
        step = wait_until(shard_steps, "no shard began")[0]
        wait_until(lambda: pieces_in(clone), "no piece was made")
        pool = step.parent()
        killed.extend([pool, *pool.children(recursive=True)])
        pool.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    reports = run_flow(replace(sharded, count=1), clone, tmp_path)
    killer.join()
    gone, alive = psutil.wait_procs(killed, timeout=5)
    assert len(gone) >= 3
    assert alive == []  # The step died with the pool's process, and its workers with the step.
    assert reports[0].summary.n_resumed >= 1
    assert reports[0].summary.n_items == 13


def test_a_killed_step_is_tried_again_by_the_task(prefect, clone, sharded, tmp_path):
    thread = threading.Thread(
        target=lambda: wait_until(shard_steps, "no shard began")[0].send_signal(signal.SIGKILL)
    )
    thread.start()
    reports = run_flow(replace(sharded, count=1), clone, tmp_path)
    thread.join()
    assert reports[0].summary.n_ok == 12


def test_errors_end_the_flow_with_their_reason(prefect, clone, sharded, tmp_path):
    plan = json.loads(json.dumps(sharded.plan))
    plan["info"]["fingerprint"]["libraries"]["av"] = 1
    with pytest.raises(ShardFailed) as caught:
        run_flow(replace(sharded, plan=plan, count=1), clone, tmp_path)
    assert str(caught.value) == (
        "shard 0 of 1 of tiny.video: make failed\n  error: tiny.video on this machine: "
        f"made in another way: info.fingerprint.libraries.av is {version('av')[:2]}, expected 1"
    )
    assert tars_in(tmp_path) == {}
