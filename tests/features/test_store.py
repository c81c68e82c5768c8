import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.index import IndexEntry
from mrmodel.features.manifest import (
    StreamInfo,
    read_manifest,
    require_fingerprint,
    stream_fingerprint,
)
from mrmodel.features.store import FeatureStore, MemoryStore, to_stored
from mrmodel.features.writer import FeatureWriter

INFO = StreamInfo(
    stream="test.video",
    dim=3,
    modality="video",
    keyed_by="vid",
    clip_len_s=2.0,
    fingerprint={"encoder": "test", "clip_len_s": 2.0},
)


def rows_of(number, count):
    return np.full((count, 3), number, np.float16) + np.arange(count, dtype=np.float16)[:, None]


def write(folder, counts, shard_bytes=1 << 20):
    with FeatureWriter(folder, INFO, shard_bytes) as writer:
        for number, (key, count) in enumerate(sorted(counts.items())):
            writer.add(IndexEntry(key, count), rows_of(100 * number, count))
    return FeatureStore(folder)


def test_round_trip_over_several_shards(tmp_path):
    counts = {f"v{number:02d}": 1 + number % 7 for number in range(30)}
    store = write(tmp_path, counts, shard_bytes=128 + 12 * 6)
    assert len(store.manifest.shards) > 5
    assert all((tmp_path / s.file).stat().st_size <= 128 + 12 * 7 for s in store.manifest.shards)
    block, mask = store.gather(["v29", "v00", "v06"])
    assert block.shape == (3, 7, 3)
    assert block.dtype == np.float16
    assert mask.sum(axis=1).tolist() == [2, 1, 7]
    np.testing.assert_array_equal(block[0, :2], rows_of(2900, 2))
    np.testing.assert_array_equal(block[2], rows_of(600, 7))
    assert not block[~mask].any()


def test_shards_are_plain_npy_files(tmp_path):
    store = write(tmp_path, {"a": 2, "b": 3})
    stored = np.load(tmp_path / store.manifest.shards[0].file)
    np.testing.assert_array_equal(stored, np.concatenate([rows_of(0, 2), rows_of(100, 3)]))


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, {"a": 2, "b": 3, "c": 1}, shard_bytes=160)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "index.parquet" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_max_rows_cuts(tmp_path):
    block, mask = write(tmp_path, {"a": 5, "b": 2}).gather(["a", "b"], max_rows=3)
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    np.testing.assert_array_equal(block[0], rows_of(0, 5)[:3])


def test_segments_are_slices_of_their_video(tmp_path):
    store = write(tmp_path, {"a": 5, "a_2.0_4.0": 1})
    block, mask = store.gather(["a_4.0_8.0", "a_2.0_4.0", "a_6.0_30.0"])
    np.testing.assert_array_equal(block[0], rows_of(0, 5)[2:4])
    np.testing.assert_array_equal(block[1, :1], rows_of(100, 1))  # a key of its own wins
    np.testing.assert_array_equal(block[2], rows_of(0, 5)[3:5])
    assert mask.sum(axis=1).tolist() == [2, 1, 2]
    assert "a_4.0_8.0" in store
    for vid, words in {
        "a_3.0_7.0": "starts inside a clip",
        "a_10.0_14.0": "holds no clip",
        "a_0.0_1.0": "holds no clip",
        "x_0.0_4.0": "no features for 'x'",
    }.items():
        assert vid not in store
        with pytest.raises(FeatureError, match=words):
            store.resolve([vid])


def test_missing_and_failed_keys_are_named(tmp_path):
    with FeatureWriter(tmp_path, INFO) as writer:
        failed = IndexEntry("bad", 0, status="failed", reason="no_video_stream")
        writer.add(failed, np.zeros((0, 3), np.float16))
        writer.add(IndexEntry("good", 1), rows_of(1, 1))
    store = FeatureStore(tmp_path)
    assert list(store) == ["good"]
    assert store.has_failed("bad")
    assert store.has_failed("bad_0.0_4.0")
    with pytest.raises(FeatureError, match=rf"{tmp_path}.*'bad' failed: no_video_stream"):
        store.gather(["good", "bad"])
    with pytest.raises(FeatureError, match=rf"{tmp_path}: no features for 'gone'"):
        store.gather(["gone"])


