"""Imported features in place of videos: which rows have some."""

from __future__ import annotations

from pathlib import Path

from mrmodel.features.keys import text_key
from mrmodel.features.manifest import MANIFEST_FILE
from mrmodel.features.store import FeatureStore
from mrmodel.types import Annotation


class FeatureLibrary:
    """All stores of a folder.

    Args:
        folder: holds one store a stream; without any, every row is fine.

    Raises:
        FeatureError: a store is damaged.
    """

    def __init__(self, folder: Path) -> None:
        manifests = sorted(folder.glob(f"*/{MANIFEST_FILE}"))
        self._stores = [FeatureStore(path.parent) for path in manifests]

    @property
    def has_videos(self) -> bool:
        """Whether there are features of videos, so that the videos themselves are not needed."""
        return any(store.info.modality == "video" for store in self._stores)

    def problem(self, row: Annotation) -> str | None:
        """Why a row cannot be used: its video or its query has no features in a store."""
        for store in self._stores:
            if store.info.modality == "video":
                if row.vid not in store:
                    return f"no features of its video {row.vid!r} in {store.folder}"
            elif text_key(row.query) not in store:
                return f"no features of its query in {store.folder}"
        return None
