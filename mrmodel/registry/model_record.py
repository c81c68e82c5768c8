"""record.json of a version: where a registered model came from, its metrics, leaked test videos."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mrmodel.errors import DataError
from mrmodel.pretraining.intervid.decontaminate import base_video
from mrmodel.stages.test_set import TestSetContents

RECORD_FILE = "record.json"
# What these say is in the record itself.
_RECORDED = ("params.yaml", "dvc.lock")


class Frozen(BaseModel):
    """A part of a record: no unknown keys, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Frozen):
    """A figure of the test set with its bootstrap interval."""

    value: float
    low: float
    high: float
    queries: int
    videos: int


class TestSet(Frozen):
    """Which queries the figures are of, and how they were scored."""

    __test__ = False  # pytest would take the class for one of its own

    digest: str
    split: str
    queries: int
    videos: int
    protocol: str
    mode: str


class ModelRecord(Frozen):
    """Everything that is known of a model when it is registered.

    Attributes:
        way: what was evaluated, e.g. ``sg_detr.finetuned``.
        model: config.json of the model folder.
        weights_sha256, config_sha256: of the two files of the model folder.
        parameters: how many numbers the weights are.
        code: git revision, whether the tree differed from it, digest of dvc.lock.
        params: the whole parameter file.
        lock: the stages of dvc.lock: commands, parameters and hashes of all inputs and outputs.
        corpus: corpus.json.
        test_set: see `TestSet`.
        headline: the figure that decides, a key of `figures`.
        figures: by name, with intervals at `confidence`.
        confidence: of the intervals.
        predictions_sha256: of the answers to the test queries.
        streams: fingerprint of each feature stream, as a digest.
        leaks: test videos that training may have seen, by set; empty when all is well.
        environment: versions of what it was registered with.
        licences: of code, data and the weights inside the encoders.
        limits: sentences of the parameter file.
    """

    format: Literal[1] = 1
    way: str
    model: dict[str, Any]
    weights_sha256: str
    config_sha256: str
    parameters: int
    code: dict[str, str]
    params: dict[str, Any]
    lock: dict[str, Any]
    corpus: dict[str, Any]
    test_set: TestSet
    headline: str
    figures: dict[str, Figure]
    confidence: float
    predictions_sha256: str
    streams: dict[str, str]
    leaks: dict[str, list[str]]
    environment: dict[str, str]
    licences: dict[str, str]
    limits: list[str]

    def unsaved_files(self) -> list[str]:
        """Files that differed from the revision and of which the record holds no copy."""
        changed = self.code.get("git.changed", "").split()
        return [name for name in changed if name not in _RECORDED]


def read_record(text: str, where: str) -> ModelRecord:
    """Read record.json.

    Raises:
        DataError: a field breaks a rule; `where` names the file.
    """
    try:
        return ModelRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {first['msg']}", file=where) from None


# Tags of a registered version; the gate refuses one that has any.
TAG = "leakage."


def find_leaks(
    test: TestSetContents, others: Mapping[str, Collection[str]], contents: Mapping[str, str]
) -> dict[str, list[str]]:
    """Test videos that other sets hold too.

    A segment counts as its whole video. A copy under another id is found by its bytes.

    Args:
        test: the set that figures are reported on.
        others: video ids of each set that training or the choice of weights may see.
        contents: SHA-256 of the file by video id; empty or absent where it is not known.

    Returns:
        The sets that leak, each with the ids of the test videos in it.
    """
    names = {base_video(str(row["vid"])) for row in test.rows} | set(test.videos)
    known = {digest: vid for vid, digest in test.videos.items() if digest}
    leaks = {}
    for name, vids in others.items():
        found = set()
        for vid in {base_video(vid) for vid in vids} | set(vids):
            if vid in names:
                found.add(vid)
            elif contents.get(vid) in known:
                found.add(known[contents[vid]])
        if found:
            leaks[name] = sorted(found)
    return leaks
