"""Which model answers about a video: the one that is named, the served one, or none (zero-shot)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mrmodel.components import ENCODERS
from mrmodel.config.schema import Config, load_config

if TYPE_CHECKING:
    from mrmodel.predict.predictor import Predictor

_PARAMS = Path("params.yaml")
_SERVED = Path("models/served")


class ModelChoice(NamedTuple):
    """A predictor, and why it is not the served model; empty if it is that, or was named."""

    predictor: Predictor
    note: str = ""


def choose_model(
    model: str | Path | None, videos: Iterable[Path], device: str, encoded: Collection[str] = ()
) -> ModelChoice:
    """The predictor for these videos.

    The served model, unless it was trained on a rendered corpus and a video is not of that corpus:
    it knows pictograms, and similarity alone finds more in photographs. Where a folder does not say
    what it was trained on, it is used. Zero-shot, too, where the videos are encoded for that alone.

    Args:
        model: folder or ``zero-shot``; None: choose, from the working directory.
        videos: files, or pointers to videos in S3.
        device: of a trained model.
        encoded: fingerprints of the streams that the videos were encoded for; empty: not yet.

    Raises:
        CheckpointError: it is no model folder, or one that this version cannot read.
        FeatureError, FeatureMismatch: see `Predictor`.
    """
    folder, note = model_for(model, videos, encoded)
    return ModelChoice(load_model_for(folder, device), note)


def model_for(
    model: str | Path | None, videos: Iterable[Path], encoded: Collection[str] = ()
) -> tuple[Path | None, str]:
    """The folder that `choose_model` loads, or None for zero-shot, and its note."""
    from mrmodel.predict.zero_shot import ZERO_SHOT_MODEL

    if model is not None:
        return (None if str(model) == ZERO_SHOT_MODEL else Path(model)), ""
    folder = served_model(_params())
    if folder is None:
        return None, f"no trained model in {_SERVED} (`make repro` makes one): answered zero-shot"
    if (other := _not_of_the_corpus(folder, videos)) is not None:
        return None, (
            f"{folder} was trained on the rendered sample, and {other} is not of it: answered "
            f"zero-shot; `--model {folder}` uses it all the same"
        )
    if encoded and _for_zero_shot_alone(folder, encoded):
        return None, (
            f"the videos are encoded for zero-shot and not for {folder}: answered zero-shot; "
            f"`mrmodel index refresh --model {folder}` encodes them for it"
        )
    return folder, ""


def load_model_for(folder: Path | None, device: str) -> Predictor:
    """Load what `model_for` says."""
    from mrmodel.predict.predictor import Predictor  # takes seconds, and few commands need it

    if folder is None:
        return Predictor.zero_shot(**zero_shot_settings(_params()))
    return Predictor.load(folder, device)


def _params() -> Config | None:
    return load_config(_PARAMS) if _PARAMS.exists() else None


def served_model(config: Config | None) -> Path | None:
    """The first served model of `train.models`, or else the first that exists, if any."""
    folders = sorted(path.parent for path in _SERVED.glob("*/config.json"))
    if config is not None:
        wanted = config.train.models
        folders.sort(key=lambda folder: [*wanted, folder.name].index(folder.name))
    return next(iter(folders), None)


def zero_shot_settings(config: Config | None) -> dict[str, Any]:
    """Arguments of `Predictor.zero_shot`: those of the stage ``evaluate`` where there are params.

    Its streams are the first ones of the parameters if these can be compared.
    """
    from mrmodel.encoders.base import are_aligned

    if config is None:
        return {}
    features = config.features
    settings: dict[str, Any] = {
        "clip_len_s": features.clip_len_s,
        "threshold_std": config.evaluate.zero_shot_std,
    }
    streams = features.video_streams[0], features.text_streams[0]
    if all(name in ENCODERS for name in streams) and are_aligned(*streams):
        settings["streams"] = streams
    return settings


def _for_zero_shot_alone(folder: Path, encoded: Collection[str]) -> bool:
    """Whether rows with these fingerprints serve zero-shot, but not the model of a folder."""
    from mrmodel.predict.predictor import Predictor
    from mrmodel.train.checkpoint import read_model_config

    if all(stream.fingerprint in encoded for stream in read_model_config(folder).video_streams):
        return False
    streams = Predictor.zero_shot(**zero_shot_settings(_params())).config.video_streams
    return all(stream.fingerprint in encoded for stream in streams)


def _not_of_the_corpus(folder: Path, videos: Iterable[Path]) -> Path | None:
    """The first video that lies apart from the rendered corpus of a model; None: none does."""
    from mrmodel.predict.serving import trained_on_rendered
    from mrmodel.train.checkpoint import read_model_config

    if not trained_on_rendered(folder):
        return None
    corpus = Path("data") / str(read_model_config(folder).training.get("corpus")) / "videos"
    # Not of the file itself: DVC may keep it as a link into its cache.
    apart = (one for one in videos if not one.parent.resolve().is_relative_to(corpus.resolve()))
    return next(apart, None)
