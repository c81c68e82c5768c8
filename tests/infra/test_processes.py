"""One local server: how it starts, fails to start, ends, and with whom."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from infra.local.postgres import Postgres
from infra.local.process import Program, Running, ServiceError, free_ports, is_free
from tests.project import ROOT
from tests.services import SESSION, PostgresService, postgres_server

# Starts a database server with an owner or without one, says what it is, and waits to be killed.
START = """
import json, os, sys
from pathlib import Path
from infra.local.postgres import Postgres
folder, port, owned = sys.argv[1:]
server = Postgres(Path(folder), int(port), "secret", durable=False)
server.prepare()
program = server.program()
running = program.start(os.getpid() if owned == "owned" else None)
program.wait(running)
print(json.dumps(running.record()), flush=True)
sys.stdin.read()
"""


SAY_PID = "import os; print(os.getpid(), 'deaf', flush=True); time.sleep(600)"


def until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a database server lives; its data may lie elsewhere."""
    yield tmp_path
    shutil.rmtree(Postgres(tmp_path, 0, "").home(), ignore_errors=True)


def start_elsewhere(folder: Path, owned: str) -> tuple[subprocess.Popen[str], Running, int]:
    """A process that started a server, the server, and its port."""
    port = free_ports(1)[0]
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(folder), str(port), owned],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    running = Running(**json.loads(process.stdout.readline()))
    return process, running, port


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.services
def test_an_owned_server_ends_with_its_owner_however_that_dies(folder: Path) -> None:
    process, running, port = start_elsewhere(folder, "owned")
    tree = psutil.Process(running.pid).children(recursive=True)
    assert len(tree) > 3
    assert running.alive()
    kill(process)
    assert until(lambda: not running.alive())
    assert not [child for child in tree if child.is_running()]
    assert is_free(port)
    assert "database system is shut down" in running.last_words()  # In order, not by force.


@pytest.mark.services
def test_a_server_without_owner_stays_and_can_be_stopped_by_anybody(folder: Path) -> None:
    process, running, port = start_elsewhere(folder, "alone")
    kill(process)
    time.sleep(2)  # A guard would have looked by now.
    assert running.alive()
    assert not is_free(port)
    running.stop()
    assert not running.alive()
    assert is_free(port)
    running.stop()


@pytest.fixture
def own_postgres(folder: Path) -> Iterator[PostgresService]:
    service = postgres_server(folder)
    service.start()
    yield service
    service.stop()


@pytest.mark.services
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_data_survives(own_postgres: PostgresService, end: str) -> None:
    def connect() -> "psycopg2.extensions.connection":
        url = own_postgres.url.replace("postgresql+psycopg2", "postgresql")
        return psycopg2.connect(url)

    with connect() as connection:
        connection.cursor().execute("CREATE TABLE kept AS SELECT 42 AS answer")
    connection.close()
    getattr(own_postgres, end)()
    with pytest.raises(psycopg2.OperationalError):
        connect()
    own_postgres.start()
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("SELECT answer FROM kept")
    assert cursor.fetchone() == (42,)
    connection.close()


@pytest.mark.services
def test_what_a_killed_test_session_left_is_removed(own_postgres: PostgresService) -> None:
    place = own_postgres.server.home().parent
    left, kept = place / "mrmodel-postgres-left", place / "mrmodel-postgres-kept"
    with subprocess.Popen(["true"]) as ended:
        pass
    for folder, owner in ((left, ended.pid), (kept, os.getpid())):
        folder.mkdir()
        (folder / SESSION).write_text(str(owner))
    postgres_server(own_postgres.server.folder)
    assert not left.exists()
    assert kept.exists()
    assert own_postgres.server.home().exists()
    shutil.rmtree(kept)


def test_a_pid_that_another_process_got_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        try:
            running = Running("server", other.pid, 1, "server.log", 15)
            assert not running.alive()
            running.stop()
            running.kill()
            assert other.poll() is None
        finally:
            other.kill()


def program(folder: Path, script: str, healthy: bool = False, **options: float) -> Program:
    return Program(
        name="toy",
        command=[sys.executable, "-c", script],
        folder=folder,
        ports=(),
        healthy=lambda: healthy,
        **options,
    )


def test_a_server_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    toy = program(tmp_path, "for n in range(40): print('line', n)\nraise SystemExit(3)")
    with pytest.raises(ServiceError, match="toy ended while it started") as caught:
        toy.wait(toy.start())
    said = str(caught.value).splitlines()
    assert said[1] == f"The end of {tmp_path / 'toy.log'}:"
    assert said[2:] == [f"  line {number}" for number in range(25, 40)]


def test_a_server_that_never_answers_is_reported_and_stopped(tmp_path: Path) -> None:
    script = "import time; print('up', flush=True); time.sleep(600)"
    toy = program(tmp_path, script, patience_s=2.0)
    running = toy.start()
    with pytest.raises(ServiceError, match=r"toy gave no answer within 2 s\.\n.*\n  up"):
        toy.wait(running)
    assert not running.alive()


def test_a_server_that_does_not_listen_to_signals_is_killed_with_its_children(
    tmp_path: Path,
) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    script = (
        f"{deaf}import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {deaf + SAY_PID!r}]); time.sleep(600)"
    )
    toy = program(tmp_path, script, healthy=True)
    running = toy.start()
    assert until(lambda: running.last_words().endswith("deaf"))
    child = psutil.Process(int(running.last_words().split()[-2]))
    running.stop(patience_s=1)
    assert not running.alive()
    assert not child.is_running()


def test_children_of_a_server_that_died_are_found(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('child', child.pid, flush=True); os._exit(1)"
    )
    running = program(tmp_path, script).start()
    assert until(lambda: "child" in running.last_words() and not running.alive())
    child = psutil.Process(int(running.last_words().split()[-1]))
    assert child.is_running()
    running.stop()
    assert not child.is_running()


@pytest.mark.services
def test_a_killed_initdb_is_no_database(folder: Path) -> None:
    server = Postgres(folder, 1, "secret", durable=False)
    draft = server.home() / "draft"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("15\n")
    server.prepare()
    assert (server.home() / "data/global/pg_control").exists()
    assert not draft.exists()


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    toy = Program("toy", [str(tmp_path / "none")], tmp_path, (), lambda: True)
    with pytest.raises(ServiceError, match=r"toy: no program .*none; see make services"):
        toy.start()


def test_ports_that_are_drawn_are_free_and_different() -> None:
    drawn = free_ports(50)
    assert len(set(drawn)) == 50
    assert all(map(is_free, drawn))
