"""Infers the feature streams of a published checkpoint, which only records a total width.

Names come from the user, else from the feature folders in the trainer's options, else from the
width, which is unique for the published combinations. An encoder named by the user is recorded with
its fingerprint. Features of other programs have none: `ModelStream.fingerprint` is then None, even
if an encoder of that name is registered, because the model was not trained on its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from mrmodel.components import ENCODERS
from mrmodel.encoders.base import build_encoder
from mrmodel.errors import CheckpointError
from mrmodel.features.manifest import stream_fingerprint
from mrmodel.files import digest_of
from mrmodel.train.checkpoint import ModelStream

Modality = Literal["video", "text"]


@dataclass(frozen=True, slots=True)
class StreamName:
    """A stream named by the user (or a table below); without `dim` the encoder determines it."""

    name: str
    dim: int | None = None


# A word in the name of a published feature folder -> the stream.
_FOLDERS: dict[Modality, dict[str, StreamName]] = {
    "video": {
        "slowfast": StreamName("slowfast.video2304", 2304),
        "clip": StreamName("clip_b32.video512", 512),
        "blip": StreamName("blip2.video768", 768),
        "resnet": StreamName("resnet152.video2048", 2048),
        "i3d": StreamName("i3d.video2048", 2048),
        "vgg": StreamName("vgg.video4096", 4096),
        "pann": StreamName("pann.audio2048", 2048),
        "internvideo2": StreamName("internvideo2_1b.video512", 512),
    },
    "text": {
        "clip": StreamName("clip_b32.text512", 512),
        "blip": StreamName("blip2.text768", 768),
        "glove": StreamName("glove.text300", 300),
        "internvideo2": StreamName("internvideo2_1b.text512", 512),
    },
}
# Concatenation order of the published runs, for files without folder names.
_USUAL: dict[Modality, dict[int, tuple[str, ...]]] = {
    "video": {
        512: ("clip",),
        2304: ("slowfast",),
        2816: ("slowfast", "clip"),
        3584: ("slowfast", "clip", "blip"),
        4864: ("slowfast", "clip", "pann"),
    },
    "text": {300: ("glove",), 512: ("clip",), 1280: ("clip", "blip")},
}
# The same for SG-DETR, whose features have the width of CLIP.
_USUAL_OF_SG_DETR: dict[Modality, dict[int, tuple[str, ...]]] = {
    "video": {512: ("internvideo2",)},
    "text": {512: ("internvideo2",)},
}
_FOLDER_OPTIONS: dict[Modality, tuple[str, ...]] = {
    "video": ("v_feat_dirs", "a_feat_dirs", "a_feat_dir"),
    "text": ("t_feat_dirs", "t_feat_dir"),
}


def parse_streams(text: str) -> tuple[StreamName, ...]:
    """Parse ``embedded.video,slowfast:2304`` to names with widths.

    Raises:
        CheckpointError: a name is empty, or a width is not a positive number.
    """
    names = []
    for part in text.split(","):
        name, colon, width = part.strip().partition(":")
        if not name or (colon and not (width.isdecimal() and int(width))):
            rule = "expected NAME or NAME:WIDTH, separated by commas"
            raise CheckpointError(f"streams {text!r}: {part.strip()!r}: {rule}")
        names.append(StreamName(name, int(width) if colon else None))
    return tuple(names)


def usual_streams(
    model: str, modality: Modality, width: int, options: Mapping[str, Any]
) -> tuple[StreamName, ...]:
    """The most likely streams of a checkpoint.

    Args:
        model: a name of `SIGNATURE_KEYS`.
        modality: ``video`` or ``text``.
        width: channels of all streams together, without TEF.
        options: options of the published trainer; its feature folders give the order.

    Raises:
        CheckpointError: neither the folders nor the width determine them, or the folders are not
            names.
    """
    known = _FOLDERS[modality]
    named = [_stream_of(folder, known) for folder in _folders(modality, options)]
    found = tuple(stream for stream in named if stream is not None)
    if len(found) == len(named) and sum(stream.dim or 0 for stream in found) == width:
        return found
    usual = (_USUAL_OF_SG_DETR if model == "sg_detr" else _USUAL)[modality]
    if width in usual:
        return tuple(known[word] for word in usual[width])
    raise CheckpointError(
        f"the {modality} features have {width} channels, which says nothing about what they are; "
        f"name them: --{modality}-streams NAME[:WIDTH],..."
    )


def published_streams(
    model: str, modality: Modality, width: int, options: Mapping[str, Any]
) -> tuple[ModelStream, ...]:
    """`usual_streams` in the form of a model folder, without fingerprints.

    Raises:
        CheckpointError: see `usual_streams`.
    """
    found = usual_streams(model, modality, width, options)
    return tuple(ModelStream(stream.name, stream.dim or 0, None) for stream in found)


def model_streams(
    names: Sequence[StreamName], modality: Modality, width: int, clip_len_s: float
) -> tuple[ModelStream, ...]:
    """The user's streams in the form of a model folder, `width` channels in total.

    Raises:
        WeightsError: an encoder with user weights has none.
        CheckpointError: an unknown stream without a width, an encoder of another width or of the
            other modality, or a sum that is not `width`.
    """
    streams = tuple(_model_stream(name, modality, clip_len_s) for name in names)
    total = sum(stream.dim for stream in streams)
    if total != width:
        parts = " + ".join(f"{stream.name} {stream.dim}" for stream in streams)
        plus = " beside the two temporal end-points" if modality == "video" else ""
        raise CheckpointError(
            f"the {modality} streams {parts} have {total} channels, the file's model reads "
            f"{width}{plus}"
        )
    return streams


def _model_stream(wanted: StreamName, modality: Modality, clip_len_s: float) -> ModelStream:
    name = wanted.name
    if name not in ENCODERS:
        if wanted.dim is None:
            known = ", ".join(sorted(ENCODERS))
            raise CheckpointError(
                f"{name!r} is no registered encoder (known: {known}); for features that another "
                f"program makes give the width as well: {name}:WIDTH"
            )
        return ModelStream(name, wanted.dim, None)
    encoder = build_encoder(name)
    if encoder.modality != modality:
        raise CheckpointError(f"{name} encodes {encoder.modality}, expected a {modality} stream")
    if wanted.dim not in (None, encoder.dim):
        raise CheckpointError(f"{name} has {encoder.dim} channels, not {wanted.dim}")
    length = clip_len_s if modality == "video" else None
    fingerprint = digest_of(stream_fingerprint(encoder.fingerprint(), length))
    return ModelStream(name, encoder.dim, fingerprint)


def _folders(modality: Modality, options: Mapping[str, Any]) -> list[str]:
    folders: list[str] = []
    for option in _FOLDER_OPTIONS[modality]:
        value = options.get(option) or []
        if not isinstance(value, (str, list, tuple)):
            raise CheckpointError(f"{option} is {value!r}; expected a folder or a list of them")
        folders += [value] if isinstance(value, str) else [str(folder) for folder in value]
    return folders


def _stream_of(folder: str, known: Mapping[str, StreamName]) -> StreamName | None:
    last = PurePosixPath(folder).name.lower()
    return next((stream for word, stream in known.items() if word in last), None)
