"""Hits as timelines for editing programs: OpenTimelineIO files, and EDLs in CMX 3600.

Both count frames. The frames of a file of variable rate are counted at its average rate; the file
says how far a frame is from its time at that rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import opentimelineio as otio

from mrmodel.errors import DataError
from mrmodel.export.hits import Hit
from mrmodel.export.pieces import frames_on_screen
from mrmodel.video.packet_index import STANDARD_RATES, PacketIndex
from mrmodel.video.remote import is_pointer, read_video_pointer

# Of every timeline.
_NAME = "mrmodel"
# An EDL numbers its events with three digits.
_MOST_EVENTS = 999
# Rates that differ by less are the same, measured: NTSC's differ from whole ones by a thousandth.
_SAME_RATE = Fraction(1, 4000)
# Bytes of the name of a reel, which tells videos apart in an EDL.
_REEL, _REEL_NUMBER = 8, 3


@dataclass(frozen=True, slots=True)
class Counting:
    """How the timecodes of an EDL count frames.

    Attributes:
        rate: frames per second.
        drop: leaves out numbers, so that timecodes of 29.97 and 59.94 frames follow the clock.
    """

    rate: Fraction
    drop: bool

    def __str__(self) -> str:
        """For the name of a file."""
        return f"{float(self.rate):.4g}{'_drop' if self.drop else ''}"


def timeline_of(hits: Sequence[Hit], indexes: Mapping[Path, PacketIndex]) -> str:
    """An OpenTimelineIO file (JSON): the hits, one after the other, in their order.

    Times of a clip are at the rate of its file, from the file's timecode if it has one.

    Args:
        hits: at least one.
        indexes: the frames of each video.
    """
    tracks = [otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)]
    if all(indexes[hit.path].audio_codec for hit in hits):
        tracks.append(otio.schema.Track("A1", kind=otio.schema.TrackKind.Audio))
    timeline = otio.schema.Timeline(_NAME, tracks=tracks)
    for track in tracks:
        track.extend(_clip(hit, indexes[hit.path], indexes[hit.path].rate) for hit in hits)
    text: str = timeline.to_json_string(indent=2)
    return text + "\n"


def edls_of(hits: Sequence[Hit], indexes: Mapping[Path, PacketIndex]) -> dict[Counting, str]:
    """EDLs (CMX 3600), of pictures alone; one for each way of counting, as an EDL has one.

    A video has the nearest rate that timecode knows; of one at none of them, the nearest whole one,
    whose timecodes follow the clock. At 29.97 and 59.94 frames numbers are dropped,
    unless the video's own timecode drops none.

    Raises:
        DataError: there are more hits than an EDL can number.
    """
    if len(hits) > _MOST_EVENTS:
        rule = f"{len(hits)} hits: an EDL holds at most {_MOST_EVENTS}; choose fewer"
        raise DataError(rule)
    countings = {video: _counting(index) for video, index in indexes.items()}
    reels = _reels_of(indexes)
    edls = {}
    for counting in dict.fromkeys(countings[hit.path] for hit in hits):
        track = otio.schema.Track("V", kind=otio.schema.TrackKind.Video)
        for hit in hits:
            if countings[hit.path] == counting:
                clip = _clip(hit, indexes[hit.path], counting.rate)
                notes = [] if indexes[hit.path].constant else [rate_note(indexes[hit.path])]
                clip.metadata["cmx_3600"] = {"reel": reels[hit.path], "comments": notes}
                track.append(clip)
        edls[counting] = _edl(otio.schema.Timeline(_NAME, tracks=[track]), counting)
    return edls


def _edl(timeline: otio.schema.Timeline, counting: Counting) -> str:
    rate = counting.rate
    if rate.denominator != 1 and not counting.drop:
        # The adapter drops numbers at such a rate; without, they are those of the whole rate.
        rate = Fraction(round(rate))
        for clip in timeline.find_clips():
            start, duration = clip.source_range.start_time, clip.source_range.duration
            clip.source_range = otio.opentime.TimeRange(
                _time(round(start.value), rate), _time(round(duration.value), rate)
            )
    text: str = otio.adapters.write_to_string(timeline, "cmx_3600", rate=float(rate))
    title, _, events = text.partition("\n\n")
    return f"{title}\nFCM: {'' if counting.drop else 'NON-'}DROP FRAME\n\n{events}"


def _counting(index: PacketIndex) -> Counting:
    rate = min(STANDARD_RATES, key=lambda one: abs(one - index.rate))
    if abs(rate - index.rate) > _SAME_RATE * rate:
        # Timecodes of whole rates follow the clock.
        whole = [one for one in STANDARD_RATES if one.denominator == 1]
        rate = min(whole, key=lambda one: abs(one - index.rate))
    drops = rate in (Fraction(30000, 1001), Fraction(60000, 1001))
    return Counting(rate, drops and (";" in index.timecode or not index.timecode))


def _reels_of(videos: Iterable[Path]) -> dict[Path, str]:
    """A name for each video: the start of its file's, with a number where that is taken."""
    reels: dict[Path, str] = {}
    for video in videos:
        letters = re.sub(r"[^a-zA-Z0-9]+", "", video.stem).upper() or "VIDEO"
        reel, number = letters[:_REEL], 1
        while reel in reels.values():
            number += 1
            reel = f"{letters[: _REEL - _REEL_NUMBER]}{number:0{_REEL_NUMBER}}"
        reels[video] = reel
    return reels


def _clip(hit: Hit, index: PacketIndex, rate: Fraction) -> otio.schema.Clip:
    first = _first_frame(index, rate)
    start, end = frames_on_screen(hit.moment.start_s, hit.moment.end_s, rate)
    available = otio.opentime.TimeRange(
        _time(first, rate), _time(max(round(index.end_s * rate), end), rate)
    )
    clip = otio.schema.Clip(
        name=_one_line(hit.query) or hit.path.stem,
        media_reference=otio.schema.ExternalReference(_address(hit.path), available),
        source_range=otio.opentime.TimeRange(_time(first + start, rate), _time(end - start, rate)),
    )
    clip.metadata["mrmodel"] = {
        **hit.as_row(),
        "frame_rate": float(index.rate),
        "constant_rate": index.constant,
        "greatest_deviation_s": index.deviation_s,
    }
    return clip


def _first_frame(index: PacketIndex, rate: Fraction) -> int:
    """The frame number of a player's second 0 by the file's timecode."""
    if not index.timecode:
        return 0
    return int(otio.opentime.from_timecode(index.timecode, float(rate)).value)


def _time(frames: int, rate: Fraction) -> otio.opentime.RationalTime:
    return otio.opentime.RationalTime(frames, float(rate))


def _address(video: Path) -> str:
    if is_pointer(video):
        return read_video_pointer(video).url
    return video.absolute().as_uri()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def rate_note(index: PacketIndex) -> str:
    """What edit lists are wrong about, for a file of variable frame rate."""
    rate, deviation = float(index.rate), index.deviation_s
    return (
        f"its frame rate varies: edit lists count {rate:.3f} frames a second, the average, by "
        f"which frames are up to {deviation:.3f} s away from their times"
    )
