"""What a published feature archive looks like: which folder holds which stream, under which ids.

Ids are found by rule in all layouts (`mrmodel.features.archive`); a layout says only what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VIDEO_ARRAYS = ("features",)
# States of all tokens if they are there, else the one vector of the sentence.
TEXT_ARRAYS = ("last_hidden_state", "token", "pooler_output", "text")


@dataclass(frozen=True, slots=True)
class ImportedStream:
    """One feature stream of an archive.

    Attributes:
        name: of the stream, as models and `mrmodel weights import` call it.
        modality: whether ids are those of videos or of queries; audio counts as video.
        dim: channels of a row.
        folders: places below the archive's root, alternatives; the first that is there is read. A
            name with ``.hdf5`` is a file with one data set an id, which UniVTG wrote normalised.
        more: further folders whose files are read as well.
        parts: endings of several files of one id, whose channels are joined in this order.
        words: rows are made of a file of word vectors, and the archive has none.
    """

    name: str
    modality: Literal["video", "text"]
    dim: int
    folders: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)
    words: bool = False

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the array within a file, the first that is there is read."""
        return VIDEO_ARRAYS if self.modality == "video" else TEXT_ARRAYS


@dataclass(frozen=True, slots=True)
class Layout:
    """A published archive.

    Attributes:
        title: what it is, for people.
        clip_len_s: seconds of a row; None where archives of several data sets look like this.
        streams: what it holds, in the order in which the published systems concatenate them.
        datasets: names of the data sets that it is of; empty where archives of all look like this.
    """

    title: str
    clip_len_s: float | None
    streams: tuple[ImportedStream, ...]
    datasets: tuple[str, ...] = ()


def slowfast(*folders: str) -> ImportedStream:
    """SlowFast R50 8x8 of the HERO extractor."""
    return ImportedStream("slowfast.video2304", "video", 2304, folders)


def clip(*folders: str) -> ImportedStream:
    """CLIP ViT-B/32 image vectors."""
    return ImportedStream("clip_b32.video512", "video", 512, folders)


def clip_text(*folders: str, more: tuple[str, ...] = ()) -> ImportedStream:
    """CLIP ViT-B/32 states of all tokens, before the text projection."""
    return ImportedStream("clip_b32.text512", "text", 512, folders, more)


def glove() -> ImportedStream:
    """GloVe 6B vectors of the words, looked up in a file that the user names."""
    return ImportedStream("glove.text300", "text", 300, words=True)
