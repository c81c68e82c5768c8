"""One extraction spread over workers: what each of them makes, and how it comes together.

Workers leave shards in the hand-over store. The worker that runs the stage ``extract`` lays them
into its work folder, where the stage finds all of its videos done.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrmodel.errors import MrModelError, StorageError
from mrmodel.features.shards import ShardSummary
from mrmodel.files import one_at_a_time, write_json
from mrmodel.orchestrate.sharded import (
    ShardedStream,
    ShardFailed,
    ShardInterrupted,
    ShardOrder,
)
from mrmodel.pipeline.shards import (
    EARLIER_FILE,
    ORDER_FILE,
    PLAN_FILE,
    SUMMARY_FILE,
    TAR_FILE,
    tar_name,
)
from mrmodel.redact import hide_secrets, secrets_of
from mrmodel.storage import Store

_SHOWN_LINES = 5


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard that is in the store: which, who made it, and what became of its videos."""

    index: int
    count: int
    worker: str
    summary: ShardSummary


def shard_key(digest: str, index: int, count: int) -> str:
    """Key of a shard in the store; its report has ``.json`` for ``.tar``."""
    return f"pieces/{digest}/{tar_name(index, count)}"


def plan_of(clone: Path, stream: str) -> dict[str, Any]:
    """What decides the pieces of a stream, by the code of a clone and the libraries here.

    Raises:
        ShardFailed: the clone cannot say, for example because it does not know the encoder.
    """
    with _exchange(clone) as folder:
        _run_step(clone, stream, "plan", folder, stream)
        plan: dict[str, Any] = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    return plan


def find_report(order: ShardOrder, store: Store) -> ShardReport | None:
    """The report of a shard that is in the store."""
    key = shard_key(order.digest, order.index, order.count)
    found = store.get(_report_key(key))
    if found is None or not store.exists(key):
        return None
    try:
        raw = json.loads(found.content)
        return ShardReport(**(raw | {"summary": ShardSummary(**raw["summary"])}))
    except (ValueError, TypeError, KeyError):
        return None  # Of another release: the shard is made again, which replaces it.


def make_shard(order: ShardOrder, clone: Path, store: Store) -> ShardReport:
    """Make a shard and store it, unless it is there; a worker's whole task.

    A shard that is there but for videos whose failure may have passed is made again from its
    pieces. What a killed attempt on this machine has finished is found in the clone's ``.mrmodel``.

    Args:
        order: the shard.
        clone: folder with the code and params.yaml of the revision, and with the videos of this
            shard (others may be missing).
        store: takes the shard.

    Raises:
        ShardInterrupted: another try may help.
        ShardFailed: it would not. Both survive the way back from another process.
    """
    state = clone.resolve() / ".mrmodel"
    name = f"shard-{order.digest[:16]}-{order.index}-of-{order.count}"
    try:
        # Two attempts at one shard would share its resume state.
        with one_at_a_time(state / "attempts" / f"{name}.lock"):
            found = find_report(order, store)
            if found is not None and not found.summary.passing:
                return found
            return _make(order, clone, store, state / "resume" / name, again=found is not None)
    except (ShardInterrupted, ShardFailed):
        raise
    except StorageError as error:
        raise ShardInterrupted(f"{order}: {error}") from None
    except MrModelError as error:
        raise ShardFailed(f"{order}: {error}") from None


def gather_shards(sharded: ShardedStream, clone: Path, store: Store) -> None:
    """Lay all shards into the work folder of the stage ``extract`` of a clone.

    Args:
        sharded: the stream.
        clone: folder with the code of the revision and all videos, in which the stage runs next.
        store: where the shards are.

    Raises:
        ShardInterrupted: a shard is not in the store, or a process was killed.
        ShardFailed: a shard is refused; the message says which and why.
    """
    with _exchange(clone) as folder:
        write_json(folder / ORDER_FILE, {"count": sharded.count})
        for index in range(sharded.count):
            key = shard_key(sharded.digest, index, sharded.count)
            try:
                store.download(key, folder / tar_name(index, sharded.count))
            except StorageError as error:
                raise ShardInterrupted(str(error)) from None
        try:
            _run_step(clone, sharded.stream, "lay", folder, sharded.stream)
        except ShardFailed as error:
            where = f"{store.url}/pieces/{sharded.digest}/"
            hint = "delete what is named below it to have it made again"
            raise ShardFailed(f"{error}\n  from {where}: {hint}") from None


def forget_shards(sharded: ShardedStream, store: Store) -> None:
    """Remove the shards of a stream whose features are stored elsewhere now."""
    for key in store.keys(f"pieces/{sharded.digest}/"):
        store.delete(key)


def _make(
    order: ShardOrder, clone: Path, store: Store, work_dir: Path, *, again: bool
) -> ShardReport:
    key = shard_key(order.digest, order.index, order.count)
    with _exchange(clone) as folder:
        if again:
            store.download(key, folder / EARLIER_FILE)
        told = {"plan": order.plan, "files": order.files, "workers": order.workers}
        write_json(folder / ORDER_FILE, {**told, "work_dir": str(work_dir)})
        _run_step(clone, order.stream, "make", folder, str(order))
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        store.upload(key, folder / TAR_FILE)
    report = ShardReport(order.index, order.count, socket.gethostname(), ShardSummary(**summary))
    # Last, since it says that the shard is there.
    store.put(_report_key(key), json.dumps(asdict(report), indent=2).encode())
    shutil.rmtree(work_dir)
    return report


def _report_key(key: str) -> str:
    return key.removesuffix(".tar") + ".json"


@contextmanager
def _exchange(clone: Path) -> Iterator[Path]:
    """A folder for what goes to and from a step; git ignores it, and it goes with the clone."""
    parent = clone.resolve() / ".dvc" / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shards-", dir=parent) as name:
        yield Path(name)


def _run_step(clone: Path, stream: str, step: str, folder: Path, whose: str) -> None:
    """Run `mrmodel.pipeline.shards` with the clone's code; it dies with this process."""
    command = [sys.executable, "-m", "mrmodel.pipeline.shards"]
    done = subprocess.run(
        [*command, "--stream", stream, "--step", step, "--folder", str(folder)],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone.resolve()), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = hide_secrets(done.stdout, secrets_of(os.environ)).splitlines()
        last = "\n".join(f"  {line}" for line in said[-_SHOWN_LINES:])
        if done.returncode < 0:
            how = f"its process was killed (signal {-done.returncode})"
            raise ShardInterrupted(f"{whose}: {step}: {how}\n{last}")
        raise ShardFailed(f"{whose}: {step} failed\n{last}")
