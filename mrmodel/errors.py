"""Every error a user can meet, with the place of the mistake in its message.

`MrModelError` is the root: the command line prints it as one line and exits with 2. Anything else
that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class MrModelError(Exception):
    """Root of all errors that are the input's fault rather than ours."""


class ConfigError(MrModelError):
    """A value in params.yaml (or a preset) breaks a rule.

    Args:
        path: dotted path of the value, e.g. ``train.finetune.lr``.
        value: what was found there; a mapping is not repeated in the message.
        rule: the rule that it breaks, as a sentence fragment.
        nearest: close valid names, when the mistake looks like a misspelling.
    """

    def __init__(self, path: str, value: object, rule: str, nearest: Sequence[str] = ()) -> None:
        self.path, self.value, self.rule, self.nearest = path, value, rule, tuple(nearest)
        hint = suggestion(nearest)
        # A rule between the keys of a section names them itself; the whole section would hide it.
        found = "" if isinstance(value, Mapping) else f" = {value!r}"
        super().__init__(f"{path}{found}: {rule}{hint}")


class DataError(MrModelError):
    """A row of a data file breaks a rule.

    Args:
        rule: what is wrong and what was expected.
        file: the file, when there is one.
        line: 1-based line number.
        qid: query id (or another row id) when the row has one.
    """

    def __init__(
        self,
        rule: str,
        *,
        file: Path | str | None = None,
        line: int | None = None,
        qid: object = None,
    ) -> None:
        self.rule, self.file, self.line, self.qid = rule, file, line, qid
        place = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        who = "" if qid is None else f"qid {qid!r}: "
        super().__init__(f"{place}{who}{rule}")


class VideoError(MrModelError):
    """A video file cannot give frames; `code` is a stable name such as ``no_video_stream``."""

    def __init__(self, path: Path | str, code: str, detail: str) -> None:
        self.path, self.code, self.detail = path, code, detail
        super().__init__(f"{path}: {code}: {detail}")


class FeatureError(MrModelError):
    """A feature store is damaged, incomplete, or lacks a key that was asked for."""


class FeatureMismatch(FeatureError):
    """Features were made by another encoder, or another setting, than the ones expected."""


class WeightsError(MrModelError):
    """Encoder weights are missing or differ from the SHA-256 in weights.lock."""


class CheckpointError(MrModelError):
    """A model folder cannot be loaded: missing file, wrong shapes, unknown model."""


class TrainingError(MrModelError):
    """Training cannot go on, e.g. a loss stopped being finite."""


class StoppedEarly(MrModelError):
    """A training was ended on purpose; no failure of it."""


class TuningError(MrModelError):
    """A search for better values cannot begin, go on or be applied."""


class StorageError(MrModelError):
    """A store cannot be reached, refuses, or holds damaged bytes; no message holds a secret.

    Args:
        store: address of the store, without credentials.
        rule: what went wrong.
        key: the object's key, when it is about one.
    """

    def __init__(self, store: str, rule: str, *, key: str | None = None) -> None:
        self.store, self.rule, self.key = store, rule, key
        super().__init__(f"{store}: {rule}" if key is None else f"{store}: key {key!r}: {rule}")


class ObjectMissing(StorageError):
    """There is no such object, or no such bucket."""


class ObjectChanged(StorageError):
    """An object is no longer the version that was asked for."""


class ConflictError(MrModelError):
    """A conditional write came too late; nothing was written.

    Args:
        store: address of the store, without credentials.
        key: the object's key.
        rule: the condition that does not hold.
    """

    def __init__(self, store: str, key: str, rule: str) -> None:
        self.store, self.key, self.rule = store, key, rule
        super().__init__(f"{store}: key {key!r}: {rule}")


class OrchestrationError(MrModelError):
    """A stage, or the whole pipeline, could not be run on the workers."""


class RegistryError(MrModelError):
    """The model registry lacks a version, or its parts do not fit together."""


class AlreadyChampion(RegistryError):
    """There is nothing to decide about: the version serves already."""


class PromotionRefused(MrModelError):
    """A gate failed; the message lists every failed one with its figures."""


class DeliveryError(MrModelError):
    """New data cannot be taken in, for a reason that is not in the data."""


class UnknownNameError(MrModelError):
    """A registry has no component of that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        self.kind, self.name, self.nearest = kind, name, nearest_names(name, names)
        hint = suggestion(self.nearest)
        super().__init__(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def nearest_names(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """The valid names that look most like `name`, best first; empty when none is close."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def suggestion(near: Sequence[str]) -> str:
    """The end of a message that names the nearest valid names; empty when there are none."""
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
