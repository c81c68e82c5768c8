"""Finding 5: what is imported replaces what was there when it is complete, and not before."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrmodel import files
from mrmodel.config.schema import load_config
from mrmodel.convert.checkpoint import CheckpointImportRequest, import_checkpoint
from mrmodel.convert.encoders.convert import Conversion, convert
from mrmodel.convert.streams import parse_streams
from mrmodel.data.datasets.convert import ConvertRequest
from mrmodel.data.datasets.convert import convert as convert_annotations
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.encoders.weights_lock import pin_sets, pull_sets, push_sets
from mrmodel.errors import FeatureError, OutputError, StorageError
from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.features.store import FeatureStore
from mrmodel.files import replaced_folder
from mrmodel.progress import NullReporter
from mrmodel.stages.package import package
from mrmodel.stages.paths import Paths
from mrmodel.storage import open_store
from mrmodel.train.checkpoint import CONFIG, WEIGHTS, load_model
from tests.convert.published import save_official
from tests.encoders.tiny_sets import make_slowfast
from tests.features.archives import ROWS, VIDEOS, npz, values
from tests.golden_parity.test_models import GOLDEN, Case
from tests.project import ROOT

STREAM = "clip_b32.video512"
Contents = dict[str, bytes]
# Writes the version 1 or 2 of a folder, which it returns.
Writer = Callable[[int], Path]


def contents(folder: Path) -> Contents:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def store_writer(root: Path) -> Writer:
    def write(version: int) -> Path:
        for vid in VIDEOS:
            rows = values(f"{vid}{version}", 512)
            npz(root / "archive/clip_features" / f"{vid}.npz", features=rows)
        request = FeatureImportRequest("moment_detr", root / "archive", root / "out", (STREAM,))
        (report,) = import_archive(request, ROWS)
        return report.store

    return write


def model_writer(root: Path) -> Writer:
    case = Case(GOLDEN / "model_qd_detr/default.npz")
    options = case.options | {"ctx_mode": "video_tef"}

    def write(version: int) -> Path:
        weights = {name: tensor * version for name, tensor in case.weights.items()}
        file = save_official(root / f"{version}.ckpt", weights, options)
        streams = {
            "video_streams": parse_streams("rows:20"),
            "text_streams": parse_streams("words:12"),
        }
        request = CheckpointImportRequest(file, root / "model", replace=True, **streams)
        assert not import_checkpoint(request).fit.mismatches
        return root / "model"

    return write


def set_writer(root: Path) -> Writer:
    make_slowfast(root / "unused", root)

    def write(version: int) -> Path:
        options = {"image_size": 32, "compat": "fixed" if version == 2 else "hero"}
        weights = root / "slowfast.pyth"
        convert(Conversion("slowfast", weights, options=options, root=root / "sets", replace=True))
        return root / "sets/slowfast"

    return write


def pull_writer(root: Path) -> Writer:
    write_set = set_writer(root)
    store = open_store(str(root / "store"))
    for version in (1, 2):
        write_set(version)
        (root / f"pins{version}").write_text('{"sets": {}}')
        pin_sets(root / f"pins{version}", [], root / "sets")
        push_sets(store, [], root / "sets")

    def write(version: int) -> Path:
        pull_sets(store, root / f"pins{version}", [], root / "pulled")
        return root / "pulled/slowfast"

    return write


def package_writer(root: Path) -> Writer:
    config, name = load_config(ROOT / "params.yaml"), "sg_detr"

    def write(version: int) -> Path:
        with chdir(root):
            paths = Paths(config)
            source = paths.model("finetuned", name)
            source.mkdir(parents=True, exist_ok=True)
            for file in (WEIGHTS, CONFIG):
                # New files, as a training makes them: the weights of before are a link.
                (source / file).unlink(missing_ok=True)
                (source / file).write_bytes(b"%d" % version)
            package(config, NullReporter(), {"model": name})
        return root / paths.served(name)

    return write


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "features import": store_writer,
    "weights import": model_writer,
    "weights convert": set_writer,
    "weights pull": pull_writer,
    "stage package": package_writer,
}
FAULTS: tuple[Callable[[], BaseException], ...] = (
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt,
    MemoryError,
)


def failing(number: int, fault: Callable[[], BaseException]) -> Callable[[int], None]:
    """An `os.fsync` whose call `number` fails, counted from 1."""
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == number:
            raise fault()

    return fsync


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failure_at_any_point_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """Finding 5: whatever fails at any of the moments when something is written."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    write = WRITERS[writer](tmp_path)
    folder = write(2)
    new = contents(folder)
    write(1)
    (folder / "notes/mine").mkdir(parents=True)
    (folder / "notes/mine/of_the_user.txt").write_text("kept")
    mine = {"notes/mine/of_the_user.txt": b"kept"}
    old, beside = contents(folder), sorted(folder.parent.iterdir())
    said = []
    for number in range(1, 20):
        monkeypatch.setattr(os, "fsync", failing(number, FAULTS[number % 3]))
        try:
            write(2)
        except (OutputError, StorageError, KeyboardInterrupt, MemoryError) as error:
            said.append(str(error))
        else:
            break
        found = contents(folder)
        # The last of them is that of the folder above, when the new one is in place.
        assert found in (old, new | mine)
        assert sorted(folder.parent.iterdir()) == beside
    assert len(said) >= 3
    assert re.search("[nN]o space left on device", said[2])
    assert folder.parent.name in said[2]
    assert contents(folder) == new | mine


