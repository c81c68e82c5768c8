"""Hits as tasks of Label Studio with predictions, which people then correct.

The format is that of Label Studio's documentation: "Import pre-annotated data" for tasks,
"TimelineLabels" and "Video" for regions and frame rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from mrmodel.export.hits import Hit
from mrmodel.export.pieces import frames_on_screen
from mrmodel.version import __version__

_CONTROL, _OBJECT = "moments", "video"


def tasks_of(
    hits: Sequence[Hit], rates: Mapping[Path, Fraction], address: str
) -> list[dict[str, object]]:
    """One task per video, with one prediction that has a region for each hit.

    Args:
        hits: any order.
        rates: frames per second of each video; Label Studio counts frames, from 1.
        address: what stands before a video's absolute path, percent-encoded and without its first
            slash, in the address from which Label Studio reads it.
    """
    return [
        {
            "data": {
                "video": address + quote(str(video.absolute()).lstrip("/")),
                "fps": float(rate),
            },
            "predictions": [_prediction([hit for hit in hits if hit.path == video], rate)],
        }
        for video, rate in rates.items()
    ]


def labelling_setup(queries: Sequence[str]) -> str:
    """The labelling interface for such tasks: one label for each query."""
    labels = [f"    <Label value={quoteattr(query)}/>" for query in dict.fromkeys(queries)]
    lines = [
        "<View>",
        f'  <Video name="{_OBJECT}" value="$video" frameRate="$fps"/>',
        f'  <TimelineLabels name="{_CONTROL}" toName="{_OBJECT}">',
        *labels,
        "  </TimelineLabels>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def _prediction(hits: Sequence[Hit], rate: Fraction) -> dict[str, object]:
    return {
        "model_version": f"mrmodel {__version__}",
        "score": max(hit.moment.score for hit in hits),
        "result": [_region(number, hit, rate) for number, hit in enumerate(hits, start=1)],
    }


def _region(number: int, hit: Hit, rate: Fraction) -> dict[str, object]:
    first, after = frames_on_screen(hit.moment.start_s, hit.moment.end_s, rate)
    return {
        "id": f"hit-{number}",
        "from_name": _CONTROL,
        "to_name": _OBJECT,
        "type": "timelinelabels",
        "score": hit.moment.score,
        "value": {"ranges": [{"start": first + 1, "end": after}], "timelinelabels": [hit.query]},
    }
