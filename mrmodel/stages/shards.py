"""Steps of a sharded extraction, each a command in a clone of the revision to extract.

``python -m mrmodel.stages.shards --stream S --step plan|make|lay --folder DIR``; see
`mrmodel.orchestrate.sharding`, which runs them. They are not stages: the stage `extract` uses what
``lay`` has put into its work folder.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mrmodel.config.schema import Config
from mrmodel.errors import ConfigError, FeatureError
from mrmodel.features.extraction.job_runner import (
    ExtractionSettings,
    describe_stream,
    extraction_plan,
    require_plan,
)
from mrmodel.features.extraction.partial_results import PartialResults
from mrmodel.features.extraction.shards import extract_shard, merge_shard
from mrmodel.features.keys import shard_of
from mrmodel.files import read_json, write_json
from mrmodel.progress import Reporter
from mrmodel.stages.extract import extraction_settings, videos_in, work_folder
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage_with

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
ORDER_FILE = "order.json"
SUMMARY_FILE = "summary.json"
TAR_FILE = "shard.tar"
EARLIER_FILE = "earlier.tar"


def step(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Run one step; its inputs and outputs are in ``--folder``.

    Raises:
        ConfigError: no such step.
    """
    stream, folder = arguments["stream"], Path(arguments["folder"])
    match arguments["step"]:
        case "plan":
            write_json(folder / PLAN_FILE, stream_plan(config, stream))
        case "make":
            make(config, reporter, stream, folder)
        case "lay":
            merge(config, stream, folder)
        case other:
            raise ConfigError("--step", other, "must be plan, make or lay")


def stream_plan(config: Config, stream: str) -> dict[str, Any]:
    """Inputs that determine the partial results of a video stream; see `extraction_plan`."""
    info = describe_stream(stream, "video", config.features.clip_len_s)
    return extraction_plan(info, extraction_settings(config, Path()).limits)


def make(config: Config, reporter: Reporter, stream: str, folder: Path) -> None:
    """Extract the shard described by ``order.json`` to ``shard.tar`` and ``summary.json``.

    ``earlier.tar`` is an earlier attempt with transient failures; its successful results are kept.

    Raises:
        FeatureMismatch: this machine would produce other features than the order requires.
    """
    order = read_json(folder / ORDER_FILE)
    require_plan(f"{stream} on this machine", stream_plan(config, stream), order["plan"])
    root = Paths(config).videos
    videos = {Path(name).stem: root / name for name in order["files"]}
    settings = extraction_settings(config, Path(order["work_dir"]))
    settings = replace(settings, workers=order["workers"] or settings.workers)
    if (folder / EARLIER_FILE).exists():
        _keep(folder / EARLIER_FILE, videos, order["plan"], settings)
    clip_len_s = config.features.clip_len_s
    summary = extract_shard(videos, stream, clip_len_s, folder / TAR_FILE, settings, reporter)
    write_json(folder / SUMMARY_FILE, asdict(summary))


def merge(config: Config, stream: str, folder: Path) -> None:
    """Unpack ``<index>-of-<count>.tar`` into the work folder of the stage ``extract``.

    Raises:
        FeatureError: a shard is rejected, see `merge_shard`.
    """
    count = read_json(folder / ORDER_FILE)["count"]
    videos, plan = videos_in(Paths(config)), stream_plan(config, stream)
    pieces = PartialResults(work_folder(config, stream))
    pieces.open(plan)
    for index in range(count):
        tar = folder / tar_name(index, count)
        laid = merge_shard(
            tar, {key: videos[key] for key in shard_of(videos, index, count)}, plan, pieces
        )
        log.info("%s: shard %d of %d: %d videos", stream, index, count, laid.n_items)


def tar_name(index: int, count: int) -> str:
    """Name of a shard's file."""
    return f"{index}-of-{count}.tar"


def _keep(
    earlier: Path, videos: dict[str, Path], plan: dict[str, Any], settings: ExtractionSettings
) -> None:
    folder = PartialResults(settings.work_dir)
    folder.open(plan)
    try:
        merge_shard(earlier, videos, plan, folder)
    except FeatureError as error:
        log.warning("made anew: %s", error)


if __name__ == "__main__":
    # Only the stage `extract` is tracked.
    run_stage_with(step, ("stream", "step", "folder"), recorded=False)
