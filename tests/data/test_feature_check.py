import json

import numpy as np
import pytest
from click.testing import CliRunner

from mrmodel.cli.features import group
from mrmodel.data.feature_check import verify_store
from mrmodel.features.index import IndexEntry, IndexRow, read_index, write_index
from mrmodel.features.keys import text_key
from mrmodel.features.writer import FeatureWriter
from mrmodel.files import sha256_of
from tests.features.test_store import INFO, rows_of


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    with FeatureWriter(folder, INFO, shard_bytes=128 + 5 * 6) as writer:
        for number, key in enumerate("abcd"):
            writer.add(IndexEntry(key, 2), rows_of(number, 2))
    return folder


def shift(store, key, **changes):
    """Rewrite the index with another place, or another entry, for one key."""
    rows = []
    for row in read_index(store):
        place = {"shard": row.shard, "row_offset": row.row_offset}
        place |= changes if row.entry.key == key else {}
        rows.append(IndexRow(place.pop("entry", row.entry), **place))
    write_index(store, rows)


def rewrite_shard(store, number, values):
    """Another content with a manifest that believes it."""
    path = store / f"shard-{number:05d}.npy"
    np.save(path, values)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["shards"][number]["sha256"] = sha256_of(path)
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_store(store):
    assert verify_store(store) == []


def test_changed_bytes(store):
    path = store / "shard-00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert [f.split(" differs")[0] for f in verify_store(store)] == ["shard-00001.npy: SHA-256"]


def test_missing_files(store):
    (store / "shard-00000.npy").unlink()
    assert verify_store(store) == ["shard-00000.npy: is missing"]
    (store / "index.parquet").write_bytes(b"PAR1")
    assert "not a feature index" in verify_store(store)[0]
    (store / "index.parquet").unlink()
    assert "no index.parquet" in verify_store(store)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_offset": 1}, ["'b' overlaps the rows before 2", "rows 3 to 3 belong to no key"]),
        ({"row_offset": 3}, ["rows 2 to 2 belong to no key", "goes to row 5, the shard has 4"]),
        ({"shard": 7}, ["'b' lies in shard 7", "rows 2 to 3 belong to no key"]),
        ({"entry": IndexEntry("a", 2)}, ["key 'a' occurs twice"]),
        ({"entry": IndexEntry("e", 2)}, ["key 'c' after 'e': not in order"]),
        ({"entry": IndexEntry("b", 2, status="failed")}, ["'b' is failed with 2 rows"]),
        ({"entry": IndexEntry("b", 2, n_interpolated=3)}, ["3 of 2 interpolated"]),
    ],
)
def test_broken_index(store, changes, words):
    shift(store, "b", **changes)
    findings = verify_store(store)
    assert len(findings) == len(words)
    for finding, expected in zip(findings, words, strict=True):
        assert expected in finding


def test_values(store):
    values = np.ones((4, 3), np.float16)
    values[3, 1] = np.nan
    rewrite_shard(store, 0, values)
    rewrite_shard(store, 1, np.ones((4, 2), np.float16))
    assert verify_store(store) == [
        "shard-00000.npy: row 3 (key 'b') holds NaN or infinity",
        "shard-00001.npy: is float16 (4, 2), expected float16 (4, 3)",
    ]


def annotate(path, vids):
    rows = [
        {"qid": qid, "query": f"q{qid}", "vid": vid, "duration": 4.0}
        for qid, vid in enumerate(vids)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_coverage_by_video_and_by_text(store, tmp_path):
    annotations = annotate(tmp_path / "rows.jsonl", ["a", "x", "b_0.0_2.0", "x", "c_3.0_4.0"])
    findings = verify_store(store, annotations)
    assert [finding.split(": ")[1] for finding in findings] == ["qid 1", "qid 4"]
    texts = INFO.model_copy(update={"keyed_by": "text", "modality": "text", "clip_len_s": None})
    keys = sorted(text_key(f"q{qid}") for qid in (0, 1, 2, 4))
    with FeatureWriter(tmp_path / "texts", texts) as writer:
        for key in keys:
            writer.add(IndexEntry(key, 1), rows_of(1, 1))
    findings = verify_store(tmp_path / "texts", annotations)
    assert len(findings) == 1
    assert "qid 3" in findings[0]


def test_command_line(store, tmp_path):
    run = CliRunner().invoke(group, ["verify", str(store)])
    assert run.exit_code == 0
    assert "sound" in run.output
    annotations = annotate(tmp_path / "rows.jsonl", ["a", "x", "y"])
    run = CliRunner().invoke(group, ["verify", str(store), "--annotations", str(annotations)])
    assert run.exit_code == 2
    assert "'x'" in run.output
    assert "'y'" in run.output
    assert "2 findings" in run.output
    run = CliRunner().invoke(group, ["info", str(store)])
    assert run.exit_code == 0
    assert "keys: 4 ok" in run.output
    assert "rows: 8 of 3 float16" in run.output
