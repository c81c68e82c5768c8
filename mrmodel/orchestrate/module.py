"""A program of a clone as a process: the clone's own code, listened to, ended with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrmodel.processes import die_with_parent
from mrmodel.redact import hide_secrets, secrets_of

_SHOWN_LINES = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        last: its last lines, without secrets.
    """

    code: int
    last: list[str]


def run_module(
    clone: Path,
    command: Sequence[str],
    say: Callable[[str], None],
    variables: Mapping[str, str] | None = None,
) -> Ended:
    """Run a module in a clone, to its end.

    Args:
        clone: becomes its current folder; its code comes before what is installed.
        command: name of the module, and its arguments.
        say: told of every line that it prints, without secrets.
        variables: added to its environment.
    """
    environment = {
        **os.environ,
        **(variables or {}),
        "PYTHONPATH": str(clone),
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
    secrets, last = secrets_of(os.environ), deque[str](maxlen=_SHOWN_LINES)
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(hide_secrets(line.rstrip("\n"), secrets))
                say(last[-1])
        except BaseException:  # E.g. of a flow that is cancelled.
            process.kill()
            raise
    return Ended(process.returncode, list(last))
