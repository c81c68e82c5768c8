import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.data.feature_check import verify_store
from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.extraction.extract import extract_videos
from mrmodel.features.extraction.job_runner import (
    ExtractionSettings,
    describe_stream,
    extraction_plan,
)
from mrmodel.features.extraction.partial_results import PartialResults
from mrmodel.features.extraction.shards import extract_shard, merge_shard, read_tar
from mrmodel.features.keys import shard_of
from mrmodel.files import digest_of
from tests.features.encoders import register_all
from tests.video.fixtures import write_audio, write_video

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "tiny.video"

register_all()


class Machine:
    """A folder of its own with copies of the videos, as a clone has them: with other times."""

    def __init__(self, folder, videos):
        self.folder, self.videos = folder, {}
        (folder / "videos").mkdir(parents=True)
        for vid, path in videos.items():
            self.videos[vid] = Path(shutil.copyfile(path, folder / "videos" / path.name))

    def settings(self, name="work", **changes):
        return ExtractionSettings(**{"work_dir": self.folder / name, "workers": 1, **changes})

    def extract(self, encoder=ENCODER, **changes):
        store = self.folder / "store"
        return extract_videos(self.videos, encoder, 2.0, store, self.settings(**changes))

    def shard(self, keys, name="shard", encoder=ENCODER):
        videos = {key: self.videos[key] for key in keys}
        tar = self.folder / f"{name}.tar"
        return tar, extract_shard(videos, encoder, 2.0, tar, self.settings(name))

    def merge(self, tar, keys, encoder=ENCODER):
        settings = self.settings()
        plan = extraction_plan(describe_stream(encoder, "video", 2.0), settings.limits)
        folder = PartialResults(settings.work_dir)
        folder.open(plan)
        return merge_shard(tar, {key: self.videos[key] for key in keys}, plan, folder)

    def store(self):
        return {path.name: path.read_bytes() for path in sorted((self.folder / "store").iterdir())}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos of 1 to 5 clips of 2 s, and one that holds sound only."""
    folder = tmp_path_factory.mktemp("videos")
    lengths = {"a": 20, "b": 25, "c": 30, "d": 20, "long": 100}
    made = {vid: write_video(folder / f"{vid}.mp4", n) for vid, n in lengths.items()}
    return {**made, "sound": write_audio(folder / "sound.mp4")}


@pytest.fixture(scope="module")
def plain(videos, tmp_path_factory):
    """What an ordinary run makes of them."""
    machine = Machine(tmp_path_factory.mktemp("plain"), videos)
    summary = machine.extract(max_failed_share=0.2)
    assert (summary.n_ok, summary.n_failed) == (5, 1)
    return machine


@pytest.fixture(scope="module")
def shard(videos, tmp_path_factory):
    """Shard 0 of 2, which holds a, c and long."""
    machine = Machine(tmp_path_factory.mktemp("shard"), videos)
    return machine.shard(shard_of(videos, 0, 2))[0]


@given(st.sets(st.text(max_size=4), max_size=40), st.integers(1, 9), st.randoms())
def test_every_key_is_in_exactly_one_shard(keys, count, random):
    shuffled = random.sample(sorted(keys), len(keys))
    shards = [shard_of(shuffled, index, count) for index in range(count)]
    assert sorted(key for shard in shards for key in shard) == sorted(keys)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert shards == [shard_of(keys, index, count) for index in range(count)]


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_such_shard(index):
    with pytest.raises(FeatureError, match=f"shard {index} of 3"):
        shard_of("abc", index, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_bytes_are_those_of_a_plain_run(videos, plain, tmp_path, count):
    merging = Machine(tmp_path / "merging", videos)
    for index in reversed(range(count)):
        keys = shard_of(videos, index, count)
        worker = Machine(tmp_path / f"worker{index}", {key: videos[key] for key in keys})
        tar, made = worker.shard(keys)
        assert (made.n_items, "sound" in made.problems) == (len(keys), "sound" in keys)
        laid = merging.merge(tar, keys)
        assert (laid.n_resumed, laid.n_rows) == (0, made.n_rows)
    summary = merging.extract(max_failed_share=0.2)
    assert (summary.n_resumed, summary.n_ok, summary.n_failed) == (6, 5, 1)
    assert summary.rows_per_s == 0  # Nothing was decoded here.
    assert merging.store() == plain.store()
    assert verify_store(merging.folder / "store") == []


def test_equal_shards_are_equal_files(videos, shard, tmp_path):
    assert Machine(tmp_path, videos).shard(["a", "c", "long"])[0].read_bytes() == shard.read_bytes()


def test_what_no_shard_brought_is_made_by_the_merging_run(videos, plain, shard, tmp_path):
    merging = Machine(tmp_path, videos)
    merging.merge(shard, ["a", "c", "long"])
    assert merging.merge(shard, ["a", "c", "long"]).n_resumed == 3
    assert merging.extract(max_failed_share=0.2).n_resumed == 3
    assert merging.store() == plain.store()


@pytest.fixture
def unlucky(tmp_path, monkeypatch):
    """As long as this file is there, the encoder `Unlucky` fails at c and long."""
    mark = tmp_path / "mark"
    mark.touch()
    monkeypatch.setenv("MRMODEL_TEST_MARK", str(mark))
    return mark


def test_failures_travel(videos, tmp_path, unlucky):
    some = {key: videos[key] for key in ("a", "b", "long")}
    tar, made = Machine(tmp_path / "worker", some).shard(some, encoder="test.Unlucky")
    assert (made.n_ok, made.n_failed, made.passing) == (2, 1, ["long"])
    merging = Machine(tmp_path / "merging", some)
    merging.merge(tar, some, "test.Unlucky")
    unlucky.unlink()
    # A second try would succeed now: none is made, and the failure counts.
    with pytest.raises(FeatureError, match=r"1 of 3 videos.*long: MemoryError: not enough"):
        merging.extract("test.Unlucky", max_failed_share=0.3)
    # After the refusal the run does not hold on to what may have passed.
    summary = merging.extract("test.Unlucky", max_failed_share=0.3)
    assert (summary.n_resumed, summary.n_ok) == (2, 3)


def test_a_failure_that_is_allowed_is_stored_as_by_a_plain_run(videos, tmp_path, unlucky):
    some = {key: videos[key] for key in ("a", "long")}
    plain = Machine(tmp_path / "plain", some)
    plain.extract("test.Unlucky", max_failed_share=0.5)
    tar, _ = Machine(tmp_path / "worker", some).shard(some, encoder="test.Unlucky")
    merging = Machine(tmp_path / "merging", some)
    merging.merge(tar, some, "test.Unlucky")
    unlucky.unlink()
    assert merging.extract("test.Unlucky", max_failed_share=0.5).n_resumed == 2
    assert merging.store() == plain.store()


def test_a_shard_tries_again_what_may_pass_and_replaces_the_failure(videos, tmp_path, unlucky):
    some = {key: videos[key] for key in ("a", "long", "sound")}
    worker, merging = Machine(tmp_path / "worker", some), Machine(tmp_path / "merging", some)
    tar, _ = worker.shard(some, encoder="test.Unlucky")
    unlucky.unlink()
    for machine in (worker, merging):
        machine.merge(tar, some, "test.Unlucky")
    # The folder of an earlier attempt, as `merge` made it: one piece and two failures.
    tar, made = worker.shard(some, "work", "test.Unlucky")
    assert (made.n_resumed, made.n_ok, made.n_failed) == (2, 2, 1)
    merging.merge(tar, some, "test.Unlucky")
    summary = merging.extract("test.Unlucky", max_failed_share=0.4)
    assert (summary.n_resumed, summary.n_ok, summary.n_failed) == (3, 2, 1)


SCRIPT = """
import json, sys
from pathlib import Path
from mrmodel.features.extraction.shards import extract_shard
from mrmodel.features.extraction.job_runner import ExtractionSettings

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    videos = {path.stem: path for path in (folder / "videos").iterdir()}
    settings = ExtractionSettings(work_dir=folder / "shard", workers=1)
    extract_shard(videos, sys.argv[2], 2.0, folder / "shard.tar", settings)
