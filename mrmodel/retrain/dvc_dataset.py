"""The DVC-tracked data folder, in a clone that holds only a small part of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from mrmodel.config.schema import Config
from mrmodel.errors import ConfigError, DataError, DeliveryError
from mrmodel.files import atomic_path, write_json
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import ANNOTATIONS, CAPTIONS, TEST, VIDEOS
from mrmodel.stages.paths import Paths
from mrmodel.stages.profile import Profile


@dataclass(frozen=True, slots=True)
class IngestedDelivery:
    """A delivery whose data are in the folder.

    Attributes:
        name, digest: of the delivery.
        videos: files that it added.
        rows: table -> number of records that it added.
    """

    name: str
    digest: str
    videos: list[str]
    rows: dict[str, int]


class DvcDataset:
    """The folder ``corpus.folder`` of a clone; its tables are pulled, its videos are not.

    DVC can add files to a folder that is only partly present, using its recorded listing; the
    resulting hash is the same as with the whole folder present.

    Args:
        clone: root of the clone.
        config: its parameters.
        environment: where the data are.

    Raises:
        ConfigError: the corpus is not made from a folder.
        DeliveryError: the folder, or the profile of the training data, is not tracked.
        OrchestrationError: its tables are not available.
    """

    def __init__(self, clone: Path, config: Config, environment: RuntimeEnvironment) -> None:
        if config.corpus.source != "folder":
            rule = "deliveries go into a folder of your own: docs/howto/deliver_data.md"
            raise ConfigError("corpus.source", config.corpus.source, rule)
        self._clone, self._config, self._name = clone, config, config.corpus.folder.rstrip("/")
        self.folder = clone / self._name
        self._repo = Repo(str(clone))
        self._transfer = Transfer(
            environment, ResultStore(environment.result_store, environment.endpoint)
        )
        self._out = self._find(self.folder)
        if self._out is None or not (clone / self.dvc_file).exists():
            rule = f"is missing: `dvc add {self._name}` first, see docs/howto/deliver_data.md"
            raise DeliveryError(f"{self.dvc_file} {rule}")
        self._contents = self._list()

    @property
    def dvc_file(self) -> str:
        """The file in git that records the folder's hash."""
        return f"{self._name}.dvc"

    @property
    def deliveries_file(self) -> str:
        """The file in git that lists the deliveries in the folder."""
        return f"{self._name}.deliveries.json"

    def deliveries(self) -> list[IngestedDelivery]:
        """The deliveries in the folder, in order of ingestion.

        Raises:
            DataError: the file that lists them is damaged.
        """
        path = self._clone / self.deliveries_file
        if not path.exists():
            return []
        try:
            return [IngestedDelivery(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise DataError(f"holds no list of deliveries: {error}", file=path) from None

    def reference(self) -> Reference:
        """Pull the tables and the profile, and read them.

        Raises:
            DeliveryError: there is no profile yet.
            OrchestrationError: something cannot be pulled.
        """
        paths = Paths(self._config, self._clone)
        out = self._find(paths.profile)
        if out is None or not out.hash_info:
            rule = "no training data to compare with: run `dvc repro profile` and commit dvc.lock"
            raise DeliveryError(f"{paths.profile.relative_to(self._clone)}: {rule}")
        tables = [name for name in (*ANNOTATIONS, TEST, CAPTIONS) if name in self._contents]
        wanted = [self.folder / name for name in tables] + [paths.profile]
        self._transfer.fetch(self._repo, [str(path.relative_to(self._clone)) for path in wanted])
        prefix = f"{VIDEOS}/"
        videos = {
            path.removeprefix(prefix): md5
            for path, md5 in self._contents.items()
            if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        }
        profile = Profile.read(paths.profile)
        return Reference.read(self.folder, videos, profile, self._config.features.clip_len_s)

    def append(self, lines: Mapping[str, Iterable[bytes]], videos: Iterable[Path]) -> None:
        """Append records to their tables and add video files; see `commit`.

        Raises:
            OSError: something cannot be written, e.g. the disk is full; no table has changed.
        """
        with ExitStack() as renamed_last:
            for table, new in lines.items():
                path = self.folder / table
                before = path.read_bytes() if path.exists() else b""
                if before and not before.endswith(b"\n"):
                    before += b"\n"
                # Not in place: the file may be a link into DVC's cache.
                with renamed_last.enter_context(atomic_path(path)).open("wb") as file:
                    file.write(before + b"".join(line + b"\n" for line in new))
                    file.flush()
                    os.fsync(file.fileno())  # Some file systems find here that they are full.
            for path in videos:
                target = self.folder / VIDEOS / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)

    def commit(self, taken: Iterable[IngestedDelivery]) -> list[str]:
        """Track the additions with DVC, push them, and list the deliveries.

        Returns:
            The changed files to commit to git.

        Raises:
            OrchestrationError: the data cannot be pushed.
        """
        old, new = self.deliveries(), list(taken)
        tables = sorted({table for one in new for table in one.rows})
        videos = sorted({f"{VIDEOS}/{name}" for one in new for name in one.videos})
        self._repo.add([str(self.folder / path) for path in (*tables, *videos)])
        self._transfer.push(self._repo, str(self._clone / self.dvc_file))
        write_json(self._clone / self.deliveries_file, [asdict(one) for one in (*old, *new)])
        return [self.dvc_file, self.deliveries_file]

    def _find(self, path: Path) -> Any:
        outs = [out for out in self._repo.index.outs if Path(out.fs_path) == path]
        return outs[0] if outs else None

    def _list(self) -> dict[str, str]:
        """Path in the folder -> MD5, of all its files; pulls only the listing."""
        tree = self._out.get_dir_cache()
        if tree is None:
            raise DeliveryError(f"{self.dvc_file}: its listing is not in the DVC remote; push it")
        return {"/".join(key): str(info.value) for key, _, info in tree}
