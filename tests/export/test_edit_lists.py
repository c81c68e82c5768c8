"""Edit lists, read back by OpenTimelineIO, have the times of the hits."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import opentimelineio as otio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.errors import DataError
from mrmodel.export.edit_lists import Counting, edls_of, timeline_of
from mrmodel.export.hits import Hit
from mrmodel.export.pieces import index_video
from mrmodel.types import Moment
from mrmodel.video.packet_index import STANDARD_RATES, PacketIndex
from tests.export.videos import make_video

NTSC = Fraction(30000, 1001)
VIDEO = Path("/videos/lake cam.mp4")
LENGTH_S = 3 * 3600.0


def index_of(
    rate: Fraction, *, timecode: str = "", deviation_s: float = 0.0, sound: str = "aac"
) -> PacketIndex:
    """Of a video of that rate; edit lists read nothing else of it."""
    return PacketIndex(
        stamps=np.zeros(1, np.int64),
        times_s=np.zeros(1),
        is_key=np.ones(1, bool),
        is_shown=np.ones(1, bool),
        time_base=1 / rate,
        origin_s=Fraction(0),
        end_s=LENGTH_S,
        regular=True,
        rate=rate,
        deviation_s=deviation_s,
        pixel_aspect=Fraction(1),
        timecode=timecode,
        video_codec="h264",
        audio_codec=sound,
    )


WINDOWS = st.tuples(st.floats(0, LENGTH_S - 1), st.floats(0.001, 600)).map(
    lambda pair: Moment(pair[0], min(pair[0] + pair[1], LENGTH_S), 0.5)
)
RATES = st.sampled_from(STANDARD_RATES) | st.fractions(5, 61, max_denominator=997)


@given(st.lists(WINDOWS, min_size=1, max_size=6), RATES)
def test_a_timeline_read_back_is_off_by_a_frame_at_most(
    moments: list[Moment], rate: Fraction
) -> None:
    hits = [Hit(VIDEO, "a cat", moment) for moment in moments]
    text = timeline_of(hits, {VIDEO: index_of(rate)})
    tracks = otio.adapters.read_from_string(text, "otio_json").tracks
    assert [track.kind for track in tracks] == ["Video", "Audio"]
    for track in tracks:
        for clip, moment in zip(track, moments, strict=True):
            found = clip.source_range
            assert abs(found.start_time.to_seconds() - moment.start_s) <= 1 / rate
            assert abs(found.end_time_exclusive().to_seconds() - moment.end_s) <= 1 / rate + 1e-6
            assert clip.media_reference.target_url == "file:///videos/lake%20cam.mp4"


@given(st.lists(WINDOWS, min_size=1, max_size=6), RATES)
def test_an_edl_read_back_is_off_by_a_frame_at_most(moments: list[Moment], rate: Fraction) -> None:
    """At the rate of its timecodes; frames follow each other without a gap."""
    hits = [Hit(VIDEO, "a cat", moment) for moment in moments]
    ((counting, text),) = edls_of(hits, {VIDEO: index_of(rate)}).items()
    assert counting.rate in STANDARD_RATES
    assert f"FCM: {'' if counting.drop else 'NON-'}DROP FRAME" in text.splitlines()
    read = otio.adapters.read_from_string(text, "cmx_3600", rate=float(counting.rate))
    clips = list(read.find_clips())
    for clip, moment in zip(clips, moments, strict=True):
        found = clip.source_range
        # Without dropped numbers, 23.976 frames a second are counted as 24.
        frames = Fraction(round(found.start_time.value)), Fraction(round(found.duration.value))
        start_s, length_s = (float(one / counting.rate) for one in frames)
        assert abs(start_s - moment.start_s) <= 1 / counting.rate + 2e-3
        assert abs(start_s + length_s - moment.end_s) <= 1 / counting.rate + 2e-3


@given(WINDOWS)
def test_drop_frame_survives_a_round_trip(moment: Moment) -> None:
    """29.97 frames a second: OTIO to EDL and back, frame by frame."""
    indexes = {VIDEO: index_of(NTSC, timecode="00:59:58;10")}
    first = otio.opentime.from_timecode("00:59:58;10", float(NTSC)).value
    ((counting, text),) = edls_of([Hit(VIDEO, "a cat", moment)], indexes).items()
    assert counting == Counting(NTSC, drop=True)
    (event,) = [line for line in text.splitlines() if line.startswith("001")]
    assert event.count(";") == 4
    read = otio.adapters.read_from_string(text, "cmx_3600", rate=float(NTSC))
    (clip,) = read.find_clips()
    timeline = timeline_of([Hit(VIDEO, "a cat", moment)], indexes)
    source = otio.adapters.read_from_string(timeline, "otio_json").tracks[0][0].source_range
    assert clip.source_range.start_time.value == source.start_time.value >= first
    assert clip.source_range.duration.value == source.duration.value
    assert otio.adapters.write_to_string(read, "cmx_3600", rate=float(NTSC)).count(";") == 4


def test_a_timecode_without_dropped_numbers_keeps_them() -> None:
    """The EDL names the frames as the camera did."""
    indexes = {VIDEO: index_of(NTSC, timecode="01:00:00:00")}
    hit = Hit(VIDEO, "a cat", Moment(1800 / float(NTSC), 3600 / float(NTSC), 0.5))
    ((counting, text),) = edls_of([hit], indexes).items()
    assert counting == Counting(NTSC, drop=False)
    assert "FCM: NON-DROP FRAME" in text
    assert "01:01:00:00 01:02:00:00 00:00:00:00 00:01:00:00" in text


def test_a_variable_rate_is_the_average_and_the_files_say_so(tmp_path: Path) -> None:
    times_s = [Fraction(sum((20, 60, 40, 100)[n % 4] for n in range(m)), 1000) for m in range(60)]
    video = make_video(tmp_path / "vfr.mkv", times_s, Fraction(1, 1000), sound=None)
    index = index_video(video)
    assert not index.constant
    assert float(index.rate) == pytest.approx(59 / float(times_s[-1]), rel=1e-6)
    worst = max(abs(float(time) - n / float(index.rate)) for n, time in enumerate(times_s))
    assert index.deviation_s == pytest.approx(worst, abs=1e-3)
    hit = Hit(video, "a cat", Moment(0.5, 2.0, 0.5))
    timeline = json.loads(timeline_of([hit], {video: index}))
    clip = timeline["tracks"]["children"][0]["children"][0]
    stated = clip["metadata"]["mrmodel"]
    assert stated["greatest_deviation_s"] == index.deviation_s
    assert not stated["constant_rate"]
    assert clip["source_range"]["start_time"]["rate"] == float(index.rate)
    (edl,) = edls_of([hit], {video: index}).values()
    assert f"up to {index.deviation_s:.3f} s away from their times" in edl


def test_videos_of_different_rates_have_an_edl_each() -> None:
    videos = [Path("/a/lake one.mp4"), Path("/b/lake one.mp4"), Path("/c/lakeone2.mp4")]
    rates = [Fraction(25), Fraction(25), NTSC]
    indexes = {video: index_of(rate) for video, rate in zip(videos, rates, strict=True)}
    edls = edls_of([Hit(video, "a", Moment(1, 2, 0.5)) for video in videos], indexes)
    assert list(map(str, edls)) == ["25", "29.97_drop"]
    reels = [
        line.split()[1] for text in edls.values() for line in text.splitlines() if " C " in line
    ]
    assert reels == ["LAKEONE", "LAKEO002", "LAKEONE2"]


@pytest.mark.parametrize(
    ("rate", "counted"),
    [(Fraction(10), "24"), (Fraction(2997, 100), "29.97_drop"), (Fraction(298, 10), "30")],
)
def test_a_rate_that_timecode_lacks_is_counted_by_the_clock(rate: Fraction, counted: str) -> None:
    hit = Hit(VIDEO, "a cat", Moment(3600.0, 3602.0, 0.5))
    ((counting, text),) = edls_of([hit], {VIDEO: index_of(rate)}).items()
    assert str(counting) == counted
    assert re.search(r"01:00:00[:;]00 01:00:02[:;]0[0-3] ", text) is not None


def test_an_edl_holds_999_events() -> None:
    hits = [Hit(VIDEO, "a cat", Moment(1, 2, 0.5))] * 1000
    with pytest.raises(DataError, match="1000 hits: an EDL holds at most 999"):
        edls_of(hits, {VIDEO: index_of(NTSC)})


def test_a_silent_video_has_no_track_of_sound() -> None:
    text = timeline_of([Hit(VIDEO, "a", Moment(1, 2, 0.5))], {VIDEO: index_of(NTSC, sound="")})
    assert [track["kind"] for track in json.loads(text)["tracks"]["children"]] == ["Video"]
