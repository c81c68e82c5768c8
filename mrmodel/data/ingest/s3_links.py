"""`mrmodel data link`: writes a pointer file for every video below an S3 address."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mrmodel.data.ingest.videos import VIDEO_SUFFIXES
from mrmodel.errors import DataError, VideoError
from mrmodel.storage import Listed, list_objects
from mrmodel.video.remote import POINTER_SUFFIX, is_pointer, read_video_pointer, write_pointer

# File systems allow 255, part of which temporary names need.
_LONGEST_STEM_BYTES = 200


@dataclass(slots=True)
class LinkReport:
    """Result of linking, by object.

    Attributes:
        new, updated, unchanged: number of pointers that were created, had another version, or were
            up to date.
        ignored: objects without a video suffix, or whose name starts with a dot.
        problems: one sentence for each video that got no pointer.
    """

    new: int = 0
    updated: int = 0
    unchanged: int = 0
    ignored: int = 0
    problems: list[str] = field(default_factory=list)


def link_videos(url: str, folder: Path) -> LinkReport:
    """Write ``<stem>.s3`` into `folder` for every video below ``s3://bucket/folder``.

    Pointers to the same version are left alone; no file is removed. Only the listing is read.

    Raises:
        StorageError: the address is invalid, or the server is unreachable or rejects the request.
        DataError: there is no video below the address.
    """
    objects = list_objects(url)
    by_stem: dict[str, list[Listed]] = defaultdict(list)
    for version in objects:
        name = PurePosixPath(version.url).name
        if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
            by_stem[PurePosixPath(name).stem].append(version)
    if not by_stem:
        raise DataError(f"holds {len(objects)} objects, but no video", file=url)
    report = LinkReport(ignored=len(objects) - sum(map(len, by_stem.values())))
    there = _files_by_stem(folder)
    for stem, versions in sorted(by_stem.items()):
        problem = _problem(stem, versions, there[stem])
        if problem is None:
            _link(folder / f"{stem}{POINTER_SUFFIX}", versions[0], report)
        else:
            report.problems.append(problem)
    return report


def format_report(report: LinkReport) -> str:
    """The report as text: problems first, then the counts."""
    lines = [f"error: {problem}" for problem in report.problems]
    lines.append(
        f"{report.new} new, {report.updated} updated, {report.unchanged} unchanged; "
        f"{report.ignored} other objects ignored, {len(report.problems)} errors"
    )
    return "\n".join(lines)


def _files_by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found[path.stem].append(path)
    return found


def _problem(stem: str, versions: list[Listed], there: Iterable[Path]) -> str | None:
    """Why an object cannot be linked under that name; None if it can."""
    if len(versions) > 1:
        urls = ", ".join(version.url for version in versions)
        return f"video {stem!r} would be several objects ({urls}); rename all but one"
    url = versions[0].url
    if len(stem.encode()) > _LONGEST_STEM_BYTES or not stem.isprintable():
        rule = f"must be printable and have at most {_LONGEST_STEM_BYTES} bytes"
        return f"{url}: a video's name {rule}"
    for path in there:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return f"{url}: there is {path} of that name; keep one of them"
        if is_pointer(path) and path.suffix != POINTER_SUFFIX:
            return f"{url}: there is {path} of that name; call it {stem}{POINTER_SUFFIX}"
        if is_pointer(path) and (other := _target(path)) not in (url, None):
            return f"{url}: {path} points to {other}; remove it where that is to be replaced"
    return None


def _target(pointer: Path) -> str | None:
    """Target of a pointer; None where it is damaged and may be overwritten."""
    try:
        return read_video_pointer(pointer).url
    except VideoError:
        return None


def _link(path: Path, version: Listed, report: LinkReport) -> None:
    if not path.exists():
        report.new += 1
    elif _is_of(path, version):
        report.unchanged += 1
        return
    else:
        report.updated += 1
    write_pointer(path, version)


def _is_of(path: Path, version: Listed) -> bool:
    try:
        return read_video_pointer(path) == version
    except VideoError:
        return False
