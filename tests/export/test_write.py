"""`export_hits`: which files there are, what they say, and what happens to bad input."""

from __future__ import annotations

import csv
import json
import resource
import signal
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path

import pytest

from mrmodel.errors import DataError, OutputError, UnknownNameError
from mrmodel.export import FORMATS
from mrmodel.export.chapters import chapters_of
from mrmodel.export.hits import Hit, read_hits
from mrmodel.export.write import export_hits
from mrmodel.types import Moment
from tests.export.videos import constant, content_of, make_video
from tests.video.fixtures import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "lake.mp4"
    return make_video(path, constant(100, Fraction(25)), Fraction(1, 25))


def hits_in(video: Path) -> list[Hit]:
    return [
        Hit(video, "a cat & <a dog>", Moment(1.0, 2.0, 0.9)),
        Hit(video, "a bird", Moment(2.52, 3.0, 0.5, probability=0.25)),
    ]


def test_all_formats(video: Path, tmp_path: Path) -> None:
    made = export_hits(hits_in(video), tmp_path / "out", list(FORMATS), exact=True)
    assert made.problems == made.notes == ()
    names = [path.name for path in made.files]
    assert names == [
        "001_lake_a-cat-a-dog.mp4",
        "002_lake_a-bird.mp4",
        *("reel.mp4", "hits.json", "hits.csv", "lake.vtt", "hits.otio", "hits.edl"),
        *("label_studio.json", "label_studio.xml"),
    ]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert content_of(tmp_path / "out/reel.mp4").numbers == [*range(25, 50), *range(63, 75)]

    manifest = json.loads((tmp_path / "out/hits.json").read_text())
    assert manifest["hits"][1] == {
        **{"path": str(video), "query": "a bird", "start_s": 2.52, "end_s": 3.0},
        **{"score": 0.5, "probability": 0.25},
        "clip": {
            "file": "002_lake_a-bird.mp4",
            "exact": True,
            "shows": [{"start_s": 2.52, "end_s": 3.0}],
        },
    }
    rows = list(csv.DictReader((tmp_path / "out/hits.csv").open()))
    assert [row["clip"] for row in rows] == names[:2]
    assert rows[1]["probability"] == "0.25"

    (task,) = json.loads((tmp_path / "out/label_studio.json").read_text())
    assert task["data"]["fps"] == 25.0
    assert task["data"]["video"] == f"/data/local-files/?d={str(video).lstrip('/')}"
    (prediction,) = task["predictions"]
    setup = ET.parse(tmp_path / "out/label_studio.xml").getroot()
    control, player = setup.find("TimelineLabels"), setup.find("Video")
    assert control is not None
    assert player is not None
    assert player.attrib["value"], player.attrib["frameRate"] == ("$video", "$fps")
    labels = [label.attrib["value"] for label in control]
    for region, first, last in zip(prediction["result"], (26, 64), (50, 75), strict=True):
        assert region["type"] == "timelinelabels"
        assert region["from_name"] == control.attrib["name"]
        assert region["to_name"] == control.attrib["toName"] == player.attrib["name"]
        # Label Studio counts frames from 1, and the last one belongs to a region.
        assert region["value"]["ranges"] == [{"start": first, "end": last}]
        assert region["value"]["timelinelabels"][0] in labels


