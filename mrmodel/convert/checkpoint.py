"""``mrmodel weights import``: converts a published checkpoint to a model folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mrmodel.components import MODELS
from mrmodel.config.base import MAX_CLIP_LEN_S, MIN_CLIP_LEN_S
from mrmodel.convert.features import check_features, end_points_last, notes, text_width, video_width
from mrmodel.convert.parameter_names import MatchResult, match_state
from mrmodel.convert.safe_unpickle import PublishedCheckpoint, read_published, separated
from mrmodel.convert.settings import (
    SIGNATURE_KEYS,
    Setting,
    default_of,
    infer_settings,
    legacy_switches,
    nested,
    recognise,
)
from mrmodel.convert.sg_detr import (
    infer_sg_detr,
    published_limits,
    published_postprocess,
    without_anchors,
)
from mrmodel.convert.streams import Modality, StreamName, model_streams, published_streams
from mrmodel.errors import CheckpointError, ConfigError
from mrmodel.files import replaced_folder, sha256_of
from mrmodel.predict.serving import SERVING, write_serving
from mrmodel.text import columns
from mrmodel.train.checkpoint import CONFIG, WEIGHTS, ModelConfig, ModelStream, save_model


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Result of an import; the model folder was written only if `fit.mismatches` is empty.

    Attributes:
        config: of the model folder.
        settings: of the model, with their sources.
        limits: ``clip_len_s``, ``max_clips`` and ``max_tokens``, with their sources.
        protocol: evaluation protocol of the data set, with its source.
        fit: tensors that match, are unused, or do not match.
        notes: remarks about the file for the user.
    """

    config: ModelConfig
    settings: tuple[Setting, ...]
    limits: tuple[Setting, ...]
    protocol: Setting
    fit: MatchResult
    notes: tuple[str, ...]

    @property
    def section(self) -> dict[str, Any]:
        """``models.<model>`` of params.yaml: the values that differ from the published ones."""
        kind = MODELS.get(self.config.model).Settings
        preset = {s.name: s.value for s in self.settings if s.name == "preset"}
        return preset | nested(
            [s for s in self.settings if s.value != default_of(kind, s.name, **preset)]
        )


def format_report(report: ImportReport) -> str:
    """The report as text: sizes and their sources, streams, unused and mismatched tensors."""
    config, fit = report.config, report.fit
    params = {"features": nested(list(report.limits)), "models": {config.model: report.section}}
    settings = [*report.settings, *(replace(s, name=f"features.{s.name}") for s in report.limits)]
    settings.append(report.protocol)
    lines = [
        f"{config.model}: {len(fit.state)} tensors fit",
        *_table(("setting", "value", "from"), ((s.name, s.value, s.source) for s in settings)),
        f"video streams: {_streams(config.video_streams)}",
        f"text streams: {_streams(config.text_streams)}",
        f"params.yaml: {yaml.safe_dump(params, default_flow_style=True, width=10_000).strip()}",
    ]
    if fit.unused:
        lines.append(f"left out, no result depends on it: {_by_module(fit.unused)}")
    lines += [f"note: {note}" for note in report.notes]
    if fit.mismatches:
        rows = [(mismatch.name, mismatch.found, mismatch.expected) for mismatch in fit.mismatches]
        lines += _table(("tensor that does not fit", "in the file", "in the model"), rows)
        lines.append(f"{len(rows)} tensors do not fit: nothing is written")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [list(head), *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    return [f"  {line}" for line in columns(cells)]


def _streams(streams: Iterable[ModelStream]) -> str:
    return ", ".join(f"{stream.name} ({stream.dim}, {_maker(stream)})" for stream in streams)


def _maker(stream: ModelStream) -> str:
    return "of another program" if stream.fingerprint is None else "registered encoder"


def _by_module(names: Iterable[str]) -> str:
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} ({count} tensors)" for module, count in counts.items())


