"""corpus.json of a corpus folder, and the check before the folder is filled."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mrmodel.errors import DataError
from mrmodel.files import write_json

Split = Literal["pretrain", "train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Annotated pre-training rows, to train on and to validate with.
PRETRAINING = ("pretrain", "pretrain_val")


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """Counts of a corpus.

    Attributes:
        source: rendered, or imported from a folder.
        reported_split: the split whose metrics are reported: val where there is no test split.
        videos: number of video files, by purpose.
        queries: annotated queries per split, and those to pre-train on, if there are any.
        captions: rows of the caption table.
        rejected: number of rejected records and videos; corpus.json lists them.
        video_bytes: size of all video files.
    """

    source: Literal["sample", "folder"]
    reported_split: Literal["val", "test"]
    videos: dict[str, int]
    queries: dict[str, int]
    captions: int
    rejected: int
    video_bytes: int

    def write(self, out: Path, details: dict[str, Any]) -> None:
        """Write ``corpus.json``: these counts, then `details`."""
        write_json(out / "corpus.json", asdict(self) | details)


def refuse_foreign_videos(out: Path, expected: Collection[str]) -> None:
    """Raise if ``out/videos`` holds files of another corpus, which later stages would read.

    Raises:
        DataError: names the first of them.
    """
    folder = out / "videos"
    if not folder.is_dir():
        return
    # Names with a leading dot are leftovers of a killed write, which nothing reads.
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    foreign = sorted(present - set(expected))
    if foreign:
        shown = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        rule = f"holds {len(foreign)} files that are not of this corpus ({shown})"
        raise DataError(f"{rule}; move them away, or choose another `corpus.name`", file=folder)
