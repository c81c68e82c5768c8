"""Names by kind: what each may hold, checked wherever one enters.

A name becomes a word of a command, a part of a path, or a part of an address. So it holds nothing
that a shell, a file system or a server reads as more than a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from mrmodel.errors import ConfigError

# Bytes of a name in a path: file systems allow 255, and temporary files have longer names.
LONGEST_PART = 200


@dataclass(frozen=True, slots=True)
class NameKind:
    """One kind of name.

    Attributes:
        pattern: fits the whole name.
        rule: the same in words.
    """

    pattern: re.Pattern[str]
    rule: str

    def fits(self, name: object) -> bool:
        """Whether `name` is one of this kind."""
        return isinstance(name, str) and self.pattern.fullmatch(name) is not None

    def check(self, name: str) -> str:
        """Return `name`, for a field of settings.

        Raises:
            ValueError: it is none of this kind.
        """
        if not self.fits(name):
            raise ValueError(self.rule)
        return name

    def require(self, place: str, name: object) -> None:
        """Check a name that is no field of settings.

        Raises:
            ConfigError: it is none of this kind; `place` says where it stands.
        """
        if not self.fits(name):
            shown = name[:LONGEST_PART] if isinstance(name, str) else name
            raise ConfigError(place, shown, self.rule)


def _kind(pattern: str, words: str) -> NameKind:
    return NameKind(re.compile(rf"(?=.{{1,100}}\Z){pattern}"), f"{words}, 100 characters at most")


_LOWER = "must be lower-case letters, digits and _"
STREAM = _kind(
    r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*",
    "must be letters, digits, _ and -, in parts joined by points",
)
CORPUS = _kind(r"[a-z0-9_]+", _LOWER)
PRESET = _kind(r"[a-z0-9_]+", _LOWER)
MODEL = _kind(r"[A-Za-z0-9_][A-Za-z0-9_-]*", "must be letters, digits, _ and -")
STUDY = _kind(r"[a-z0-9][a-z0-9_-]*", f"{_LOWER} and -, the first no sign")
REGISTERED_MODEL = STUDY
# The trials of a study, or of one that confirms it: main, main.confirm.0123abcd
SEARCH = _kind(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*", f"{_LOWER}, - and points")
POOL = _kind(r"[A-Za-z0-9_][A-Za-z0-9_. -]*", "must be letters, digits, spaces, _, - and points")
# Rows of the study `pretraining`: a model, what it is pre-trained on, and how many samples of that.
PRETRAINING_ROW = _kind(
    r"[A-Za-z0-9_][A-Za-z0-9_-]*\.(none|video_captions|intervid_mr(\.[1-9][0-9]*)?)",
    "must be <model>.none, <model>.intervid_mr, <model>.intervid_mr.<number of samples> or "
    "<model>.video_captions",
)
SHARD_FILE = _kind(r"shard-[0-9]{5}\.npy", "must be shard-NNNNN.npy")

StreamName = Annotated[str, AfterValidator(STREAM.check)]
CorpusName = Annotated[str, AfterValidator(CORPUS.check)]
PresetName = Annotated[str, AfterValidator(PRESET.check)]
ModelName = Annotated[str, AfterValidator(MODEL.check)]
StudyName = Annotated[str, AfterValidator(STUDY.check)]
RegisteredModelName = Annotated[str, AfterValidator(REGISTERED_MODEL.check)]
PretrainingRow = Annotated[str, AfterValidator(PRETRAINING_ROW.check)]
PoolName = Annotated[str, AfterValidator(POOL.check)]
ShardFile = Annotated[str, AfterValidator(SHARD_FILE.check)]


def _folder(path: str) -> str:
    parts = path.split("/")
    if ".." in parts or not path.isprintable() or "\\" in path:
        raise ValueError("must not hold .., a backslash or a character that cannot be printed")
    if not path.startswith("/"):
        if ":" in path or path.startswith("~"):
            raise ValueError("must be a folder of the repository, or an absolute path; no address")
        # Some disks know no difference of case.
        named = [part.lower() for part in parts if part not in ("", ".")]
        if not named or named[0] in (".git", ".dvc"):
            raise ValueError("must be a folder inside the repository")
    return path


# A folder of the repository. An absolute one is read, too: the stages only depend on it, and DVC
# deletes outputs alone. A run's own changes of parameters must stay inside the repository.
FolderName = Annotated[str, AfterValidator(_folder)]


def is_inside(folder: str) -> bool:
    """Whether a `FolderName` lies in the repository by its name."""
    return not PurePosixPath(folder).is_absolute()


def problem_of_part(name: str) -> str | None:
    """Why `name` cannot be one part of a path and of a key in a store; None: it can."""
    if not name.isprintable() or "/" in name or "\\" in name:
        return "holds a slash, a backslash or an unprintable character"
    if not name or name.startswith("."):
        return "is empty or begins with a point"
    if len(name.encode()) > LONGEST_PART:
        return f"has more than {LONGEST_PART} bytes"
    return None
