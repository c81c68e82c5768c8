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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrmodel.errors import VideoError
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
        ApiError: what the client is told.
    """
    limits = {"memory_bytes": memory_bytes, "cpu_s": int(_CPU_FACTOR * timeout_s) + 1}
    ended = run_python(
        "mrmodel.server.child",
        json.dumps({"task": task, "limits": limits, "arguments": dict(arguments)}),
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


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "add": add}


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
