"""Deliveries: folders in the incoming store, each with videos, annotations and captions.

The store belongs to the sender: nothing in it is moved, changed or deleted here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrmodel.config.schema import RetrainSettings
from mrmodel.data.ingest.videos import VIDEO_SUFFIXES
from mrmodel.files import digest_of
from mrmodel.names import problem_of_part
from mrmodel.storage import FolderStore, Store, Version

# Written last by the sender; without it a delivery may be incomplete.
MARKER = "COMPLETE"
CAPTIONS = "captions.jsonl"
VAL = "val.jsonl"
ANNOTATIONS = ("train.jsonl", VAL)
TEST = "test.jsonl"
VIDEOS = "videos"
# A table is read as a whole; QVHighlights has 7 MB.
_MOST_TABLE_MB = 256


@dataclass(frozen=True, slots=True)
class Delivery:
    """One folder of the incoming store.

    Attributes:
        name: of the folder.
        digest: of its files' names and store tags, without the marker; no content is read.
        files: their paths in the folder.
        complete: whether the marker is there.
        problem: why its name, or that of a file, cannot be stored; None: it can. A `name` that
            cannot is replaced by a short one.
        sizes: path -> bytes of each file in the listing.
    """

    name: str
    digest: str
    files: tuple[str, ...]
    complete: bool
    problem: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest: a corrected delivery of the same name is another one."""
        return self.name, self.digest

    @property
    def n_bytes(self) -> int:
        """Total size of the files that are used."""
        return sum(self.sizes.get(path, 0) for path in self.known)

    @property
    def known(self) -> list[str]:
        """The files that are used: tables and videos."""
        return [path for path in self.files if _is_known(path)]

    @property
    def ignored(self) -> list[str]:
        """The other files; a name that cannot be stored is replaced."""
        others = [path for path in self.files if not _is_known(path)]
        fits = [not any(map(problem_of_part, path.split("/"))) for path in others]
        return [path if fit else _short(path) for path, fit in zip(others, fits, strict=True)]


def list_deliveries(incoming: Store) -> list[Delivery]:
    """Deliveries in the incoming store, by name; objects outside of folders are ignored.

    Raises:
        StorageError: the store cannot be read.
    """
    folders: dict[str, dict[str, Version]] = defaultdict(dict)
    for key, version in incoming.listing().items():
        name, slash, path = key.partition("/")
        if slash and name and not name.startswith("."):
            folders[name][path] = version
    return [_delivery(name, folders[name]) for name in sorted(folders)]


def excess(delivery: Delivery, limits: RetrainSettings) -> str | None:
    """Which limit of size a delivery exceeds, by its listing alone; None: none."""
    if len(delivery.files) > limits.max_files:
        return f"brings {len(delivery.files)} files, limit retrain.max_files = {limits.max_files}"
    for table in (*ANNOTATIONS, CAPTIONS):
        size_mb = delivery.sizes.get(table, 0) / 1e6
        if size_mb > _MOST_TABLE_MB:
            return f"{table} has {size_mb:.0f} MB, limit {_MOST_TABLE_MB} MB; send it in parts"
    size_gb = delivery.n_bytes / 1e9
    if size_gb > limits.max_gb:
        return f"brings {size_gb:.4g} GB, limit retrain.max_gb = {limits.max_gb:g}"
    return None


def download(incoming: Store, delivery: Delivery, folder: Path) -> bool:
    """Download the known files of a delivery into `folder`.

    Returns:
        Whether it still equals the listed delivery; its files may have changed meanwhile.

    Raises:
        OSError: a file cannot be written here.
        StorageError: a file cannot be read, or has grown.
    """
    folder.mkdir(parents=True)
    for path in delivery.known:
        # Room was asked for by the listing, and its sender may write on.
        most_bytes = delivery.sizes.get(path)
        incoming.download(f"{delivery.name}/{path}", folder / path, most_bytes=most_bytes)
    now = incoming.listing(f"{delivery.name}/")
    files = {key.partition("/")[2]: version for key, version in now.items()}
    return _delivery(delivery.name, files).digest == delivery.digest


def delivery_in(folder: Path) -> Delivery:
    """A local folder, not yet in the store, as a delivery.

    Raises:
        StorageError: it cannot be read.
    """
    return _delivery(folder.resolve().name, FolderStore(folder).listing())


def _is_known(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if folder == VIDEOS:
        return Path(name).suffix.lower() in VIDEO_SUFFIXES
    return path in (*ANNOTATIONS, CAPTIONS, TEST)


def _delivery(name: str, files: Mapping[str, Version]) -> Delivery:
    content = {path: version.mark for path, version in files.items() if path != MARKER}
    named, problem = name, problem_of_part(name)
    if problem is not None:
        named, problem = _short(name), f"its name {problem}"
    for path in sorted(filter(_is_known, content)):
        part = path.rpartition("/")[2]
        if problem is None and (found := problem_of_part(part)) is not None:
            problem = f"the name of the file {_short(part)} {found}"
    return Delivery(
        named,
        digest_of(content),
        tuple(sorted(content)),
        MARKER in files,
        problem,
        {path: files[path].n_bytes for path in content},
    )


def _short(name: str) -> str:
    """A name for one that cannot be stored; other names have other ones."""
    shown = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name)
    return f"{shown.lstrip('.')[:40]}-{digest_of(name)[:12]}"
