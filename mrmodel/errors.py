"""Errors for users; their messages name the location of the mistake.

`MrModelError` is the base class. `exit_codes` is the border of every program: what the user or the
machine caused is one line, any other exception is a defect and keeps its traceback
(docs/reference/errors.md).
"""

from __future__ import annotations

import difflib
import errno
import reprlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mrmodel.text import shortened

# Exit codes; 1 is of a run that ended without a mistake and without the wanted result.
MISTAKE, DEFECT = 2, 70
# Characters of an id in a message; a file may bring one of any length.
LONGEST_ID = 80
# Errors of the operating system that concern no file by name.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE}


class MrModelError(Exception):
    """Base class of all errors caused by input rather than by bugs."""


# Aliases of YAML make a value of gigabytes in a file of a few hundred bytes.
_SHOWN, _LONGEST_VALUE = reprlib.Repr(), 400
_SHOWN.maxlevel, _SHOWN.maxlist = 3, 12
_SHOWN.maxstring = _SHOWN.maxother = 200


class ConfigError(MrModelError):
    """A value in params.yaml (or a preset) is invalid.

    Args:
        path: dotted path of the value, e.g. ``train.finetune.lr``.
        value: the value; mappings are not shown in the message.
        rule: the violated rule, as a sentence fragment.
        nearest: similar valid names, if the mistake looks like a misspelling.
    """

    def __init__(self, path: str, value: object, rule: str, nearest: Sequence[str] = ()) -> None:
        self.path, self.value, self.rule, self.nearest = path, value, rule, tuple(nearest)
        hint = suggestion(nearest)
        # A rule about several keys names them itself; printing the whole section would hide it.
        found = (
            ""
            if isinstance(value, Mapping)
            else f" = {shortened(_SHOWN.repr(value), _LONGEST_VALUE)}"
        )
        super().__init__(f"{path}{found}: {rule}{hint}")


class DataError(MrModelError):
    """A record of a data file is invalid.

    Args:
        rule: what is wrong and what was expected.
        file: the file, if there is one.
        line: 1-based line number.
        qid: query id (or another record id) if the record has one.
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
        who = "" if qid is None else f"qid {shortened(repr(qid), LONGEST_ID)}: "
        super().__init__(f"{place}{who}{rule}")

    def at(self, file: Path, line: int | None, qid: object) -> DataError:
        """This error of a record at its place; a `qid` that is no id, or no text, is left out."""
        is_text = isinstance(qid, str) and qid.isprintable()
        known = qid if is_text or isinstance(qid, int) else None
        return DataError(self.rule, file=file, line=line, qid=known)


class FileFormatError(DataError):
    """A whole file has another format than expected, so no record of it can be read."""


class OutputError(MrModelError, OSError):
    """A file cannot be written, for a reason outside of this program.

    Args:
        path: what should be written.
        error: what happened.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        OSError.__init__(self, error.errno, error.strerror, str(path))
        self._rule = f"cannot be written: {reason_of(error)}"

    def __str__(self) -> str:
        return f"{self.filename}: {self._rule}"


class VideoError(MrModelError):
    """A video file cannot be decoded; `code` is a stable name such as ``no_video_stream``."""

    def __init__(self, path: Path | str, code: str, detail: str) -> None:
        self.path, self.code, self.detail = path, code, detail
        super().__init__(f"{path}: {code}: {detail}")


class FeatureError(MrModelError):
    """A feature store is damaged, incomplete, or lacks a requested key."""


class FeatureMismatch(FeatureError):
    """Features were made by another encoder, or with other settings, than expected."""


class WeightsError(MrModelError):
    """Encoder weights are missing or differ from the SHA-256 in weights.lock."""


class CheckpointError(MrModelError):
    """A model folder cannot be loaded: missing file, wrong shapes, unknown model."""


class TrainingError(MrModelError):
    """Training cannot go on, e.g. a loss stopped being finite."""


