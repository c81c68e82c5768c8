"""A store that was imported, brought to where the pipeline has its features."""

from __future__ import annotations

import shutil
from pathlib import Path

from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.importing import RECORD
from mrmodel.features.index import INDEX_FILE
from mrmodel.features.manifest import MANIFEST_FILE, Manifest, read_manifest
from mrmodel.files import atomic_path, sha256_of


def copy_store(source: Path, target: Path, stream: str, clip_len_s: float) -> Manifest:
    """Copy a store file by file, the manifest last.

    Copied and not linked: DVC deletes a stage's outputs, and makes files that it tracks read-only.

    Args:
        source: the store.
        target: takes its files.
        stream: what it must hold.
        clip_len_s: seconds that a row of a video stream must stand for.

    Raises:
        FeatureError: it is no finished store, or a shard is damaged.
        FeatureMismatch: it holds another stream, or rows of another length.
    """
    manifest = read_manifest(source)
    info = manifest.info
    if info.stream != stream:
        raise FeatureMismatch(f"{source}: holds the stream {info.stream}, not {stream}")
    if info.clip_len_s is not None and abs(info.clip_len_s - clip_len_s) > 1e-6:
        rule = f"a row stands for {info.clip_len_s:g} s, features.clip_len_s is {clip_len_s:g}"
        raise FeatureMismatch(f"{source}: {rule}")
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    for shard in manifest.shards:
        _copy(source / shard.file, target / shard.file)
        if sha256_of(target / shard.file) != shard.sha256:
            rule = f"SHA-256 differs from the manifest's {shard.sha256}; import it again"
            raise FeatureError(f"{source / shard.file}: {rule}")
    for name in (INDEX_FILE, RECORD, MANIFEST_FILE):
        if (source / name).exists():
            _copy(source / name, target / name)
    return manifest


def _copy(source: Path, target: Path) -> None:
    try:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    except FileNotFoundError:
        raise FeatureError(f"{source}: is missing; import the stream again") from None
