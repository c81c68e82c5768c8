"""Findings 14 and 23: secrets are hidden in every spelling, and kept from a model's code."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from mrmodel.processes import hide_secrets, hide_user, secrets_of
from tests.project import ROOT

TOKEN = "ghp_0123456789abcdef0123456789abcdef0123"


@pytest.mark.parametrize(
    ("name", "value", "printed"),
    [
        ("PREFECT_API_AUTH_STRING", "admin:hush-hush", ["admin:hush-hush"]),
        ("AZURE_PAT", "hush-hush", ["hush-hush"]),
        ("DB_PASS", "hush-hush", ["hush-hush"]),
        ("SSH_PASSPHRASE", "hush hush", ["hush hush", "hush%20hush"]),
        ("PGPASSWORD", "p@ssw0rd!", ["p@ssw0rd!", "p%40ssw0rd%21"]),
        ("DEPLOY_PRIVATE_KEY", "-----BEGIN-----\nMIIEpQ+x/y\n", ["MIIEpQ+x/y", "-----BEGIN-----"]),
        ("AWS_SECRET_ACCESS_KEY", "hush-hush", ["hush-hush"]),
        ("MRMODEL_GIT_URL", f"https://{TOKEN}@github.com/x", [TOKEN]),
        ("MRMODEL_GIT_URL", f"https://{TOKEN}:x-oauth-basic@github.com/x", [TOKEN]),
        ("MRMODEL_GIT_URL", f"from git+https://{TOKEN}@a.example or b", [TOKEN]),
        ("OPTUNA_STORAGE", "postgresql://mrmodel:p%40ssw0rd!@db/x", ["p%40ssw0rd!", "p@ssw0rd!"]),
        ("OPTUNA_STORAGE", "postgresql://mrmodel:a@b@c-d@db/x", ["a@b@c-d"]),
    ],
)
def test_secrets_are_hidden(name: str, value: str, printed: list[str]) -> None:
    """Finding 14: each of these was shown in clear, but for the names that were known."""
    secrets = secrets_of({name: value})
    assert [hide_secrets(f"is {secret} here", secrets) for secret in printed] == [
        "is *** here" for _ in printed
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "mrmodel"),
        ("OPTUNA_STORAGE", "postgresql+psycopg2://mrmodel@db/mrmodel"),
        ("OPTUNA_STORAGE", "postgresql+psycopg2://mrmodel:hush-hush@db/mrmodel"),
        ("GIT_AUTHOR_NAME", "mrmodel"),
        ("COMPASS", "mrmodel"),
        ("GIT_SSH_URL", "ssh://mrmodel@host/x"),
    ],
)
def test_words_of_a_log_stay_legible(name: str, value: str) -> None:
    """Finding 14: the name of the S3 user made `> python -m ***.pipeline.corpus` of commands."""
    line = "> python -m mrmodel.stages.corpus"
    assert hide_secrets(line, secrets_of({name: value})) == line


def test_an_address_is_shown_without_its_user() -> None:
    assert hide_user("at https://u:p@ss@host/x?a@b, d@e") == "at https://host/x?a@b, d@e"


LANDLOCK = 444  # The system call that makes a ruleset, or tells the version.
# Of a family with the secret in the environment of all but the last: grandparent, parent, child.
CHILD = """
import os
seen = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            seen += [pid] if b"planted" in file.read() else []
    except OSError:
        continue
print("seen:", str(os.getppid()) in seen, len(seen))
"""
PARENT = f"""
import subprocess, sys
from mrmodel import processes
processes._LANDLOCK_CREATE = int(sys.argv[1])
command = [sys.executable, "-I", "-c", {CHILD!r}]
with processes.unreadable():
    apart = processes.read_no_other_process
    subprocess.run(command, env={{}}, check=True, preexec_fn=apart)
with open("/proc/self/environ", "rb") as file:
    print("own:", b"planted" in file.read(), flush=True)
subprocess.run(command, env={{}}, check=True)
"""
GRANDPARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def family(landlock: int = LANDLOCK) -> list[str]:
    """What the child sees, whether the parent still sees itself, and what a free child sees."""
    environment = {"PYTHONPATH": str(ROOT), "AWS_SECRET_ACCESS_KEY": "planted"}
    command = [sys.executable, "-c", GRANDPARENT, PARENT, str(landlock)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_models_process_reads_no_environment_of_others() -> None:
    """Finding 23: neither of its parent nor, where the kernel has Landlock, of other processes."""
    child, own, free = family()
    assert own == "own: True"
    assert free.startswith("seen: True")
    assert child.startswith("seen: False")
    if has_landlock():
        assert child == "seen: False 0"


def test_without_landlock_the_parents_environment_is_kept() -> None:
    """Finding 23: an older kernel, whose system call fails."""
    child, *_ = family(landlock=9999)
    assert child.startswith("seen: False")


def has_landlock() -> bool:
    return ctypes.CDLL(None).syscall(LANDLOCK, None, 0, 1) > 0
