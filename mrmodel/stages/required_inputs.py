"""Inputs that the user must provide before the pipeline can run, and which are missing.

DVC would only name a missing path. The stage ``corpus``, which runs before all others, reports
what is missing, where it belongs, and which command creates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrmodel.components import DATASETS, ENCODERS, LAYOUTS
from mrmodel.config.schema import Config
from mrmodel.data.datasets.base import PublishedDataset
from mrmodel.encoders.base import are_aligned
from mrmodel.errors import ConfigError, DataError
from mrmodel.features.importers.layouts import Layout as ArchiveLayout
from mrmodel.stages.paths import Paths

_GUIDE = "docs/howto/your_own_videos.md"


def require_inputs(config: Config, paths: Paths) -> None:
    """Raise an error if inputs are missing, or captions are there that cannot be used.

    Raises:
        DataError: one line per missing input.
        ConfigError: see `check_captions`.
    """
    check_captions(config, paths)
    missing = missing_inputs(config, paths)
    if missing:
        raise DataError("\n  ".join(["these inputs are missing:", *missing]))


def check_captions(config: Config, paths: Paths) -> None:
    """Check that InterVid-MR can compare the captions that are there with clips.

    Raises:
        ConfigError: the first text stream and the first video stream are of two spaces.
    """
    # Imports pandas, which `preset apply` does not need.
    from mrmodel.pretraining.intervid.caption_files import is_caption_table

    folder = paths.root / config.corpus.folder
    own = paths.own_captions.iterdir() if paths.own_captions.is_dir() else ()
    tables = [path for path in sorted(own) if path.is_file() and is_caption_table(path)]
    if (folder / "videos").is_dir():  # Without, the stage `corpus` leaves the captions out.
        tables += [path for path in (folder / "captions.jsonl",) if path.is_file()]
    if config.corpus.source == "sample":
        tables = []
    video, text = config.features.video_streams[0], config.features.text_streams[0]
    known = video in ENCODERS and text in ENCODERS
    if tables and known and not are_aligned(video, text):
        rule = (
            f"InterVid-MR compares the captions of {tables[0]} with clips, and {text} has no "
            f"sentence vectors in the space of {video}: name an aligned pair of streams first, or "
            "move the captions away (docs/reference/intervid_mr.md)"
        )
        raise ConfigError("features.text_streams", text, rule)


def missing_inputs(config: Config, paths: Paths) -> list[str]:
    """What is missing, where it belongs, and how to create it; empty for the sample corpus."""
    if config.corpus.source == "sample":
        return []
    features = config.features
    streams = (*features.video_streams, *features.text_streams)
    return _missing_annotations(config, paths) + missing_streams(config, paths, streams)


def optional_inputs(config: Config, paths: Paths) -> list[str]:
    """Inputs that are absent and without which a part of the pipeline is skipped."""
    folder = paths.root / config.corpus.folder
    captions, rows = folder / "captions.jsonl", folder / "pretrain.jsonl"
    if config.corpus.source == "sample" or captions.is_file() or rows.is_file():
        return []
    if own_table(paths) is not None:
        return []
    return [f"captions {captions}, or {rows}: without, pre-training is skipped; see {_GUIDE}"]


def own_table(paths: Paths) -> Path | None:
    """The caption table in ``own_captions``; None if there is none.

    Raises:
        DataError: the folder holds several.
    """
    # Imports pyarrow, which is not needed where a folder is empty.
    folder = paths.own_captions
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if all(path.suffix == ".md" for path in found):
        return None
    from mrmodel.pretraining.intervid.caption_files import is_caption_table

    tables = [path for path in found if is_caption_table(path)]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"holds several caption tables ({names}); keep one", file=folder)
    return tables[0] if tables else None


def missing_streams(config: Config, paths: Paths, streams: Sequence[str]) -> list[str]:
    """The streams that have neither a store nor the inputs of their encoder.

    Encoder weights are not checked; an encoder reports missing weights when it is used.
    """
    has_videos = (paths.root / config.corpus.folder / "videos").is_dir()
    unstored = [stream for stream in streams if not paths.imported(stream).is_dir()]
    # Text encoders need only the annotations.
    ready = [
        stream
        for stream in unstored
        if stream in ENCODERS and (has_videos or stream in config.features.text_streams)
    ]
    absent = [stream for stream in unstored if stream not in ready]
    if not absent:
        return []
    # If other streams need an archive, text streams are taken from it too.
    wanted = absent if has_videos else unstored
    archived = _by_archive(wanted, config.corpus.name) if config.features.has_imports else {}
    lines = [_archive_line(config, paths, name, found) for name, found in archived.items()]
    held = {stream for found in archived.values() for stream in found}
    return lines + _unarchived(config, paths, [s for s in absent if s not in held])


def _unarchived(config: Config, paths: Paths, streams: Sequence[str]) -> list[str]:
    """Lines about streams that are in no archive."""
    lines = [
        f"features {stream}: no store in {paths.imports}, no encoder of that name, and no archive "
        f"of {config.corpus.name} has it"
        for stream in streams
        if stream not in ENCODERS
    ]
    encoded = [stream for stream in streams if stream in ENCODERS]
    if encoded:
        folder = paths.root / config.corpus.folder / "videos"
        lines.append(f"videos {folder}/<vid>.mp4, from which {', '.join(encoded)} is extracted")
    return lines


def _missing_annotations(config: Config, paths: Paths) -> list[str]:
    folder = paths.root / config.corpus.folder
    absent = [folder / f"{split}.jsonl" for split in ("train", "val")]
    absent = [path for path in absent if not path.is_file()]
    if not absent:
        return []
    shown = f"annotations {', '.join(map(str, absent))}"
    if config.corpus.name not in DATASETS:
        return [f"{shown}: see {_GUIDE}"]
    dataset: PublishedDataset = DATASETS.get(config.corpus.name)()
    names = ", ".join(file.names[0] for file in dataset.files)
    domain = " --domain DOMAIN" if dataset.domains else ""
    command = f"mrmodel data convert {dataset.name} FOLDER{domain} --output {folder}"
    return [f"{shown}: `{command}`, where FOLDER holds {names}"]


def _archive_line(config: Config, paths: Paths, name: str, streams: Sequence[str]) -> str:
    """Where the stores of some streams belong, and the command to import them."""
    folder = paths.root / config.corpus.folder
    options = f"--corpus {folder} --output {paths.imports}"
    line = (
        f"features {', '.join(streams)} in {paths.imports}: "
        f"`mrmodel features import ARCHIVE --layout {name} {options}`, "
        f"where ARCHIVE is {LAYOUTS.get(name).title}"
    )
    if all(stream in ENCODERS for stream in streams):
        line += f"; or videos {folder / 'videos'}/<vid>.mp4, as there are encoders of these"
    return line


def _by_archive(streams: Sequence[str], dataset: str) -> dict[str, list[str]]:
    """Layout -> the streams to take from it, with as few layouts as possible."""
    layouts: dict[str, ArchiveLayout] = {name: LAYOUTS.get(name) for name in LAYOUTS}
    # Archives of this data set before generic ones.
    known = sorted(layouts, key=lambda name: dataset not in layouts[name].datasets)
    known = [
        name for name in known if dataset in layouts[name].datasets or not layouts[name].datasets
    ]
    chosen: dict[str, list[str]] = {}
    left = list(streams)
    while left and known:
        held = {
            name: [s for s in left if s in {found.name for found in layouts[name].streams}]
            for name in known
        }
        best = max(known, key=lambda name: len(held[name]))  # the first of equals
        if not held[best]:
            break
        chosen[best] = held[best]
        left = [stream for stream in left if stream not in held[best]]
    return chosen