"""


def test_a_killed_shard_goes_on(videos, tmp_path):
    many = {}
    for copy in range(40):
        path = tmp_path / f"b{copy:02}.mp4"
        many[path.stem] = Path(shutil.copyfile(videos["b"], path))
    worker = Machine(tmp_path / "worker", many)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(worker.folder), ENCODER]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(list((worker.folder / "shard").glob("??/*.json"))) < 4:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (worker.folder / "shard.tar").exists()
    tar, made = worker.shard(many)
    assert 4 <= made.n_resumed < 40
    undisturbed = Machine(tmp_path / "undisturbed", many).shard(many)[0]
    assert tar.read_bytes() == undisturbed.read_bytes()


def test_a_new_time_of_an_equal_file_changes_nothing(videos, tmp_path):
    """A clone, or DVC's check-out, writes the videos anew; they are read once, not decoded."""
    some = {key: videos[key] for key in ("a", "b", "sound")}
    machine = Machine(tmp_path, some)
    with pytest.raises(FeatureError, match="sound"):
        machine.extract()
    os.utime(machine.videos["a"], ns=(1, 1))
    size = machine.videos["b"].stat().st_size
    machine.videos["b"].write_bytes(bytes(size))  # Equally long, but another file.
    os.utime(machine.videos["b"], ns=(1, 1))
    with pytest.raises(FeatureError, match="2 of 3 videos"):
        machine.extract(max_failed_share=0.5)
    source = {"bytes": machine.videos["a"].stat().st_size, "mtime_ns": 1}
    folder = PartialResults(machine.folder / "work")
    assert folder.find("a", source) is not None
    assert folder.find("b", {"bytes": size, "mtime_ns": 1}) is None


def rewritten(tar, target, change):
    """A copy of a shard whose members `change` has had in its hands: name -> bytes."""
    with tarfile.open(tar) as old:
        members = {m.name: old.extractfile(m).read() for m in old.getmembers()}
    change(members)
    with tarfile.open(target, "w") as new:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return target


