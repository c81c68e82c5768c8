"""Text as people's programs write it: byte order marks, other encodings, halves of characters."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.cli.main import main
from mrmodel.convert.encoders.vocabulary import bert_tokenizer
from mrmodel.data.annotations import read_annotations, scan_annotations
from mrmodel.data.check import check_file
from mrmodel.errors import CheckpointError, DataError, FeatureError, FileFormatError
from mrmodel.evaluate.rows import RowFile, pair_rows, read_rows
from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.features.importers.readers import WordVectors
from mrmodel.features.store import FeatureStore
from mrmodel.files import read_text
from mrmodel.lines import json_lines
from mrmodel.pretraining.intervid.caption_files import read_chunks
from mrmodel.pretraining.intervid.captions import parse_chunk
from mrmodel.pretraining.intervid.decontaminate import in_both_forms, read_leak_files
from mrmodel.types import Annotation
from tests.features.archives import npz, values
from tests.pretraining.tables import row as table_row
from tests.pretraining.tables import settings as intervid_settings

BOM = codecs.BOM_UTF8


def row(qid: Any = 1, **changes: Any) -> dict[str, Any]:
    window = {"duration": 12.0, "relevant_windows": [[2.0, 4.0]]}
    return {"qid": qid, "query": "a caf\u00e9", "vid": "base", **window, **changes}


def lines_of(*rows: object) -> list[str]:
    return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows]


ROWS = lines_of(row(1), row(2), row(3))

# How a file of three rows may be written, so that all readers take three rows from it.
SPELLINGS: dict[str, bytes] = {
    "plain": "\n".join(ROWS).encode(),
    "byte order mark": BOM + "\n".join(ROWS).encode(),
    "windows": BOM + "\r\n".join([*ROWS, ""]).encode(),
    "old mac": "\r".join(ROWS).encode(),
    "blank lines": "\n\n  \n".join(["", *ROWS]).encode(),
    "joined files": b"\n".join(BOM + text.encode() for text in ROWS),
    "escapes": "\n".join(json.dumps(json.loads(text)) for text in ROWS).encode(),
    "line separators": "\n".join(lines_of(row(1, note="\u2028\x85\x0b"), *ROWS[1:])).encode(),
    "emoji in escapes": "\n".join([json.dumps(row(1, query="\U0001f600")), *ROWS[1:]]).encode(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_three_rows_however_they_are_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(SPELLINGS[name])
    report = check_file(path)
    assert (report.errors, report.warnings, report.summary["queries"]) == ([], [], 3)
    assert [found.qid for found in read_annotations(path)] == [1, 2, 3]
    assert [found["qid"] for found in read_rows(path)] == [1, 2, 3]


# Files of which no row can be read: content, and what the one error says.
WHOLE: dict[str, tuple[bytes, str]] = {
    "utf-16 of Windows": ("\ufeff".encode("utf-16-le") + ROWS[0].encode("utf-16-le"), "UTF-16"),
    "utf-16 big": ("\ufeff".encode("utf-16-be") + ROWS[0].encode("utf-16-be"), "UTF-16"),
    "utf-16 without a mark": (ROWS[0].encode("utf-16-le"), "the file is UTF-16 text; save it as"),
    "utf-32": (ROWS[0].encode("utf-32"), "the file is UTF-32 text"),
    "zeros": (b"\0" * 4096, "begins with NUL bytes"),
    "array": (json.dumps([row(1), row(2)]).encode(), "is one JSON array of 2 values; expected one"),
    "long array": (json.dumps([row(1), row(2)], indent=2).encode(), "jq -c '.[]'"),
    "array with a mark": (BOM + json.dumps([row(1)], indent=2).encode(), "jq -c '.[]'"),
    "array of a row a line": (f"[{ROWS[0]},\n{ROWS[1]}]\n".encode(), "one JSON array of 2 values"),
    "cut array": (json.dumps([row(1), row(2)], indent=2).encode()[:-9], "JSON array over several"),
    "object": (json.dumps(row(1), indent=2).encode(), "one JSON object over several lines"),
    "objects": (
        "\n".join(json.dumps(row(qid), indent=1) for qid in (1, 2)).encode(),
        "holds JSON objects over several lines; expected one JSON object a line; convert it: jq -c",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_of_another_kind_is_one_error(tmp_path: Path, name: str) -> None:
    content, rule = WHOLE[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    (error,) = check_file(path).errors
    assert rule in error.rule
    assert error.line is None
    for read in (read_annotations, read_rows, lambda file: list(json_lines(file))):
        with pytest.raises(DataError) as raised:
            read(path)
        assert str(raised.value) == str(error)


# One bad line among two good ones: bytes, and what the error says.
BAD: dict[str, tuple[bytes, str]] = {
    "latin-1": (ROWS[1].encode("latin-1"), "not UTF-8 text: byte 0xe9 at column 27; save the"),
    "windows-1252": (
        ROWS[1].replace("\u00e9", "\u201c").encode("cp1252"),
        "byte 0x93 at column 27",
    ),
    "surrogates in bytes": (b'{"qid": "\xed\xa0\xbd"}', "byte 0xed at column 10"),
    "NUL": (ROWS[1].encode().replace(b"base", b"b\0se"), "byte 0x00 at column"),
    "power failure": (b"\0" * 64, "byte 0x00 at column 1; the file is damaged"),
    "half in the query": (
        json.dumps(row(2, query="a party \ud83d")).encode(),
        'query = "a party \\ud83d": holds \\ud83d, half of a surrogate pair, which is no character',
    ),
    "second half": (json.dumps(row(2, query="\ude00 x")).encode(), "holds \\ude00, half of"),
    "half in the vid": (json.dumps(row(2, vid="\ud83d")).encode(), 'vid = "\\ud83d": holds'),
    "half in the qid": (json.dumps(row("\ud83d")).encode(), 'qid = "\\ud83d": holds'),
    "half in a note": (json.dumps(row(2, note=[{"a": "\udfff"}])).encode(), "note = [{"),
    "half in a key": (json.dumps(row(2) | {"\ud83d": 1}).encode(), "\\ud83d = 1: holds"),
    "NUL in the vid": (json.dumps(row(2, vid="a\0b")).encode(), "holds NUL or half of a character"),
    "comma": (ROWS[1].encode() + b",", "not valid JSON: Extra data"),
    "two objects": (ROWS[1].encode() + ROWS[1].encode(), "not valid JSON: Extra data"),
    "single quotes": (b"{'qid': 2}", "not valid JSON: Expecting property name"),
    "list": (b"[1]", "expected a JSON object, found a list"),
    "nan": (json.dumps(row(2, note=float("nan"))).encode(), "NaN is not a JSON number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_costs_itself_only(tmp_path: Path, name: str) -> None:
    line, rule = BAD[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([ROWS[0].encode(), line, ROWS[2].encode()]))
    scan = scan_annotations(path)
    assert [found.qid for found in scan.rows] == [1, 3]
    (error,) = scan.errors
    assert (error.file, error.line) == (path, 2)
    assert rule in error.rule
    assert str(error).isprintable()
    str(error).encode()
    with pytest.raises(DataError, match=rf"^{path}:2: "):
        read_annotations(path)


@pytest.mark.parametrize(
    "line", [b"1,a dog,base,12.0,2.0,4.0", b"base 2.0 4.0##a dog", '"caf\u00e9"'.encode("latin-1")]
)
def test_a_table_in_place_of_json_lines_is_one_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((line + b"\n") * 5000)
    (error,) = check_file(path).errors
    assert error.rule.startswith("none of 5000 lines is a JSON object; the first: not ")
    assert error.line == 1


WRITERS: list[Callable[[str], bytes]] = [
    lambda text: text.encode("utf-8", "replace"),
    lambda text: text.encode("utf-8-sig", "replace"),
    lambda text: text.encode("utf-8", "surrogatepass"),
    lambda text: text.encode("utf-16", "surrogatepass"),
    lambda text: text.encode("utf-16-be", "surrogatepass"),
    lambda text: text.encode("utf-32", "surrogatepass"),
    lambda text: text.encode("latin-1", "replace"),
    lambda text: text.encode("shift-jis", "replace"),
]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(ANY_TEXT, st.booleans()), min_size=1, max_size=3),
    st.sampled_from(WRITERS),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
def test_any_encoding_gives_the_text_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[tuple[str, bool]],
    write: Callable[[str], bytes],
    end: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "encoded.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=escape) for text, escape in texts]
    content = write(end.join(rows))
    path.write_bytes(content)
    if content[:4].count(b"\0") or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with pytest.raises(FileFormatError, match=r"UTF-16|UTF-32"):
            list(json_lines(path))
        return
    found = [line.record for line in json_lines(path)]
    assert len(found) == len(rows)
    for record, line in zip(found, content.decode("utf-8-sig", "replace").split(end), strict=False):
        if isinstance(record, DataError):
            assert record.line is not None
        else:
            assert record == json.loads(line)
            record["text"].encode()


def test_other_encodings_of_a_whole_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("seed: 1\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"params\.yaml: the file is UTF-16 text; save it as UTF-8"):
        read_text(path)
    path.write_bytes(b"seed: 1\nname: a\0b\n")
    with pytest.raises(DataError, match=r"params\.yaml:2: not UTF-8 text: byte 0x00 at column 8"):
        read_text(path)


@pytest.mark.parametrize(
    ("query", "rule"),
    [
        ("caf\udce9", "query 2 is not valid UTF-8: byte 0xe9 at character 4 of 'caf\\udce9'"),
        ("\udcff\udcfe", "query 2 is not valid UTF-8: byte 0xff at character 1"),
        ("a party \ud83d", "query 2 holds \\ud83d, half of a surrogate pair at character 9"),
        (" \u3000", "query 2 is empty"),
    ],
)
def test_a_query_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], query: str, rule: str
) -> None:
    """A terminal in Latin-1: Python stands bytes that are not UTF-8 for halves of characters."""
    arguments = ["predict", "no-such-video.mp4", "--query", "a caf\u00e9", "--query", query]
    monkeypatch.setattr("sys.argv", ["mrmodel", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {rule}")


def test_lists_of_evaluation_videos(tmp_path: Path) -> None:
    rows = tmp_path / "val.jsonl"
    rows.write_bytes(BOM + '{"vid": "a\u2028b"}\r{"vid": "c", "x": NaN}'.encode())
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b"\r\n".join([BOM + b"d_0_4", b"", b" caf\xc3\xa9 "]))
    assert read_leak_files([rows, ids]) == {"a\u2028b", "c", "d_0_4", "d", "caf\u00e9"}
    assert in_both_forms(["caf\u00e9", "x"]) == {"caf\u00e9", "cafe\u0301", "x"}
    for content, rule in (
        (json.dumps([{"vid": "a"}]).encode(), "one JSON array"),
        (b'{"vid": "caf\xe9"}', ":1: not UTF-8 text"),
        (b'{"vid": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"vid": 1}', "expected an object with the text field 'vid'"),
        ("a".encode("utf-16"), "UTF-16"),
    ):
        rows.write_bytes(content)
        with pytest.raises(DataError, match=rule):
            read_leak_files([rows])


def test_caption_tables(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    good = table_row(caption="a dog \u2028 runs")
    texts = [json.dumps(good | {"n": number}, ensure_ascii=False).encode() for number in range(3)]
    for content in (
        BOM + b"\n".join(texts),
        b"\r".join(texts),
        b"\r\n".join(BOM + text for text in texts),
    ):
        path.write_bytes(content)
        (chunk,) = read_chunks(path, 10)
        parsed = parse_chunk(chunk, intervid_settings())
        assert parsed.bad_rows == []
        assert parsed.columns["line"].tolist() == [1, 2, 3]
        assert parsed.columns["text"] == ["a dog runs"] * 3
    path.write_bytes(b"\n".join([b"{", texts[0], b"caf\xe9", texts[1]]))
    parsed = parse_chunk(next(read_chunks(path, 10)), intervid_settings())
    assert [bad.line for bad in parsed.bad_rows] == [1, 3]
    for content, rule in (
        (json.dumps([good], indent=1).encode(), "one JSON array of 1 values"),
        (json.dumps(good).encode("utf-16"), "UTF-16"),
        (b"YoutubeID,Caption\nx,y\n", "captions.jsonl:1: not valid JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rule):
            list(read_chunks(path, 10))


def test_word_vectors_and_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    mark = BOM.decode()
    path.write_text(f"{mark}dog 1 2\n{mark}dog 5 6\nsun\x85 7 8\ncaf\u00e9 3 4\n", encoding="utf-8")
    vectors = WordVectors.read(path, 2, ["Dog caf\u00e9 x"])
    assert vectors.rows("dog caf\u00e9").tolist() == [[1, 2], [3, 4]]
    path.write_text("dog 1 x\n")
    with pytest.raises(FeatureError, match=r"glove\.txt:1: no word vector"):
        WordVectors.read(path, 2, ["dog"])
    vocabulary = tmp_path / "vocab.txt"
    marks = ("[UNK]", "[CLS]", "[SEP]")
    vocabulary.write_bytes(BOM + "\r\n".join([*marks, "\u2028", "caf\u00e9"]).encode())
    assert bert_tokenizer(vocabulary).get_vocab()["caf\u00e9"] == 4
    vocabulary.write_bytes(b"[UNK]\ncaf\xe9\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt:2: not UTF-8 text"):
        bert_tokenizer(vocabulary)


def test_features_of_a_name_in_another_form(tmp_path: Path) -> None:
    """An archive that was packed on a Mac."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    npz(tmp_path / "slowfast_features" / f"{decomposed}.npz", features=values("x", 2304, 3))
    rows = [Annotation(1, "a dog", composed, 6.0)]
    request = FeatureImportRequest(
        "moment_detr", tmp_path, tmp_path / "out", streams=("slowfast.video2304",)
    )
    (report,) = import_archive(request, rows)
    assert (report.n_rows, report.unknown) == (3, [])
    assert composed in FeatureStore(report.store)


def test_qids_in_two_forms_are_not_left_out(tmp_path: Path) -> None:
    annotations, predictions = (
        RowFile([{"qid": "caf\u00e9"}, {"qid": 2}]),
        RowFile([{"qid": "cafe\u0301"}, {"qid": 2}]),
    )
    for allow_missing in (False, True):
        with pytest.raises(DataError, match="in another form of Unicode"):
            pair_rows(annotations, predictions, repeats=True, allow_missing=allow_missing)


def test_a_terminal_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    path = tmp_path / "caf\u00e9 \u2581 \udce9.jsonl"
    path.write_text("{")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr("sys.argv", ["mrmodel", "data", "check", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code == 2
    assert b"caf\xe9 \\u2581 \\udce9.jsonl:1: not valid JSON" in written.getvalue()


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """Like ``<(zcat rows.jsonl.gz)`` in a shell."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = BOM + "\n".join(["{", *ROWS]).encode()
    with ThreadPoolExecutor(1) as writer:
        writer.submit(pipe.write_bytes, content)
        scan = scan_annotations(pipe)
    assert [found.qid for found in scan.rows] == [1, 2, 3]
    assert [error.line for error in scan.errors] == [1]