def test_writer_refuses_disorder_and_wrong_shapes(tmp_path):
    with FeatureWriter(tmp_path, INFO) as writer:
        writer.add(IndexEntry("b", 1), rows_of(1, 1))
        with pytest.raises(FeatureError, match="not in order"):
            writer.add(IndexEntry("a", 1), rows_of(1, 1))
        with pytest.raises(FeatureError, match="not float16"):
            writer.add(IndexEntry("c", 2), rows_of(1, 1))
        with pytest.raises(FeatureError, match="not float16"):
            writer.add(IndexEntry("c", 1), rows_of(1, 1).astype(np.float32))


def write_and_stop(folder):
    with FeatureWriter(folder, INFO) as writer:
        writer.add(IndexEntry("b", 1), rows_of(1, 1))
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_no_store(tmp_path):
    write(tmp_path, {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(tmp_path)
    with pytest.raises(FeatureError, match="did not finish"):
        FeatureStore(tmp_path)
    assert not list(tmp_path.glob("shard-*"))


def test_fingerprints(tmp_path):
    write(tmp_path, {"a": 1})
    found = FeatureStore(tmp_path).info.fingerprint
    require_fingerprint("it", found, {"clip_len_s": 2.0, "encoder": "test"})
    with pytest.raises(FeatureMismatch, match=r"clip_len_s is 2\.0, expected 1\.0"):
        require_fingerprint("it", found, {"clip_len_s": 1.0, "encoder": "test"})
    assert stream_fingerprint({"a": 1}, 2) == stream_fingerprint({"a": 1}, 2.0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema_version"),
        ('"dim": 3', '"dim": "3"', "info.dim"),
        ('"dim": 3', '"dim": 3, "colour": 1', "colour"),
        ("{", "", "file"),
    ],
)
def test_broken_manifests_are_explained(tmp_path, old, new, words):
    write(tmp_path, {"a": 1})
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(FeatureError, match=words):
        read_manifest(tmp_path)


def test_a_shard_of_another_shape_is_refused(tmp_path):
    store = write(tmp_path, {"a": 2})
    np.save(tmp_path / store.manifest.shards[0].file, np.zeros((2, 4), np.float16))
    with pytest.raises(FeatureError, match=r"expected float16 \(2, 3\)"):
        store.gather(["a"])


def test_memory_store_equals_the_stored_one(tmp_path):
    rng = np.random.default_rng(3)
    encoded = {"a": rng.standard_normal((4, 3), np.float32), "b": rng.random((2, 3), np.float32)}
    with FeatureWriter(tmp_path, INFO) as writer:
        for key, rows in encoded.items():
            writer.add(IndexEntry(key, len(rows)), to_stored(rows))
    keys = ["b", "a_2.0_6.0", "a"]
    stored = FeatureStore(tmp_path).gather(keys)
    held = MemoryStore("memory", encoded, clip_len_s=2.0).gather(keys)
    np.testing.assert_array_equal(stored[0], held[0])
    np.testing.assert_array_equal(stored[1], held[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4])
def test_values_that_cannot_be_stored_are_refused(bad):
    rows = np.zeros((3, 2), np.float32)
    rows[1, 0] = bad
    with pytest.raises(FeatureError, match="row 1"):
        to_stored(rows)


def test_a_store_travels_to_another_process(tmp_path):
    import pickle

    store = write(tmp_path, {"a": 2})
    store.gather(["a"])
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.gather(["a"])[0], store.gather(["a"])[0])


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shard_rows=st.integers(1, 20),
    data=st.data(),
)
def test_any_store_gives_back_its_rows(tmp_path_factory, counts, shard_rows, data):
    folder = tmp_path_factory.mktemp("store")
    lengths = {f"k{number:02d}": count for number, count in enumerate(counts)}
    store = write(folder, lengths, shard_bytes=128 + 6 * shard_rows)
    assert all(s.rows <= max(shard_rows, max(counts)) for s in store.manifest.shards)
    picked = data.draw(st.lists(st.sampled_from(range(len(counts))), min_size=1, max_size=8))
    block, mask = store.gather(store.resolve(list(lengths)).take(np.array(picked)))
    assert block.shape[1] == max(counts[number] for number in picked)
    for item, valid, number in zip(block, mask, picked, strict=True):
        np.testing.assert_array_equal(item[valid], rows_of(100 * number, counts[number]))
        assert not item[~valid].any()
