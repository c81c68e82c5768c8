"""A worker's task, and the merging, without Prefect: steps in a real clone, on real stores."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from mrmodel.errors import ConfigError
from mrmodel.features.extraction.partial_results import Failure, PartialResults
from mrmodel.features.extraction.shards import read_tar, write_tar
from mrmodel.orchestrate.result_store import ShardedStream, ShardFailed, ShardInterrupted
from mrmodel.orchestrate.sharding import (
    ShardRounds,
    find_report,
    forget_shards,
    gather_shards,
    make_shard,
    plan_of,
    shard_key,
    shards_markdown,
)
from mrmodel.stages.shards import step
from mrmodel.storage import open_store
from tests.shards.processes import pieces_in, repro, shard_steps, wait_until

ROOT = Path(__file__).resolve().parents[2]
STREAM = "tiny.video"


@pytest.fixture(scope="module")
def sharded(clone):
    files = [path.name for path in (clone.folder / "data" / "miniature" / "videos").iterdir()]
    content = {"data/miniature/videos": "3f.dir"}
    return ShardedStream(STREAM, plan_of(clone.folder, STREAM), content, tuple(files), count=1)


@pytest.fixture(scope="module")
def made(clone, sharded, tmp_path_factory):
    """A store that holds the one shard of all videos."""
    folder = tmp_path_factory.mktemp("made")
    report = make_shard(sharded.orders()[0], clone.folder, open_store(str(folder)))
    assert (report.summary.n_ok, report.summary.n_failed) == (12, 1)
    assert not list(clone.folder.glob(".mrmodel/resume/shard-*"))
    return folder


@pytest.fixture
def store(made, tmp_path):
    """A copy of it to spoil."""
    return open_store(str(shutil.copytree(made, tmp_path / "store")))


def only_tar(store):
    return next(Path(store.url.removeprefix("file://")).glob("pieces/*/*.tar"))


def test_the_stage_puts_together_what_the_shard_made(clone, sharded, made):
    """The bytes and the lock file are those of a stage that encodes; two shards: on an engine."""
    said, files, lock = repro(clone, STREAM)
    assert "items are done already" not in said
    gather_shards(sharded, clone.folder, open_store(str(made)))
    said, merged, merged_lock = repro(clone, STREAM)
    assert "13 items are done already" in said
    assert (merged, merged_lock) == (files, lock)


SCRIPT = """
import pickle, sys
from pathlib import Path
from mrmodel.orchestrate.sharding import make_shard
from mrmodel.storage import open_store