def edit_manifest(edit, *, honest):
    """A change of the manifest, with its digest brought up to date or not."""

    def change(members):
        body = json.loads(members["manifest.json"])
        edit(body)
        if honest:
            del body["digest"]
            body = {"digest": digest_of(body), **body}
        members["manifest.json"] = json.dumps(body).encode()

    return change


def first_rows(members):
    return next(name for name in members if name.endswith(".npy"))


def flip_a_bit(members):
    name = first_rows(members)
    content = bytearray(members[name])
    content[-1] ^= 1
    members[name] = bytes(content)


DAMAGES = {
    "rows": (flip_a_bit, "damaged: the rows of 'a|c|long' have changed"),
    "no rows": (lambda m: m.pop(first_rows(m)), r"incomplete: there is no rows/\w+\.npy"),
    "no manifest": (lambda m: m.pop("manifest.json"), "incomplete: there is no manifest.json"),
    "no JSON": (lambda m: m.update({"manifest.json": b"{"}), "its manifest cannot be read"),
    "a number": (lambda m: m.update({"manifest.json": b"5"}), "its manifest cannot be read"),
    "status": (
        edit_manifest(lambda b: b["notes"][0]["entries"][0].update(status="fine"), honest=False),
        "damaged: its manifest has changed",
    ),
    "unknown status": (
        edit_manifest(lambda b: b["notes"][0]["entries"][0].update(status="fine"), honest=True),
        "its manifest cannot be read: Input should be 'ok', 'partial' or 'failed'",
    ),
    "one video less": (
        edit_manifest(lambda b: b["notes"].pop(1), honest=True),
        r"lacks the video 'c' \(1 such\)",
    ),
    "newer version": (
        edit_manifest(lambda b: b.update(version=2), honest=True),
        "its manifest cannot be read: Input should be 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_refused(videos, shard, tmp_path, damage):
    change, words = DAMAGES[damage]
    bad = rewritten(shard, tmp_path / "bad.tar", change)
    merging = Machine(tmp_path / "merging", videos)
    with pytest.raises(FeatureError, match=f"bad.tar: .*({words})"):
        merging.merge(bad, ["a", "c", "long"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_off_shards_are_refused(videos, shard, tmp_path, share):
    bad = tmp_path / "bad.tar"
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size  # What follows is padding.
    bad.write_bytes(shard.read_bytes()[: int(end * share)])
    merging = Machine(tmp_path / "merging", videos)
    with pytest.raises(FeatureError, match=r"bad.tar: (damaged|incomplete|not a shard)"):
        merging.merge(bad, ["a", "c", "long"])
    with pytest.raises(FeatureError, match=r"none.tar: not a shard.*No such file"):
        merging.merge(tmp_path / "none.tar", ["a", "c", "long"])


def test_foreign_shards_are_refused(videos, shard, tmp_path):
    merging = Machine(tmp_path / "merging", videos)
    with pytest.raises(FeatureError, match="holds also the video 'long'"):
        merging.merge(shard, ["a", "c"])
    with pytest.raises(FeatureMismatch, match=r"info.stream is 'tiny.video', expected"):
        merging.merge(shard, ["a", "c", "long"], "test.FrameNumbers")
    expected = extraction_plan(describe_stream(ENCODER, "video", 2.0), merging.settings().limits)
    expected["limits"]["max_duration_s"] = 5.0
    refused = pytest.raises(FeatureMismatch, match=r"limits\.max_duration_s is 14400\.0")
    with refused, read_tar(shard, expected):
        pass
    size = merging.videos["c"].stat().st_size
    merging.videos["c"].write_bytes(bytes(size))
    with pytest.raises(FeatureError, match=f"'c' was made of a file with SHA-256 {'.' * 64}, but"):
        merging.merge(shard, ["a", "c", "long"])
    merging.videos["c"].write_bytes(b"short")
    with pytest.raises(FeatureError, match=f"'c' was made of {size} bytes, but .*c.mp4 has 5"):
        merging.merge(shard, ["a", "c", "long"])
    assert not list((merging.folder / "work").glob("??"))  # Not even `a` was laid.
    merging.videos["c"].unlink()
    with pytest.raises(FeatureError, match=r"c\.mp4 is not checked out"):
        merging.merge(shard, ["a", "c", "long"])
    with pytest.raises(FeatureError, match=r"c\.mp4 is not checked out"):
        merging.shard(["a", "c"])
    merging.videos["c"].mkdir()  # A path that exists and gives no bytes.
    with pytest.raises(FeatureError, match=r"c.mp4: cannot be read: .*Is a directory"):
        merging.shard(["a", "c"])


def test_rows_of_other_code_are_replaced(videos, shard, tmp_path):
    """Equal facts, other rows: what is in the work folder came from code before a repair."""
    merging = Machine(tmp_path, videos)
    merging.merge(shard, ["a", "c", "long"])
    folder = PartialResults(tmp_path / "work")
    right = folder.rows_path("c").read_bytes()
    folder.rows_path("c").write_bytes(right[:-1] + b"?")
    assert merging.merge(shard, ["a", "c", "long"]).n_resumed == 2
    assert folder.rows_path("c").read_bytes() == right
