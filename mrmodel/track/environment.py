"""Which machine and which versions a stage ran with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket

import psutil


def environment() -> dict[str, str]:
    """Python, system, machine, and the version of every package that `mrmodel` asks for."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "machine": socket.gethostname(),
        "cores": str(os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
    }
    for requirement in importlib.metadata.requires("mrmodel") or []:
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and "extra ==" not in requirement:
            found[name[0]] = importlib.metadata.version(name[0])
    return found


def process_tags() -> dict[str, str]:
    """By which a later run knows whether this process still lives."""
    process = psutil.Process()
    return {
        "machine": socket.gethostname(),
        "process": f"{process.pid}:{process.create_time():.2f}",
    }


def is_alive(process: str) -> bool:
    """Whether the process of a tag `process` still runs, on this machine."""
    pid, _, began = process.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False