def test_what_gives_no_rows_leaves_the_store_of_the_last_import(tmp_path: Path) -> None:
    """Finding 5: the proof of the audit."""
    store = store_writer(tmp_path)(1)
    old = contents(store)
    (tmp_path / "archive/clip_features" / f"{VIDEOS[0]}.npz").write_bytes(b"damaged")
    request = FeatureImportRequest("moment_detr", tmp_path / "archive", tmp_path / "out", (STREAM,))
    with pytest.raises(FeatureError, match="1 of 2 items give no rows"):
        import_archive(request, ROWS)
    assert contents(store) == old
    block, _ = FeatureStore(store).gather(list(VIDEOS))
    np.testing.assert_array_equal(block[0], values(f"{VIDEOS[0]}1", 512))


def test_the_new_ones_can_be_read(tmp_path: Path) -> None:
    """Finding 5: nothing is lost on the way."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    load_model(model_writer(tmp_path / "a")(2))
    folder = set_writer(tmp_path / "b")(2)
    WeightSet("slowfast", folder.parent).verify()


def killed_in(target: Path) -> None:
    """What a process leaves that was killed while it wrote `target`."""
    child = os.fork()
    if child == 0:
        with replaced_folder(target, "*.bin") as folder:
            (folder / "half.bin").write_bytes(b"half")
            os._exit(9)
    os.waitpid(child, 0)


def test_the_next_one_cleans_what_a_killed_one_left(tmp_path: Path) -> None:
    """Finding 5."""
    target = tmp_path / "store"
    with replaced_folder(target, "*.bin") as folder:
        (folder / "a.bin").write_bytes(b"1")
    killed_in(target)
    assert contents(target) == {"a.bin": b"1"}
    assert len(list(tmp_path.iterdir())) == 2
    with replaced_folder(target, "*.bin") as folder:
        assert not list(folder.iterdir())
        (folder / "b.bin").write_bytes(b"2")
    assert contents(target) == {"b.bin": b"2"}
    assert list(tmp_path.iterdir()) == [target]


def test_two_at_once(tmp_path: Path) -> None:
    """Finding 5: the second of two imports of one store is refused, and harms neither."""
    target = tmp_path / "store"
    with replaced_folder(target) as folder:
        (folder / "a").write_bytes(b"1")
        expected = pytest.raises(OutputError, match="store: cannot be written: another process")
        with expected, replaced_folder(target):
            raise AssertionError
    assert contents(target) == {"a": b"1"}


class _Old:
    """A C library without `renameat2`."""


@pytest.mark.parametrize("killed", [False, True])
def test_without_an_exchange_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Finding 5: on systems that take two renames, one killed between them is completed."""
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: _Old())
    target = tmp_path / "store"
    target.mkdir()
    (target / "a").write_bytes(b"1")
    if killed:
        beside = tmp_path / ".store.new"
        beside.mkdir()
        target.rename(beside / ".old")
        with pytest.raises(ZeroDivisionError), replaced_folder(target, "a"):
            raise ZeroDivisionError
        assert contents(target) == {"a": b"1"}
    rename = Path.rename

    def fail(self: Path, other: Path) -> Any:
        if other == target and self.name == "store":
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt), replaced_folder(target, "a") as folder:
        (folder / "b").write_bytes(b"2")
    assert contents(target) == {"a": b"1"}
    monkeypatch.undo()
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: _Old())
    with replaced_folder(target, "a") as folder:
        (folder / "b").write_bytes(b"2")
    assert contents(target) == {"b": b"2"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_store_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    """Finding 5."""
    (tmp_path / "disk/store").mkdir(parents=True)
    link = tmp_path / "store"
    link.symlink_to(tmp_path / "disk/store")
    with replaced_folder(link) as folder:
        (folder / "a").write_bytes(b"1")
    assert link.is_symlink()
    assert contents(tmp_path / "disk/store") == {"a": b"1"}


def test_file_systems_without_hard_links_or_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 5: what is the user's is copied where it cannot be linked."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "store"
    target.mkdir()
    (target / "README").write_text("mine")
    (target / "link").symlink_to("README")
    with replaced_folder(target, "*.bin") as folder:
        (folder / "a.bin").write_bytes(b"1")
    assert contents(target) == {"README": b"mine", "link": b"mine", "a.bin": b"1"}
    assert (target / "link").is_symlink()


def test_a_full_disk_leaves_the_annotations_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 5: no training set of one conversion beside a test set of another."""
    for version, name in enumerate(("AO8RW", "Y6R7T")):
        for split in ("train", "test"):
            folder = tmp_path / str(version)
            folder.mkdir(exist_ok=True)
            lines = [f"{name}{split}{number} 0.0 6.9##a person waves.\n" for number in (1, 2)]
            (folder / f"charades_sta_{split}.txt").write_text("".join(lines))
            lengths = [f"{name}{split}{number},33.67\n" for number in (1, 2)]
            (folder / f"Charades_v1_{split}.csv").write_text("id,length\n" + "".join(lengths))
    out = tmp_path / "out"
    convert_annotations(ConvertRequest("charades", tmp_path / "0", out))
    old = contents(out)
    for number in range(1, 9):
        monkeypatch.setattr(os, "fsync", failing(number, FAULTS[0]))
        with pytest.raises(OutputError, match=f"^{out}/[a-z.]*: cannot be written: no space left"):
            convert_annotations(ConvertRequest("charades", tmp_path / "1", out))
        assert contents(out) == old
    monkeypatch.undo()
    convert_annotations(ConvertRequest("charades", tmp_path / "1", out))
    assert contents(out).keys() == old.keys()
    assert b"Y6R7Ttest" in contents(out)["test.jsonl"]
