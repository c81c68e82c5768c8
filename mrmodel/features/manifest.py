"""manifest.json of a feature store: describes the rows and lists their files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrmodel.config.base import first_mistake
from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.files import digest_of, write_json
from mrmodel.names import ShardFile, StreamName

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StreamInfo(_Frozen):
    """Description of the rows of one stream.

    Attributes:
        stream: name of the stream, equal to that of its encoder.
        dim: channels of a row.
        modality: whether rows are clips of a video or tokens of a text.
        keyed_by: kind of the keys: video ids, or `keys.text_key` of a query.
        clip_len_s: seconds of one row; None for text.
        normalised: whether rows were L2-normalised before they were stored.
        fingerprint: everything that determines the values, see `stream_fingerprint`.
    """

    stream: StreamName
    dim: Annotated[int, Field(ge=1)]
    modality: Literal["video", "text"]
    keyed_by: Literal["vid", "text"]
    clip_len_s: Annotated[float, Field(gt=0)] | None
    normalised: bool = False
    fingerprint: dict[str, Any]


class ShardInfo(_Frozen):
    """One file of rows."""

    file: ShardFile
    rows: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(_Frozen):
    """Content of manifest.json."""

    schema_version: Literal[1]
    dtype: Literal["float16"]
    info: StreamInfo
    shards: list[ShardInfo]


def write_manifest(folder: Path, info: StreamInfo, shards: list[ShardInfo]) -> Manifest:
    """Write manifest.json, the last file of a store: a folder without it is incomplete."""
    manifest = Manifest(schema_version=SCHEMA_VERSION, dtype="float16", info=info, shards=shards)
    write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        FeatureError: it is missing (not a store, or incomplete), or a value is invalid.
    """
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        hint = "not a feature store, or its extraction did not finish"
        raise FeatureError(f"{folder}: no {MANIFEST_FILE}: {hint}") from None
    except ValidationError as error:
        raise FeatureError(f"{path}: {first_mistake(error, 'file')}") from None


def stream_fingerprint(
    encoder_fingerprint: dict[str, Any], clip_len_s: float | None
) -> dict[str, Any]:
    """Everything that determines the values of a stream, as JSON; DVC does not track this.

    Training rejects features whose fingerprint differs between the corpora of one experiment, and
    a served model rejects features with a fingerprint other than its own.
    """
    length = None if clip_len_s is None else float(clip_len_s)  # 2 and 2.0 differ as JSON
    return {**encoder_fingerprint, "clip_len_s": length, "store_schema": SCHEMA_VERSION}


def has_sentence_row(info: StreamInfo) -> bool:
    """Whether row 0 of a text is its sentence vector, in the space of the clip vectors.

    Encoders whose first row is something else declare that as ``layout`` in their fingerprint;
    rows of published archives are token states in a separate space.
    """
    if "imported" in info.fingerprint:
        return False
    return str(info.fingerprint.get("layout", "sentence")).startswith("sentence")


def require_fingerprint(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that features were made as expected.

    Raises:
        FeatureMismatch: names the features and each entry that differs.
    """
    if digest_of(found) == digest_of(expected):
        return
    differing = [
        f"{key} is {found.get(key)!r}, expected {expected.get(key)!r}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    raise FeatureMismatch(f"{name}: made in another way: {'; '.join(differing)}")
