"""What a process that checks a delivery calls, in a module that it imports in no time."""

import os
import signal


def kill_oneself(*_: object) -> None:
    """As a damaged video may kill a process."""
    os.kill(os.getpid(), signal.SIGKILL)
