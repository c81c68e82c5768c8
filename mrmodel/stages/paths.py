"""Paths below the repository root, the same as in dvc.yaml."""

from __future__ import annotations

from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.names import MODEL, STREAM

PIN_FILE = "encoder_weights.lock"
SPLITS = ("train", "val", "test")


class Paths:
    """Folders of a configuration, relative to the working directory.

    Methods raise ConfigError on a name that is none, whoever gave it.
    """

    def __init__(self, config: Config, root: Path = Path()) -> None:
        self.root = root
        self.corpus = root / "data" / config.corpus.name
        self.videos = self.corpus / "videos"
        self.captions = self.corpus / "captions.jsonl"
        self.features = root / "features" / config.corpus.name
        self.imports = root / config.features.imports
        self.own_captions = root / "own_captions"
        self.benchmarks = self.own_captions / "benchmarks"
        self.intervid_filter = root / "data" / "intervid_filter"
        self.intervid_select = root / "data" / "intervid_select"
        self.intervid = root / "data" / "intervid_mr"
        self.video_captions = root / "data" / "video_captions"
        self.reports = root / "reports"
        self.training = self.reports / "training"
        self.evaluation = self.reports / "evaluation"
        self.metrics = self.reports / "metrics"
        self.profile = self.reports / "profile.json"
        self.weight_pins = root / PIN_FILE
        self.state = root / ".mrmodel"

    def split(self, name: str) -> Path:
        """Annotations of a split, or those to pre-train on: ``pretrain``, ``pretrain_val``."""
        return self.corpus / f"{name}.jsonl"

    def stream(self, name: str) -> Path:
        """Feature store of one stream."""
        STREAM.require("stream", name)
        return self.features / name

    def imported(self, name: str) -> Path:
        """Store of a stream written by `mrmodel features import`, which need not exist."""
        STREAM.require("stream", name)
        return self.imports / name

    def model(self, kind: str, name: str) -> Path:
        """Model folder; `kind` is ``pretrained``, ``imported``, ``finetuned`` or ``scratch``."""
        MODEL.require("kind", kind)
        MODEL.require("model", name)
        return self.root / "models" / kind / name

    def served(self, name: str) -> Path:
        """The packaged model: fine-tuned weights with their post-processing."""
        return self.model("served", name)

    def resume(self, stage: str, inputs: str) -> Path:
        """Resume state of a stage with this digest of its inputs; never a DVC output."""
        return self.state / "resume" / stage / inputs[:16]
