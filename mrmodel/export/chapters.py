"""Hits of one video as chapters, in WebVTT."""

from __future__ import annotations

from collections.abc import Sequence

from mrmodel.export.hits import Hit


def chapters_of(hits: Sequence[Hit]) -> str:
    """A WebVTT file with a chapter for each hit, in order of time, titled by its query.

    Chapters may lie inside each other, but must not overlap in part: where hits do, the earlier
    chapter ends where the later one starts.
    """
    ordered = sorted(hits, key=lambda hit: (_ticks(hit.moment.start_s), -hit.moment.end_s))
    cues = [(_ticks(hit.moment.start_s), _ticks(hit.moment.end_s), hit.query) for hit in ordered]
    blocks = ["WEBVTT"]
    for number, (start, end, query) in enumerate(cues, start=1):
        inner = [one for one in cues[number:] if one[0] < end < one[1] and one[0] > start]
        end = min([end, *(one[0] for one in inner)])
        end = max(end, start + 1)  # A cue of no length is none.
        blocks.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{_title(query)}")
    return "\n\n".join(blocks) + "\n"


def _ticks(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(ticks: int) -> str:
    seconds, ticks = divmod(ticks, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ticks:03}"


def _title(query: str) -> str:
    """One line without marks; a title must not be empty."""
    text = " ".join(query.split()) or "-"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