order, clone, store = pickle.loads(bytes.fromhex(sys.argv[1]))
make_shard(order, clone, open_store(store))
"""


def test_a_killed_worker_leaves_no_process_and_its_pieces(clone, sharded, made, tmp_path):
    store = open_store(str(tmp_path))
    order = sharded.orders()[0]
    told = pickle.dumps((order, clone.folder, str(tmp_path))).hex()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen([sys.executable, "-c", SCRIPT, told], env=environment)
    wait_until(lambda: len(pieces_in(clone)) >= 2, "no piece was made")
    family = psutil.Process(worker.pid).children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert len(family) >= 2
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert find_report(order, store) is None
    report = make_shard(order, clone.folder, store)
    assert report.summary.n_resumed >= 2
    assert only_tar(store).read_bytes() == only_tar(open_store(str(made))).read_bytes()


def test_a_killed_step_may_be_tried_again(clone, sharded, tmp_path):
    def kill():
        wait_until(shard_steps, "no shard began")[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ShardInterrupted, match=r"shard 0 of 1 of tiny.video: .*\(signal 9\)"):
        make_shard(sharded.orders()[0], clone.folder, open_store(str(tmp_path)))
    killer.join()


def test_two_attempts_at_one_shard_make_it_once(clone, sharded, tmp_path):
    store, reports = open_store(str(tmp_path)), []
    order = sharded.orders()[0]

    def attempt():
        reports.append(make_shard(order, clone.folder, store))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[0] == reports[1] == find_report(order, store)


def test_a_failure_that_may_have_passed_is_all_that_is_tried_again(clone, sharded, made, store):
    """The shard in the store has failed at v03, say because its machine was out of memory."""
    order, tar = sharded.orders()[0], only_tar(store)
    pieces = PartialResults(tar.parent / "pieces")
    with read_tar(tar, sharded.plan) as shard:
        for note in shard.notes:
            if note.failure is None:
                pieces.save(note.name, shard.load(note), note.source, note.sha256)
        notes = [
            replace(note, entries=(), failure=Failure("MemoryError: not enough", lasting=False))
            if note.name == "v03"
            else note
            for note in shard.notes
        ]
    write_tar(tar, sharded.plan, notes, pieces)
    key = shard_key(order.digest, 0, 1).replace(".tar", ".json")
    report = json.loads(store.get(key).content)
    report["summary"]["passing"] = ["v03"]
    store.put(key, json.dumps(report).encode())
    assert [o.index for o in ShardRounds(sharded, store, 1).ready()] == [0]
    again = make_shard(order, clone.folder, store)
    # The sound file is a lasting failure and is resumed too.
    assert (again.summary.n_resumed, again.summary.n_ok, again.summary.passing) == (12, 12, [])
    assert tar.read_bytes() == only_tar(open_store(str(made))).read_bytes()
    # A damaged tar gives nothing, and is replaced.
    store.put(key, json.dumps(report).encode())
    tar.write_bytes(b"damaged")
    assert make_shard(order, clone.folder, store).summary.n_resumed == 0
    assert tar.read_bytes() == only_tar(open_store(str(made))).read_bytes()


def test_gathering_refuses(clone, sharded, store):
    tar = only_tar(store)
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    store.put(shard_key(sharded.digest, 0, 1), bytes(content))
    with pytest.raises(ShardFailed) as caught:
        gather_shards(sharded, clone.folder, store)
    said = str(caught.value)
    assert "0-of-1.tar: damaged: its manifest" in said
    assert f"from {store.url}/pieces/{sharded.digest}/: delete" in said
    store.delete(shard_key(sharded.digest, 0, 1))
    with pytest.raises(ShardInterrupted, match=r"0-of-1\.tar"):
        gather_shards(sharded, clone.folder, store)
    assert find_report(sharded.orders()[0], store) is None  # Its report alone means nothing.


def test_a_report_of_another_release_is_none(sharded, store):
    order = sharded.orders()[0]
    key = shard_key(order.digest, 0, 1).replace(".tar", ".json")
    assert find_report(order, store) is not None
    for content in (b"{", b"{}", b'{"summary": {}}', b"[]"):
        store.put(key, content)
        assert find_report(order, store) is None


def test_other_content_or_counts_are_other_shards(sharded, store):
    order = sharded.orders()[0]
    assert find_report(order, store) is not None
    changed = replace(sharded, content={"data/miniature/videos": "4f.dir"})
    assert find_report(changed.orders()[0], store) is None
    assert find_report(replace(sharded, count=2).orders()[0], store) is None
    assert replace(sharded, files=sharded.files[::-1]).orders() == sharded.orders()
    forget_shards(changed, store)
    assert find_report(order, store) is not None
    forget_shards(sharded, store)
    assert store.keys() == []


def test_an_encoder_that_the_clone_does_not_know(clone):
    with pytest.raises(ShardFailed, match=r"plan failed\s+error: unknown encoder 'tiny.vido'"):
        plan_of(clone.folder, "tiny.vido")


def test_steps_have_names():
    with pytest.raises(ConfigError, match="--step = 'made': must be plan, make or lay"):
        step(None, None, {"stream": STREAM, "step": "made", "folder": "."})


def test_shards_travel_through_s3(clone, sharded, s3, tmp_path, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://mrmodel/shards-test")
    report = make_shard(sharded.orders()[0], clone.folder, store)
    assert make_shard(sharded.orders()[0], clone.folder, store) == report
    gather_shards(sharded, clone.folder, store)
    assert len(pieces_in(clone, "extract-miniature-*")) == 13


class TestRounds:
    """Which shards are made next, by what became of those before."""

    @pytest.fixture
    def three(self, sharded, tmp_path):
        return replace(sharded, count=3), open_store(str(tmp_path))

    @pytest.fixture
    def report(self, sharded, made):
        return find_report(sharded.orders()[0], open_store(str(made)))

    def test_until_all_are_made(self, three, report):
        rounds = ShardRounds(*three, attempts=2)
        first = rounds.ready()
        assert [order.index for order in first] == [0, 1, 2]
        rounds.made(first[1], replace(report, index=1))
        rounds.broke(first[0], RuntimeError("a process died"))
        rounds.broke(first[2], ShardInterrupted("killed"))
        second = rounds.ready()
        assert [order.index for order in second] == [0, 2]
        for order in second:
            rounds.made(order, replace(report, index=order.index))
        assert rounds.ready() == []
        assert sorted(rounds.reports) == [0, 1, 2]

    def test_until_no_attempt_is_left(self, three, report):
        rounds = ShardRounds(*three, attempts=1)
        first = rounds.ready()
        rounds.made(first[0], report)
        rounds.broke(first[1], RuntimeError("a process died"))
        rounds.broke(first[2], ShardInterrupted("killed"))
        words = "^shard 1 of 3 of tiny.video: RuntimeError: a process died\nkilled$"
        with pytest.raises(ShardInterrupted, match=words):
            rounds.ready()

    def test_until_one_has_failed_for_good(self, three):
        rounds = ShardRounds(*three, attempts=5)
        rounds.broke(rounds.ready()[1], ShardFailed("no weights"))
        with pytest.raises(ShardFailed, match=r"^no weights$"):
            rounds.ready()


def test_the_table_of_shards(sharded, made):
    report = find_report(sharded.orders()[0], open_store(str(made)))
    report = replace(report, worker="host-a", summary=replace(report.summary, wall_s=1.25))
    text = shards_markdown([report])
    assert "| 0 | host-a | 13 | 12 | 0 | 1 | 0 | 24 | 1.2 |" in text
    assert "* `sound`: no_video_stream: streams in the file: audio" in text
    many = {f"v{number:03}": "truncated" for number in range(130)}
    shown = shards_markdown([replace(report, summary=replace(report.summary, problems=many))])
    assert shown.endswith("* `v099`: truncated\n* and 30 more\n")
    assert asdict(report)["summary"]["n_rows"] == 24
