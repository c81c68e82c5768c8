"""An extraction over several workers: each shard in a clone of its own, with its own videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrmodel.config import ShardSettings, load_config
from mrmodel.orchestrate.clone import fresh_clone
from mrmodel.orchestrate.graph import StageGraph
from mrmodel.orchestrate.order import StageOrder
from mrmodel.orchestrate.places import Places
from mrmodel.orchestrate.results import Handover
from mrmodel.orchestrate.sharded import ShardedStream, ShardOrder
from mrmodel.orchestrate.shards import plan_of
from mrmodel.orchestrate.transfer import Transfer
from mrmodel.pipeline.layout import Layout
from mrmodel.processes import tasks_at_once, worker_count

PARAMS = "params.yaml"


def sharded_stream(order: StageOrder, settings: ShardSettings) -> ShardedStream:
    """What the shards of a stage ``extract@<stream>`` are about; needs no video.

    Raises:
        OrchestrationError: the revision, or the stage in it, cannot be had.
        ShardFailed: the revision does not know the encoder.
    """
    with _clone(order) as (folder, graph, _):
        config = load_config(folder / PARAMS)
        stream = order.stage.partition("@")[2]
        contents = {path: value or "" for path, value in graph.contents(order.stage).items()}
        return ShardedStream(
            stream,
            plan_of(folder, stream),
            contents,
            tuple(graph.listing(str(Layout(config).videos))),
            settings.count,
            processes_each(settings, config.features.workers),
        )


@contextmanager
def shard_folder(where: Path | StageOrder, shard: ShardOrder) -> Iterator[Path]:
    """A folder with the code and the videos of one shard.

    Args:
        where: a folder that has them, or the stage's order: then a fresh clone, which is removed
            after, with these videos pulled.
        shard: names the videos.
    """
    if isinstance(where, Path):
        yield where
        return
    with _clone(where) as (folder, graph, transfer):
        transfer.fetch(graph.repo, [str(_videos(folder) / name) for name in shard.files])
        yield folder


@contextmanager
def _clone(order: StageOrder) -> Iterator[tuple[Path, StageGraph, Transfer]]:
    places = Places.from_environment()
    handover = Handover(places.handover, places.endpoint)
    transfer = Transfer(places, handover)
    with fresh_clone(places, order.rev, order.locks) as folder:
        yield folder, StageGraph(folder, transfer.remote, handover.wait), transfer


def processes_each(settings: ShardSettings, workers: int) -> int:
    """Worker processes of one shard; 0: one a core of the machine that makes it.

    Shards that this machine makes at the same time share what ``features.workers`` allows (0: its
    cores). On a cluster elsewhere each shard may use all of it.

    Args:
        settings: how the extraction is spread.
        workers: ``features.workers``.
    """
    if settings.address is not None:
        return workers
    return max(1, worker_count(workers) // tasks_at_once(settings.count))


def _videos(folder: Path) -> Path:
    """Folder of the videos, relative to the clone."""
    return Layout(load_config(folder / PARAMS)).videos
