"""Ids of queries in two types: `1` and `"1"` in one file are an id given twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mrmodel.cli.main import cli
from mrmodel.data.annotations import scan_annotations
from mrmodel.data.datasets.convert import ConvertRequest, convert
from mrmodel.errors import DataError, FeatureError
from mrmodel.evaluate.rows import RowFile, pair_rows
from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.features.keys import text_key
from mrmodel.features.store import FeatureStore
from mrmodel.files import write_jsonl
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.row_checks import _Seen
from mrmodel.types import Annotation
from tests.features.archives import VIDEOS, npz, values


def truth(qid: Any, vid: str = "v", query: str = "a dog") -> dict[str, Any]:
    window = {"relevant_windows": [[10, 30]]}
    return {"qid": qid, "query": query, "vid": vid, "duration": 150, **window}


def prediction(qid: Any) -> dict[str, Any]:
    return {"qid": qid, "pred_relevant_windows": [[10, 30, 0.9]]}


def test_no_query_is_lost_from_the_figures_per_query(tmp_path: Path) -> None:
    gt, pr, out = tmp_path / "gt.jsonl", tmp_path / "pr.jsonl", tmp_path / "q.json"
    write_jsonl(gt, [truth(qid) for qid in (1, "1", 3)])
    write_jsonl(pr, [prediction(qid) for qid in (1, "1", 3)])
    options = ["--annotations", str(gt), "--predictions", str(pr), "--protocol", "qvhighlights"]
    done = CliRunner().invoke(cli, ["evaluate", *options, "--per-query", str(out)])
    rule = f"repeats the qid of {gt}:1 (1 and '1' differ in type alone)"
    assert str(done.exception) == f"{gt}:2: qid '1': {rule}"
    assert not out.exists()
    write_jsonl(gt, [truth(qid) for qid in (1, "b", 3)])
    write_jsonl(pr, [prediction(qid) for qid in ("b", 3, 1)])
    done = CliRunner().invoke(cli, ["evaluate", *options, "--per-query", str(out)])
    assert done.exit_code == 0, done.output
    assert sorted(json.loads(out.read_text())) == ["1", "3", "b"]


@pytest.mark.parametrize(("first", "second"), [(1, "1"), ("1", 1), (-7, "-7"), ("0", 0)])
def test_a_reader_names_both_ids(tmp_path: Path, first: Any, second: Any) -> None:
    path = tmp_path / "train.jsonl"
    write_jsonl(path, [truth(first), truth(second, "w"), truth("01")])
    scan = scan_annotations(path)
    assert [row.qid for row in scan.rows] == [first, "01"]
    note = f"({first!r} and {second!r} differ in type alone)"
    wanted = f"{path}:2: qid {second!r}: the qid is used already in line 1 {note}"
    assert [str(error) for error in scan.errors] == [wanted]
    done = CliRunner().invoke(cli, ["data", "check", str(path)])
    assert done.exit_code == 2
    assert wanted in done.output


@pytest.mark.parametrize("repeats", [True, False])
def test_predictions_of_another_type_are_never_dropped(repeats: bool) -> None:
    annotations, found = RowFile([truth(1), truth(2)]), RowFile([prediction(1), prediction("2")])
    for allow in (True, False):
        with pytest.raises(DataError, match=r"qid '2': is not in .* have 2, of another type"):
            pair_rows(annotations, found, repeats=repeats, allow_missing=allow)
    both = RowFile([prediction(1), prediction("1"), prediction(2)])
    with pytest.raises(DataError, match="qid '1'"):
        pair_rows(annotations, both, repeats=repeats, allow_missing=True)


def test_a_delivery_cannot_bring_an_id_of_another_type() -> None:
    reference = Reference(profile=None)  # type: ignore[arg-type]
    old = Annotation(1, "a dog", "v", 10.0, ((0.0, 2.0),))
    reference.add_annotations("train.jsonl", [old])
    seen, new = _Seen(reference), Annotation("1", "a cat", "v", 10.0, ((0.0, 2.0),))
    assert seen._annotation("train.jsonl", new) == (
        False,
        "the data hold another row of this qid in train.jsonl",
    )
    assert seen._annotation("train.jsonl", old) == (True, "")
    assert seen._annotation("val.jsonl", new) == (False, "")


def test_published_splits_with_ids_of_two_types(tmp_path: Path) -> None:
    source = tmp_path / "published"
    for split, qid in {"train": 5, "val": "5"}.items():
        write_jsonl(source / f"highlight_{split}_release.jsonl", [truth(qid), truth(split, "w")])
    report = convert(ConvertRequest("qvhighlights", source, tmp_path / "out"))
    rules = [str(error) for error in report.rejected]
    assert len(rules) == 1
    assert "in highlight_train_release.jsonl (5 and '5' differ in type alone)" in rules[0]


def test_rows_of_one_qid_go_to_no_two_sentences(tmp_path: Path) -> None:
    """Train and val that both count from 1: whose the file qid1 is, nobody knows."""
    root = tmp_path / "archive"
    for qid in (1, 2):
        npz(root / f"clip_text_features/qid{qid}.npz", last_hidden_state=values(str(qid), 512))
    rows = [
        Annotation(1, "a dog", VIDEOS[0], 150.0, ((2.0, 4.0),)),
        Annotation("1", "a cat", VIDEOS[1], 150.0, ((2.0, 4.0),)),
        Annotation(2, "a bird", VIDEOS[1], 150.0, ((2.0, 4.0),)),
    ]
    stream = "clip_b32.text512"
    request = FeatureImportRequest(
        "moment_detr", root, tmp_path / "out", (stream,), max_failed_share=0.7
    )
    (report,) = import_archive(request, rows)
    assert [code for code, _ in report.problems.values()] == ["duplicate_id"] * 2
    assert all(name.startswith("1 (t-") for name in report.problems)
    store = FeatureStore(report.store)
    assert list(store) == [text_key("a bird")]
    assert np.array_equal(store.gather(list(store))[0][0], values("2", 512))
    with pytest.raises(FeatureError, match=r"2 of 3 items .*duplicate_id: other sentences have"):
        import_archive(FeatureImportRequest("moment_detr", root, tmp_path / "out", (stream,)), rows)
    # The same sentence of both splits is one.
    rows[1] = Annotation(1, "a  dog", VIDEOS[1], 150.0, ((2.0, 4.0),))
    (report,) = import_archive(request, rows)
    assert (report.n_items, report.problems) == (2, {})