# Published options that name the data set, and its names there -> evaluation protocol.
_DATA_SET_OPTIONS = ("dset_name", "metrics_mode")
_PROTOCOLS = {
    "qvhighlights": "qvhighlights",
    "charades": "charades",
    "charadesSTA": "charades",
    "tacos": "tacos",
    "tvsum": "tvsum",
    "youtube_highlight": "youtube_hl",
    "youtube_uni": "youtube_hl",
    "youtube": "youtube_hl",
}
_LIMIT_OPTIONS = {"clip_len_s": "clip_length", "max_clips": "max_v_l", "max_tokens": "max_q_l"}
# Meaning of -1 in lighthouse.
_NO_LIMIT = {"max_clips": None, "max_tokens": 100}


@dataclass(frozen=True, slots=True)
class CheckpointImportRequest:
    """What to import, and settings that are not in the file.

    Attributes:
        file: the published checkpoint.
        output: model folder to write.
        format: one of `FORMATS`; ``auto`` infers it from the tensor names.
        video_streams, text_streams: feature streams in order; empty: the published ones.
        given: values that override the file's options: ``heads``, ``clip_len_s``, ``max_clips``,
            ``max_tokens``, ``dataset`` (evaluation protocol).
        legacy: enable all options that reproduce published quirks.
        replace: overwrite a model in `output`.
    """

    file: Path
    output: Path
    format: str = "auto"
    video_streams: tuple[StreamName, ...] = ()
    text_streams: tuple[StreamName, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    legacy: bool = False
    replace: bool = False


def import_checkpoint(request: CheckpointImportRequest) -> ImportReport:
    """Read, check and convert a published checkpoint; write the model folder if all matches.

    Raises:
        CheckpointError: the file cannot be read, is of another model, has a setting out of range,
            or uses features in an unsupported form; or the stream widths do not add up; or
            `output` holds a model.
        OutputError: `output` cannot be written.
    """
    if (request.output / CONFIG).exists() and not request.replace:
        raise CheckpointError(f"{request.output}: holds a model; --force replaces it")
    file = read_published(request.file)
    try:
        settings, limits, protocol, config = _describe(request, file)
        # Shapes are compared before anything is allocated: sizes in the file are not trusted.
        with torch.device("meta"):
            model = config.build()
        fit = match_state(config.model, without_anchors(end_points_last(file)), model)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{request.file}: {error}") from None
    if not fit.mismatches:
        model.load_state_dict(separated({n: t.float() for n, t in fit.state.items()}), assign=True)
        with replaced_folder(request.output, WEIGHTS, CONFIG, SERVING, ".*.tmp") as folder:
            if config.model == "sg_detr":
                write_serving(folder, published_postprocess(config.protocol))
            save_model(folder, model, config)
    return ImportReport(config, settings, limits, protocol, fit, notes(file.options))


def _describe(
    request: CheckpointImportRequest, file: PublishedCheckpoint
) -> tuple[tuple[Setting, ...], tuple[Setting, ...], Setting, ModelConfig]:
    """Settings of the model, limits of its input, protocol, config.json of the model folder."""
    name = _model_of(file, request.format)
    check_features(name, file)
    protocol = _protocol(request, file)
    settings = _settings(name, request, file, protocol.value)
    tree = nested(settings)
    if name == "sg_detr":
        published = published_limits(protocol.value)
    else:
        published = {"clip_len_s": 2.0, "max_clips": 75, "max_tokens": tree.get("max_tokens", 32)}
    limits = _limits(request, file, published)
    limit = nested(limits)
    _check_tables(tree, limit)
    clip_len_s = float(limit["clip_len_s"])
    widths: dict[Modality, int] = {"video": video_width(file), "text": text_width(file)}
    named = {"video": request.video_streams, "text": request.text_streams}
    video_streams, text_streams = (
        model_streams(named[modality], modality, width, clip_len_s)
        if named[modality]
        else published_streams(name, modality, width, file.options)
        for modality, width in widths.items()
    )
    config = ModelConfig(
        model=name,
        settings=tree,
        video_streams=video_streams,
        text_streams=text_streams,
        clip_len_s=clip_len_s,
        max_clips=limit["max_clips"],
        max_tokens=limit["max_tokens"],
        protocol=protocol.value,
        training={"run": "import", "file": request.file.name, "sha256": sha256_of(request.file)},
    )
    return tuple(settings), tuple(limits), protocol, config


def _model_of(file: PublishedCheckpoint, wanted: str) -> str:
    named = file.options.get("model_name")
    if named is not None and str(named) not in SIGNATURE_KEYS:
        known = ", ".join(sorted(SIGNATURE_KEYS))
        raise CheckpointError(f"holds a {named}, which is not known here (known: {known})")
    found = recognise(file.shapes)
    if wanted in SIGNATURE_KEYS and wanted != found:
        raise CheckpointError(f"has the tensors of {found}, not of {wanted}: --format {found}")
    if wanted == "lighthouse" and not file.lighthouse:
        raise CheckpointError(
            "has no options of lighthouse; a file without them is read with --format auto"
        )
    return found


def _settings(
    name: str, request: CheckpointImportRequest, file: PublishedCheckpoint, protocol: str
) -> list[Setting]:
    if name == "sg_detr":
        settings = infer_sg_detr(file.shapes, protocol)
    else:
        settings = infer_settings(name, file.shapes, file.options)
    if "heads" in request.given:
        settings = [setting for setting in settings if setting.name != "heads"]
        settings.append(_given(request, "heads"))
    return settings + (legacy_switches(name) if request.legacy else [])


def _protocol(request: CheckpointImportRequest, file: PublishedCheckpoint) -> Setting:
    """Evaluation protocol of the data set."""
    name = "evaluate.protocol"
    if "dataset" in request.given:
        return replace(_given(request, "dataset"), name=name)
    for option in _DATA_SET_OPTIONS:
        found = _PROTOCOLS.get(str(file.options.get(option)))
        if found is not None:
            return Setting(name, found, f"option {option}")
    return Setting(name, "qvhighlights", "published value")


def _limits(
    request: CheckpointImportRequest, file: PublishedCheckpoint, published: Mapping[str, Any]
) -> list[Setting]:
    """Clip length, maximum clips and maximum tokens, `published` unless the file has others."""
    limits = []
    for name, option in _LIMIT_OPTIONS.items():
        if name in request.given:
            given = _given(request, name)
            _check_limit(given.source, given.value, whole=name != "clip_len_s")
            limits.append(given)
        elif file.options.get(option) is None:
            limits.append(Setting(name, published[name], "published value"))
        else:
            value = _NO_LIMIT.get(name) if file.options[option] == -1 else file.options[option]
            _check_limit(option, value, whole=name != "clip_len_s")
            limits.append(Setting(name, value, f"option {option}"))
    return limits


def _check_limit(option: str, value: object, *, whole: bool) -> None:
    numbers = int if whole else (int, float)
    if value is None and whole:
        return
    if isinstance(value, bool) or not isinstance(value, numbers) or not 0 < value < math.inf:
        kind = "a whole number" if whole else "a number"
        raise CheckpointError(f"{option} is {value!r}; expected {kind} above 0")
    if not whole and not MIN_CLIP_LEN_S <= value <= MAX_CLIP_LEN_S:
        rule = f"expected {MIN_CLIP_LEN_S:g} to {MAX_CLIP_LEN_S:g} seconds"
        raise CheckpointError(f"{option} is {value!r}; {rule}")


def _check_tables(tree: Mapping[str, Any], limit: Mapping[str, Any]) -> None:
    """Check that token positions and window classes, if any, suffice for the input limits."""
    used = {
        "max_tokens": ("token positions", bool(tree.get("text_positions"))),
        "max_clips": ("window classes", tree.get("span_loss") == "ce"),
    }
    for name, (table, is_used) in used.items():
        wanted, rows = limit[name], tree.get(name, math.inf)
        if is_used and (wanted is None or wanted > rows):
            option = name.replace("_", "-")
            raise CheckpointError(
                f"{name} is {'unlimited' if wanted is None else wanted}, and the model has {rows} "
                f"{table}: --{option} {rows}"
            )


def _given(request: CheckpointImportRequest, name: str) -> Setting:
    option = name.removesuffix("_s").replace("_", "-")
    return Setting(name, request.given[name], f"--{option}")
