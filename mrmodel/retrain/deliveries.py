"""Deliveries: folders in the incoming store, each with videos, annotations and captions.

The store belongs to the sender: nothing in it is moved, changed or deleted here.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mrmodel.data.ingest.videos import VIDEO_SUFFIXES
from mrmodel.errors import StorageError
from mrmodel.files import digest_of
from mrmodel.storage import FolderStore, Store
from mrmodel.storage.base import check_key

log = logging.getLogger(__name__)

# Written last by the sender; without it a delivery may be incomplete.
MARKER = "COMPLETE"
CAPTIONS = "captions.jsonl"
ANNOTATIONS = ("train.jsonl", "val.jsonl")
TEST = "test.jsonl"
VIDEOS = "videos"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One folder of the incoming store.

    Attributes:
        name: of the folder.
        digest: of its files' names and store tags, without the marker; no content is read.
        files: their paths in the folder.
        complete: whether the marker is there.
    """

    name: str
    digest: str
    files: tuple[str, ...]
    complete: bool

    @property
    def known(self) -> list[str]:
        """The files that are used: tables and videos."""
        return [path for path in self.files if _is_known(path)]

    @property
    def ignored(self) -> list[str]:
        """The other files."""
        return [path for path in self.files if not _is_known(path)]


def list_deliveries(incoming: Store) -> list[Delivery]:
    """Deliveries in the incoming store, by name; objects outside of folders are ignored.

    Raises:
        StorageError: the store cannot be read.
    """
    marks = incoming.listing()
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for key, mark in marks.items():
        name, slash, path = key.partition("/")
        if slash and _usable(name):
            folders[name][path] = mark
    return [_delivery(name, folders[name]) for name in sorted(folders)]


def download(incoming: Store, delivery: Delivery, folder: Path) -> bool:
    """Download the known files of a delivery into `folder`.

    Returns:
        Whether it still equals the listed delivery; its files may have changed meanwhile.

    Raises:
        StorageError: a file cannot be read.
    """
    folder.mkdir(parents=True)
    for path in delivery.known:
        incoming.download(f"{delivery.name}/{path}", folder / path)
    now = incoming.listing(f"{delivery.name}/")
    files = {key.partition("/")[2]: mark for key, mark in now.items()}
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


def _delivery(name: str, files: Mapping[str, str]) -> Delivery:
    content = {path: mark for path, mark in files.items() if path != MARKER}
    return Delivery(name, digest_of(content), tuple(sorted(content)), MARKER in files)


def _usable(name: str) -> bool:
    try:
        check_key("the incoming store", name)
    except StorageError as error:
        log.warning("ignored: %s", error)
        return False
    return True
