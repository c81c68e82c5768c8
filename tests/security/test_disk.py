"""Finding 22: what is written outlasts a power failure; a disk that takes nothing is one line."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mrmodel.errors import MISTAKE, OutputError, exit_codes
from mrmodel.files import atomic_path, write_json
from mrmodel.orchestrate.checkout import RuntimeEnvironment, fresh_clone


def test_a_renamed_file_is_synced_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 22: first the file, then its name, then the folder that holds the name."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "a.json", {"a": 1})
    assert done == ["file", "rename", "folder"]
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_folders_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Finding 22: some file systems do not offer it, and some folders cannot be opened."""
    fsync, opened = os.fsync, os.open

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    def closed(path: Any, flags: int, *mode: Any, **more: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *mode, **more)

    if code == errno.EACCES:
        monkeypatch.setattr(os, "open", closed)
    else:
        monkeypatch.setattr(os, "fsync", refuse)
    write_json(tmp_path / "a.json", [])
    assert (tmp_path / "a.json").read_text() == "[]\n"


DISKS = {
    errno.EACCES: "permission denied",
    errno.EROFS: "read-only file system",
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
}


@pytest.mark.parametrize("code", DISKS)
@pytest.mark.parametrize("what", ["file", "folder", "clone"])
def test_a_disk_that_takes_nothing_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    code: int,
) -> None:
    """Finding 22: it names the place and the reason, and the exit code is that of a mistake."""
    environment = RuntimeEnvironment(
        git=str(tmp_path),
        remote=None,
        result_store=str(tmp_path),
        endpoint=None,
        clones=tmp_path / "clones",
        cache=tmp_path / "cache",
        state=tmp_path / "state",
    )

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), str(self))

    def write() -> None:
        if what == "clone":
            with fresh_clone(environment, "main", {}):
                raise AssertionError
        write_json(tmp_path / "below/a.json", {})

    monkeypatch.setattr(Path, "chmod" if what == "file" else "mkdir", refuse)
    target = tmp_path / ("clones" if what == "clone" else "below/a.json")
    if what == "file":
        (tmp_path / "below").mkdir()
    with pytest.raises(SystemExit) as end, exit_codes():
        write()
    assert end.value.code == MISTAKE
    assert capsys.readouterr().err == f"error: {target}: cannot be written: {DISKS[code]}\n"
    if what == "file":
        assert list((tmp_path / "below").iterdir()) == []


def test_an_input_that_is_missing_keeps_its_own_error(tmp_path: Path) -> None:
    """Finding 22: only what concerns the written file is an error of writing."""
    with pytest.raises(FileNotFoundError, match="source"), atomic_path(tmp_path / "a.json"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(OutputError), atomic_path(tmp_path / "b.json"):
        raise OSError(errno.EIO, "Input/output error")
