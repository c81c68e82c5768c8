"""Work on files that clients sent, in a process with limits: ``python -m mrmodel.server.child``.

What decodes such a file may crash, fill the memory or never end; here that costs this process only.
Limits are inherited by the processes that it starts. The last line of output is the result as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrmodel.errors import DataError, VideoError
from mrmodel.processes import run_python
from mrmodel.server.errors import ApiError, api_error
from mrmodel.video.decoder import Decoder, VideoLimits

# The kernel ends a process that runs on after its parent has given it up.
_CPU_FACTOR = 2


def run_child(
    task: str,
    arguments: Mapping[str, Any],
    *,
    memory_bytes: int,
    timeout_s: float,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Do one of `TASKS` in a process of its own.

    Args:
        task: its name.
        arguments: of it, as JSON.
        memory_bytes: address space.
        timeout_s: seconds by the clock.
        stop: set to end it.

    Returns:
        What the task returns.

    Raises:
        ApiError: the error answer for the client.
    """
    limits = {"memory_bytes": memory_bytes, "cpu_s": int(_CPU_FACTOR * timeout_s) + 1}
    ended = run_python(
        "mrmodel.server.child",
        json.dumps({"task": task, "limits": limits, "arguments": dict(arguments)}, allow_nan=False),
        folder=Path.cwd(),
        # Threads of numeric libraries take address space, and one does.
        variables=dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stop=stop,
        timeout_s=timeout_s,
    )
    if ended.code == 0:
        found: dict[str, Any] = json.loads(ended.last[-1])
        if "error" in found:
            raise ApiError(*found["error"])
        result: dict[str, Any] = found["result"]
        return result
    if stop is not None and stop.is_set():
        raise ApiError(422, "cancelled", "it was cancelled")
    raise ApiError(
        422, "not_decodable", f"decoding it crashed, or took more than {timeout_s:g} s or too much"
    )


def check(path: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Open a video, read its header and decode its first frame.

    Raises:
        VideoError: it is no video, or beyond a limit by what its header says.
    """
    decoder = Decoder(Path(path), VideoLimits(**limits))
    with decoder.opened() as container:
        decoder.video_stream(container)
    longest = decoder.limits.max_duration_s
    if decoder.container_s > longest:
        rule = f"its header says {decoder.container_s:.0f} s, the limit is {longest:.0f} s"
        raise VideoError(path, "too_long", rule)
    next(decoder.frames())
    return {}


def add(library: str, path: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Encode a video and add it to a library that exists."""
    from mrmodel.library.adder import AddSettings
    from mrmodel.library.library import Library

    settings = AddSettings(
        workers=1, limits=VideoLimits(**limits), timeout_s=limits["timeout_s"], retry=True
    )
    report = Library(library).add([path], settings)
    return {"problem": report.problems.get(Path(path))}


def still(path: str, time_s: float, width: int, target: str) -> dict[str, Any]:
    """Write a picture of a video; see `write_still`."""
    from mrmodel.export.stills import write_still

    write_still(Path(path), time_s, width, Path(target))
    return {}


def export(
    videos: Mapping[str, str],
    hits: Sequence[Mapping[str, Any]],
    folder: str,
    kind: str,
    exact: bool,
) -> dict[str, Any]:
    """Make one kind of file of hits; several files are put into a ZIP.

    No path of this machine is in them: videos are named by their files' names.

    Args:
        videos: id -> file.
        hits: ``video`` (an id), ``query``, ``start_s``, ``end_s``, ``score``.
        folder: empty; for the files.
        kind: see `export_hits`.
        exact: see there.

    Returns:
        The file's name in the folder, and lines for people.

    Raises:
        DataError: nothing could be made.
    """
    from mrmodel.export.hits import Hit
    from mrmodel.export.write import export_hits
    from mrmodel.types import Moment

    base = Path(folder).resolve()
    links, made_in = base / "videos", base / "files"
    links.mkdir()
    os.chdir(links)
    named: dict[str, Path] = {}
    for number, (video, path) in enumerate(videos.items(), 1):
        name = Path(Path(path).name)
        named[video] = name if name not in named.values() else Path(f"{number}_{name}")
        named[video].symlink_to(path)
    found = [
        Hit(named[one["video"]], one["query"], Moment(one["start_s"], one["end_s"], one["score"]))
        for one in hits
    ]
    made = export_hits(found, made_in, [kind], exact=exact)
    problems = [str(problem) for problem in made.problems]
    files = [file for file in made.files if kind == "json" or file.name != "hits.json"]
    if not files:
        raise DataError("; ".join(problems) or "nothing could be made of these hits")
    for file in files:
        if file.suffix in (".json", ".otio"):
            text = file.read_text(encoding="utf-8").replace(f"{links.as_uri()}/", "")
            file.write_text(text.replace(quote(f"{links}/").lstrip("/"), ""), encoding="utf-8")
    result = files[0]
    if len(files) > 1:
        result = made_in / f"{kind}.zip"
        with zipfile.ZipFile(result, "w") as archive:
            for file in files:
                archive.write(file, file.name)
    return {"file": str(result.relative_to(base)), "notes": [*made.notes, *problems]}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "check": check,
    "add": add,
    "still": still,
    "export": export,
}


def main() -> None:
    """Do what the argument says."""
    order = json.loads(sys.argv[1])
    limits = order["limits"]
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # Searches come first.
    try:
        answer: dict[str, Any] = {"result": TASKS[order["task"]](**order["arguments"])}
    except Exception as error:
        found = api_error(error)
        if found is None:
            raise
        answer = {"error": [found.status_code, found.code, found.message]}
    sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