class StoppedEarly(MrModelError):
    """A training was stopped deliberately, not by a failure."""


class TuningError(MrModelError):
    """A hyperparameter search cannot start, continue or be applied."""


class StorageError(MrModelError):
    """A store is unreachable, denies access or holds damaged data; messages hold no secrets.

    Args:
        store: address of the store, without credentials.
        rule: what went wrong.
        key: the object's key, if the error concerns one.
    """

    def __init__(self, store: str, rule: str, *, key: str | None = None) -> None:
        self.store, self.rule, self.key = store, rule, key
        super().__init__(f"{store}: {rule}" if key is None else f"{store}: key {key!r}: {rule}")


class ObjectMissing(StorageError):
    """There is no such object, or no such bucket."""


class ObjectChanged(StorageError):
    """An object is no longer the requested version."""


class ConflictError(MrModelError):
    """A conditional write failed; nothing was written.

    Args:
        store: address of the store, without credentials.
        key: the object's key.
        rule: the condition that does not hold.
    """

    def __init__(self, store: str, key: str, rule: str) -> None:
        self.store, self.key, self.rule = store, key, rule
        super().__init__(f"{store}: key {key!r}: {rule}")


class LibraryError(MrModelError):
    """A library is missing, damaged, in use, or holds rows of other encoders."""


class OrchestrationError(MrModelError):
    """A stage or the pipeline could not be run on the workers."""


class RegistryError(MrModelError):
    """The model registry lacks a version, or is inconsistent."""


class AlreadyChampion(RegistryError):
    """The version is already the champion."""


class PromotionRefused(MrModelError):
    """A gate failed; the message lists every failed gate with its metrics."""


class DeliveryError(MrModelError):
    """New data cannot be ingested, for a reason outside the data."""


class UnknownNameError(MrModelError):
    """A registry has no component of that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        self.kind, self.name, self.nearest = kind, name, nearest_names(name, names)
        hint = suggestion(self.nearest)
        super().__init__(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The two valid names most similar to `name`, best first; empty if none is close."""
    return difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)


class NameHints:
    """Suggestions for wrong names, of which a file from outside may have a million.

    Each takes a comparison with all known names, and people read the first ones.
    """

    MOST = 50

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def of(self, name: str, known: Iterable[str]) -> str:
        """See `suggestion`; empty for names beyond the first `MOST`."""
        if name not in self._found:
            if len(self._found) >= self.MOST:
                return ""
            self._found[name] = suggestion(nearest_names(name, known))
        return self._found[name]


def suggestion(near: Sequence[str]) -> str:
    """A message suffix that suggests the nearest valid names; empty if there are none."""
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def reason_of(error: OSError) -> str:
    """Why the operating system refused, in words."""
    match error:
        case IsADirectoryError():
            return "is a folder"
        case NotADirectoryError() | FileExistsError():
            return "a file is in the place of a folder"
        case FileNotFoundError():
            return "no such file or folder"
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]


def is_of_the_machine(error: OSError) -> bool:
    """Whether it is about the machine, such as a full disk, and names no file."""
    return error.filename is None and error.errno in _OF_THE_MACHINE


def mistake_in(error: BaseException) -> str | None:
    """The message for the user; None: nobody but this program caused the error."""
    if isinstance(error, MrModelError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {reason_of(error)}"
    if isinstance(error, OSError) and is_of_the_machine(error):
        return reason_of(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"not enough memory on the device: {str(error).partition('.')[0]}"
    return None


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with `MISTAKE` and one line, or with `DEFECT` and a traceback."""
    try:
        yield
    except Exception as error:
        message = mistake_in(error)
        if message is None:
            traceback.print_exc()
            sys.stderr.write("This is a defect of mrmodel, not a mistake of yours.\n")
            sys.exit(DEFECT)
        sys.stderr.write(f"error: {message}\n")
        sys.exit(MISTAKE)
