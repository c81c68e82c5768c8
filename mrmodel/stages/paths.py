"""Where everything lies below the repository root; dvc.yaml names the same places."""

from __future__ import annotations

from pathlib import Path

from mrmodel.config.schema import Config

PIN_FILE = "encoder_weights.lock"
SPLITS = ("train", "val", "test")


class Paths:
    """Folders of one configuration, relative to the current folder."""

    def __init__(self, config: Config, root: Path = Path()) -> None:
        self.root = root
        self.corpus = root / "data" / config.corpus.name
        self.videos = self.corpus / "videos"
        self.captions = self.corpus / "captions.jsonl"
        self.features = root / "features" / config.corpus.name
        self.imports = root / config.features.imports
        self.intervid = root / "data" / "intervid_mr"
        self.reports = root / "reports"
        self.training = self.reports / "training"
        self.evaluation = self.reports / "evaluation"
        self.metrics = self.reports / "metrics"
        self.profile = self.reports / "profile.json"
        self.weight_pins = root / PIN_FILE
        self.state = root / ".mrmodel"

    def split(self, name: str) -> Path:
        """Annotations of the split ``train``, ``val`` or ``test``."""
        return self.corpus / f"{name}.jsonl"

    def stream(self, name: str) -> Path:
        """Feature store of one stream."""
        return self.features / name

    def imported(self, name: str) -> Path:
        """Store of a stream that `mrmodel features import` wrote, if it is there."""
        return self.imports / name

    def model(self, kind: str, name: str) -> Path:
        """Model folder; `kind` is ``pretrained``, ``imported``, ``finetuned`` or ``scratch``."""
        return self.root / "models" / kind / name

    def served(self, name: str) -> Path:
        """The fine-tuned model with its post-processing, as it is served."""
        return self.root / "models" / "served" / name

    def resume(self, stage: str, inputs: str) -> Path:
        """State of an interrupted stage with that digest of its inputs; never one of DVC's outs."""
        return self.state / "resume" / stage / inputs[:16]
