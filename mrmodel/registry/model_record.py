"""record.json of a version, and its card: origin, metrics, leaked test videos."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrmodel.config.base import first_mistake
from mrmodel.errors import DataError
from mrmodel.features.keys import base_video
from mrmodel.stages.test_set import TestSetContents

RECORD_FILE = "record.json"
# Their content is in the record itself.
_RECORDED = ("params.yaml", "dvc.lock")


class Frozen(BaseModel):
    """Base of record parts: no unknown keys, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordedMetric(Frozen):
    """A metric on the test set with its bootstrap interval."""

    value: float
    low: float
    high: float
    queries: int
    videos: int


class TestSet(Frozen):
    """The queries that the metrics are computed on, and the scoring."""

    __test__ = False  # pytest would collect the class

    digest: str
    split: str
    queries: int
    videos: int
    protocol: str
    mode: str


class ModelRecord(Frozen):
    """Everything known about a model at registration.

    Attributes:
        way: the evaluated variant, e.g. ``sg_detr.finetuned``.
        model: config.json of the model folder.
        weights_sha256, config_sha256: of the two files of the model folder.
        parameters: number of values in the weights.
        code: git revision, whether the tree differed from it, digest of dvc.lock.
        params: the whole parameter file.
        lock: the stages of dvc.lock: commands, parameters and hashes of all inputs and outputs.
        corpus: corpus.json.
        test_set: see `TestSet`.
        headline: the metric that decides, a key of `figures`.
        figures: metrics by name, with intervals at `confidence`.
        confidence: of the intervals.
        predictions_sha256: of the predictions for the test queries.
        streams: fingerprint of each feature stream, as a digest.
        leaks: test videos that training may have seen, by set; empty if there are none.
        environment: versions of the software used for registration.
        licences: of code, data and the weights inside the encoders.
        limits: limitations stated in the parameter file.
        pretraining: data card of the InterVid-MR queries that the weights were pre-trained on, see
            `pretraining.intervid.card`; None: on none, or a record of an earlier release.
        files: SHA-256 of every file that a version is judged or served by (the MLflow model with
            its code, the predictions, the answers), by path; None in records of earlier releases.
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
    figures: dict[str, RecordedMetric]
    confidence: float
    predictions_sha256: str
    streams: dict[str, str]
    leaks: dict[str, list[str]]
    environment: dict[str, str]
    licences: dict[str, str]
    limits: list[str]
    pretraining: dict[str, Any] | None = Field(default=None, exclude_if=lambda card: card is None)
    files: dict[str, str] | None = Field(default=None, exclude_if=lambda files: files is None)

    def unsaved_files(self) -> list[str]:
        """Files that differed from the revision and that the record does not contain."""
        changed = self.code.get("git.changed", "").split()
        return [name for name in changed if name not in _RECORDED]


def read_record(text: str, where: str) -> ModelRecord:
    """Read record.json.

    Raises:
        DataError: a field is invalid; `where` names the file.
    """
    try:
        return ModelRecord.model_validate_json(text)
    except ValidationError as error:
        raise DataError(first_mistake(error), file=where) from None


# Prefix of tags of a registered version; the gate rejects a version that has any.
TAG = "leakage."


def find_leaks(
    test: TestSetContents, others: Mapping[str, Collection[str]], contents: Mapping[str, str]
) -> dict[str, list[str]]:
    """Test videos that other sets also contain.

    A segment counts as its whole video. A copy under another id is detected by its bytes.

    Args:
        test: the set that metrics are reported on.
        others: video ids of each set that training or model selection may see.
        contents: SHA-256 of the file by video id; empty or absent if unknown.

    Returns:
        The sets that leak, each with the ids of its test videos.
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


CARD_FILE = "card.md"
# A metric over fewer queries is unreliable, however narrow its interval looks.
_FEW_QUERIES = 30


def render_card(record: ModelRecord, name: str) -> str:
    """The card of a record as Markdown.

    Args:
        record: of the version.
        name: of the registered model.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8")
    template = environment.from_string(text)
    return template.render(name=name, record=record, limits=limits(record)) + "\n"


def limits(record: ModelRecord) -> list[str]:
    """Limitations of the model that can be read from the record."""
    found = list(record.limits)
    if record.corpus["source"] == "sample":
        found.append(
            "Trained on a toy domain, pictograms that move over drawn scenes: it says nothing of "
            "real videos."
        )
    clips, clip_len_s = record.model["max_clips"], record.model["clip_len_s"]
    if clips is not None:
        found.append(
            f"Sees {clips * clip_len_s:g} s at once; longer videos are searched in overlapping "
            f"chunks, and a moment of more than {clips * clip_len_s / 2:g} s may be cut."
        )
    found.append(
        f"Windows are whole clips of {clip_len_s:g} s; a query is cut after "
        f"{record.model['max_tokens']} tokens."
    )
    few = [name for name, figure in record.figures.items() if figure.queries < _FEW_QUERIES]
    if few:
        which = ", ".join(few) if len(few) < len(record.figures) else "every metric"
        found.append(f"Fewer than {_FEW_QUERIES} queries stand behind {which}.")
    if record.test_set.split == "val":
        found.append("Figures are of the split that also chose the weights: they are optimistic.")
    changed = record.unsaved_files()
    if changed:
        found.append(f"Made with changes that no commit holds, in {', '.join(changed)}.")
    found += [
        f"Figures are too good: the set {name} holds test videos ({', '.join(vids[:5])})."
        for name, vids in record.leaks.items()
    ]
    return found