def test_what_can_be_made_is_made(video: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bad.mp4"
    damaged.write_bytes(b"no video")
    hits = [
        Hit(damaged, "a", Moment(0, 1, 0.5)),
        Hit(video, "b", Moment(100, 101, 0.5)),
        Hit(tmp_path / "none.mp4", "c", Moment(0, 1, 0.5)),
        Hit(video, "d", Moment(0, 1, 0.5)),
    ]
    made = export_hits(hits, tmp_path / "out", ["mp4", "vtt"])
    assert [path.name for path in made.files] == ["004_lake_d.mp4", "hits.json", "lake.vtt"]
    assert list(made.clips) == [3]
    problems = "\n".join(map(str, made.problems))
    assert "bad.mp4: invalid_data" in problems
    assert "none.mp4: not_found" in problems
    assert "hit 2, 100.00 s to 101.00 s, begins after the end of the video, 4.00 s" in problems


def test_a_copy_that_begins_seconds_early_is_worth_a_note(tmp_path: Path) -> None:
    video = write_video(tmp_path / "one_key_frame.mp4", 60, fps=10)
    hit = Hit(video, "a cat", Moment(4.0, 5.0, 0.5))
    (note,) = export_hits([hit], tmp_path / "copied").notes
    assert note.startswith("clips begin up to 4.0 s before their hits")
    assert export_hits([hit], tmp_path / "exact", exact=True).notes == ()


def test_files_are_replaced_only_if_asked(video: Path, tmp_path: Path) -> None:
    hits = hits_in(video)[:1]
    export_hits(hits, tmp_path, ["csv"])
    before = (tmp_path / "hits.csv").stat().st_ino
    with pytest.raises(DataError, match=r"hits\.csv: exists; .*--overwrite"):
        export_hits(hits, tmp_path, ["csv", "vtt"])
    assert (tmp_path / "hits.csv").stat().st_ino == before
    assert not (tmp_path / "lake.vtt").exists()
    export_hits(hits, tmp_path, ["csv"], overwrite=True)
    assert (tmp_path / "hits.csv").stat().st_ino != before


def test_a_video_is_never_replaced(video: Path, tmp_path: Path) -> None:
    own = tmp_path / "reel.mp4"
    own.write_bytes(video.read_bytes())
    hits = [Hit(own, "a cat", Moment(0, 1, 0.5))]
    with pytest.raises(DataError, match="is one of the videos"):
        export_hits(hits, tmp_path, ["reel"], overwrite=True)


@pytest.mark.parametrize("query", ["../../x", "a/b\\c:d*e", "-rf", "", "ゴ" * 200, ".hidden"])
def test_names_of_clips_are_safe(query: str, video: Path, tmp_path: Path) -> None:
    made = export_hits([Hit(video, query, Moment(0, 1, 0.5))], tmp_path / "out")
    clip = made.clips[0].path
    assert clip.parent == tmp_path / "out"
    assert clip.name.startswith("001_lake")
    assert not set(clip.name) & set('/\\:*?"<>|\n ')
    assert len(clip.name.encode()) < 200


def test_mistakes_are_one_line(video: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'edll'; did you mean 'edl'"):
        export_hits(hits_in(video), tmp_path, ["edll"])
    with pytest.raises(DataError, match="no hits"):
        export_hits([], tmp_path)


@pytest.mark.parametrize("exact", [False, True])
def test_a_full_disk_leaves_nothing(exact: bool, video: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OutputError, match=r"\.mp4: cannot be written: file too large"):
            export_hits(hits_in(video), tmp_path / "out", exact=exact)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_chapters_overlap_nowhere_in_part(video: Path) -> None:
    windows = [(5, 9), (1, 6), (2, 3), (8.9994, 9)]
    hits = [Hit(video, f"q{n} -->\n<b>&", Moment(*one, 0.5)) for n, one in enumerate(windows)]
    assert chapters_of(hits).split("\n\n") == [
        "WEBVTT",
        "1\n00:00:01.000 --> 00:00:05.000\nq1 --&gt; &lt;b&gt;&amp;",
        "2\n00:00:02.000 --> 00:00:03.000\nq2 --&gt; &lt;b&gt;&amp;",
        "3\n00:00:05.000 --> 00:00:09.000\nq0 --&gt; &lt;b&gt;&amp;",
        "4\n00:00:08.999 --> 00:00:09.000\nq3 --&gt; &lt;b&gt;&amp;\n",
    ]


def test_hits_are_read_from_what_commands_print(video: Path, tmp_path: Path) -> None:
    row = {"qid": 0, "query": "a cat", "vid": "lake", "duration": 4.0}
    row |= {"pred_relevant_windows": [[1, 2, 0.9], [0, 1, 0.1]], "pred_saliency_scores": [1.0]}
    own = [hit.as_row() for hit in hits_in(video)]
    path = tmp_path / "hits.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [row, *own]))
    found = read_hits(path, video)
    assert found == [
        Hit(video, "a cat", Moment(1, 2, 0.9)),
        Hit(video, "a cat", Moment(0, 1, 0.1)),
        *hits_in(video),
    ]
    assert [hit.query for hit in read_hits(path, video, top=1)].count("a cat") == 1


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"query": "a", "vid": "river", "pred_relevant_windows": []}, "not about the video"),
        ({"query": "a", "pred_relevant_windows": [[1, 2]]}, r"windows\[0\] = \[1, 2\]: expected"),
        ({"query": "a", "pred_relevant_windows": [[2, 1, 0]]}, "an end after it"),
        ({"query": "a", "pred_relevant_windows": 3}, "expected a list of windows"),
        ({"query": "a", "start_s": "1", "end_s": 2}, "expected numbers"),
        ({"query": "a", "start_s": -1, "end_s": 2}, "a start of 0 or more"),
        ({"query": 7, "start_s": 1, "end_s": 2}, "query = 7: expected a text"),
        ({"path": "http://x/y.mp4", "query": "a", "start_s": 1, "end_s": 2}, "are not read"),
    ],
)
def test_rows_that_are_no_hits_name_their_line(row: dict, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    path.write_text('{"query": "ok", "start_s": 0, "end_s": 1}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"hits\.jsonl:2: .*{rule}"):
        read_hits(path, Path("lake.mp4"))


def test_a_row_without_a_video_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    path.write_text('{"query": "a", "start_s": 0, "end_s": 1}\n')
    with pytest.raises(DataError, match=r"hits\.jsonl:1: names no file as path"):
        read_hits(path)
