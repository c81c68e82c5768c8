import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.data.annotations import read_annotations, scan_annotations, window_clips
from mrmodel.errors import DataError

GOOD = {
    "qid": 7,
    "query": "a red ball",
    "vid": "v_0.0_10.0",
    "duration": 10,
    "relevant_windows": [[2, 6]],
    "relevant_clip_ids": [1, 2],
    "saliency_scores": [[1, 2, 3], [4, 4, 0]],
}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_whole_row(tmp_path):
    bare = {"qid": "q", "query": "x", "vid": "v", "duration": 3.5, "unknown": [1]}
    first, second = read_annotations(write(tmp_path / "a.jsonl", GOOD, "", bare))
    assert first.qid == 7
    assert first.duration == 10.0
    assert first.relevant_windows == ((2.0, 6.0),)
    assert first.relevant_clip_ids == (1, 2)
    assert first.saliency_scores == ((1.0, 2.0, 3.0), (4.0, 4.0, 0.0))
    assert second.relevant_windows == second.relevant_clip_ids == second.saliency_scores == ()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"qid": NaN}', "NaN is not a JSON number"),
        ({"qid": 7, "vid": "v"}, "lacks 'query', 'duration'"),
        ({**GOOD, "qid": True}, "qid = true: expected an integer or a non-empty string"),
        ({**GOOD, "qid": 1.5}, "qid = 1.5"),
        ({**GOOD, "qid": ""}, 'qid = ""'),
        ({**GOOD, "query": "  "}, 'query = "  ": is empty'),
        ({**GOOD, "query": 3}, "query = 3: expected a string"),
        ({**GOOD, "vid": None}, "vid = null: expected a string"),
        ({**GOOD, "duration": "10"}, 'duration = "10": expected a number'),
        ({**GOOD, "duration": 0}, "duration = 0: expected seconds above 0"),
        ({**GOOD, "duration": True}, "duration = true"),
        (json.dumps(GOOD).replace("10,", "1e999,"), "duration = Infinity: is too large"),
        ({**GOOD, "relevant_windows": 3}, "relevant_windows = 3: expected a list"),
        ({**GOOD, "relevant_windows": [[2, 6], [1]]}, "relevant_windows[1] = [1]: expected [start"),
        ({**GOOD, "relevant_windows": [[6, 2]]}, "[6, 2]: starts at or after its end"),
        ({**GOOD, "relevant_windows": [[2, 2]]}, "[2, 2]: starts at or after its end"),
        ({**GOOD, "relevant_windows": [[-1, 2]]}, "lies outside the video of 10.0 s"),
        ({**GOOD, "relevant_windows": [[2, 12.5]]}, "lies outside the video of 10.0 s"),
        (
            {**GOOD, "relevant_clip_ids": [1, 1.0]},
            "relevant_clip_ids[1] = 1.0: expected an integer",
        ),
        ({**GOOD, "relevant_clip_ids": [2, 1]}, "relevant_clip_ids[1] = 1 after 2: not sorted"),
        ({**GOOD, "relevant_clip_ids": [1, 1]}, "not sorted, or twice"),
        ({**GOOD, "relevant_clip_ids": [-1, 1]}, "relevant_clip_ids[0] = -1: is negative"),
        ({**GOOD, "relevant_clip_ids": [1, 6]}, "holds 6: the video has 5 clips of 2.0 s"),
        ({**GOOD, "saliency_scores": [[1, 2, 3]]}, "saliency_scores: 1 for 2 relevant clips"),
        ({**GOOD, "saliency_scores": [[5], [1]]}, "saliency_scores[0] = [5]: ratings lie in 0..4"),
        ({**GOOD, "saliency_scores": [[1], []]}, "saliency_scores[1] = []: expected a list"),
        ({**GOOD, "saliency_scores": [["1"], [2]]}, 'saliency_scores[0] = "1": expected a number'),
        ({**GOOD, "relevant_clip_ids": []}, "saliency_scores: 2 for 0 relevant clips"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, words):
    path = write(tmp_path / "a.jsonl", {**GOOD, "qid": 1}, row)
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert caught.value.line == 2


def test_qid_is_part_of_the_message(tmp_path):
    path = write(tmp_path / "a.jsonl", {**GOOD, "duration": -1})
    with pytest.raises(DataError, match=rf"^{path}:1: qid 7: duration = -1"):
        read_annotations(path)


def test_duplicate_qid_names_both_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "qid": "8"}, GOOD)
    with pytest.raises(DataError, match=r":3: qid 7: the qid is used already in line 1"):
        read_annotations(path)


def test_all_mistakes_are_collected(tmp_path):
    path = write(tmp_path / "a.jsonl", "{", GOOD, {**GOOD, "qid": 8, "query": ""}, "7")
    scan = scan_annotations(path)
    assert [error.line for error in scan.errors] == [1, 3, 4]
    assert scan.lines == [2]
    with pytest.raises(DataError, match="and 2 more: mrmodel data check"):
        read_annotations(path)


def test_files_that_are_no_annotations(tmp_path):
    (tmp_path / "bytes").write_bytes(b'{"qid": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8 text: byte 0xff at column 10"):
        read_annotations(tmp_path / "bytes")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="holds no annotation"):
        read_annotations(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file"):
        read_annotations(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"relevant_windows": [[2, 6], [9, 11]], "relevant_clip_ids": [1, 2]}, "training cuts it"),
        ({"relevant_clip_ids": [1, 5]}, "relevant clip 5 begins after the video"),
        ({"relevant_windows": [[2, 6], [1, 4]]}, "overlap, or are not sorted"),
        (
            {"relevant_windows": [[2, 4]]},
            "relevant_clip_ids and relevant_windows differ in clips 2",
        ),
        ({"saliency_scores": [[1], [1, 2]]}, "the number of raters varies"),
    ],
)
def test_odd_rows_are_warned_about_and_kept(tmp_path, changes, words):
    scan = scan_annotations(write(tmp_path / "a.jsonl", {**GOOD, **changes}))
    assert len(scan.rows) == 1
    assert scan.errors == []
    assert any(words in str(warning) for warning in scan.warnings)
    assert all(warning.line == 1 for warning in scan.warnings)


def test_a_sound_row_has_no_warning(tmp_path):
    assert scan_annotations(write(tmp_path / "a.jsonl", GOOD)).warnings == []


def test_clips_of_windows():
    assert window_clips(((2.0, 6.0),), 2.0) == {1, 2}
    assert window_clips(((3.0, 9.0),), 2.0) == {2, 3}  # exactly half of a clip is not enough
    assert window_clips(((2.9, 9.1),), 2.0) == {1, 2, 3, 4}
    assert window_clips(((0.0, 2.0), (1.0, 1.2), (4.0, 5.5)), 2.0) == {0, 2}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, max_size=7),
    st.lists(st.sampled_from(sorted(GOOD)), max_size=2),
)
def test_no_row_crashes_the_reader(tmp_path_factory, changes, dropped):
    row = {key: value for key, value in {**GOOD, **changes}.items() if key not in dropped}
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text(json.dumps(row) + "\n")
    scan = scan_annotations(path)
    assert len(scan.rows) + len(scan.errors) == 1
    for annotation in scan.rows:
        assert all(start < end for start, end in annotation.relevant_windows)
        assert len(annotation.saliency_scores) in (0, len(annotation.relevant_clip_ids))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(data)
    scan = scan_annotations(path)
    assert scan.errors
    assert not scan.rows
