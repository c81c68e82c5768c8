"""SIGKILL while videos are added: the next run ends in the same bytes and encodes nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrmodel.features.extraction.partial_results import PartialResults
from mrmodel.files import sha256_of
from mrmodel.library.folder import WORK, LibraryFolder
from tests.library.videos import NOTES, Noting, add, content, write_plain
from tests.project import ROOT

N_VIDEOS = 30
SCRIPT = f"""
import sys
from pathlib import Path
from tests.library.videos import add

if __name__ == "__main__":
    add(Path(sys.argv[1]), [Path(sys.argv[2])], "{Noting.name}")
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey videos, some of them with subtitles; a copy and a damaged file."""
    folder = tmp_path_factory.mktemp("grey")
    for number in range(N_VIDEOS):
        write_plain(folder / f"{number:02d}.mp4", 8 * number + 8)
        if number % 4 == 0:
            text = f"1\n00:00:00,500 --> 00:00:01,500\nThis is number {number}.\n"
            (folder / f"{number:02d}.srt").write_text(text)
    (folder / "07-copy.mp4").write_bytes((folder / "07.mp4").read_bytes())
    (folder / "12-damaged.mp4").write_bytes(b"not a video at all")
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NOTES, str(folder / "notes"))
        add(folder / "library", [videos], Noting.name)
    return content(folder / "library")


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_add_goes_on_to_equal_bytes(
    kills: int, videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    library, notes = tmp_path / "library", tmp_path / "notes"
    levels = {sha256_of(videos / f"{n:02d}.mp4"): 8 * n + 8 for n in range(N_VIDEOS)}
    chance = random.Random(kills)
    finished = set[int]()
    for kill in range(kills + 1):
        notes.write_text("")
        process = start(library, videos, notes)
        if kill < kills:
            wait_for(lambda: notes.stat().st_size > 0, process)
            time.sleep(chance.uniform(0, 0.12))
            process.send_signal(signal.SIGKILL)
        process.wait()
        made = {int(line) for line in notes.read_text().split()}
        assert not any(abs(one - other) <= 2 for one in made for other in finished)
        finished = {levels[sha256] for sha256 in finished_in(library, set(levels))}
    assert process.returncode == 0
    assert len(finished) == N_VIDEOS
    assert content(library) == undisturbed


def start(library: Path, videos: Path, notes: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), NOTES: str(notes)}
    script = library.parent / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, script, library, videos], env=environment)


def wait_for(condition, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finished_in(library: Path, contents: set[str]) -> set[str]:
    """Contents that are stored, or whose partial results are."""
    folder = LibraryFolder(library)
    (stream,) = folder.streams()
    work = PartialResults(library / WORK / stream.folder)
    saved = {one for one in contents if work._read(one) is not None}
    return {video.sha256 for video in folder.videos()} | saved
