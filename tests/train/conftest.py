from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mrmodel.config.schema import RunSettings, TrainSettings, parse_config
from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.features.keys import text_key
from mrmodel.features.store import MemoryStore
from mrmodel.models.base import MomentModel, build_model
from mrmodel.types import Annotation

N_VIDEOS, DIM = 20, 16
SETTINGS = {"hidden": 32, "heads": 4, "ffn": 64, "encoder_layers": 1, "decoder_layers": 1}


def make_annotations() -> list[Annotation]:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(N_VIDEOS):
        start = 2.0 * int(rng.integers(0, 6))
        clips = tuple(range(int(start) // 2, int(start) // 2 + 3))
        rows.append(
            Annotation(
                qid=100 + number,
                query=f"sentence {number}",
                vid=f"video{number}",
                duration=20.0,
                relevant_windows=((start, start + 6.0),),
                relevant_clip_ids=clips,
                saliency_scores=tuple((2.0, 3.0, 4.0) for _ in clips),
            )
        )
    return rows


@pytest.fixture(scope="session")
def dataset() -> MomentDataset:
    """Videos of ten clips in which a marked channel says where the moment is."""
    rng = np.random.default_rng(0)
    annotations = make_annotations()
    video, text = {}, {}
    for row in annotations:
        clips = rng.normal(size=(10, DIM))
        clips[list(row.relevant_clip_ids), 0] += 4.0
        video[row.vid] = clips
        text[text_key(row.query)] = rng.normal(size=(int(rng.integers(3, 6)), DIM))
    builder = BatchBuilder(
        [MemoryStore("video", video, 2.0)], [MemoryStore("text", text)], RowLimits(75, 32)
    )
    settings = LoaderSettings(batch_size=8, seed=3, targets=TargetSettings(max_windows=5))
    return MomentDataset(annotations, builder, settings)


@pytest.fixture(scope="session")
def train_settings() -> TrainSettings:
    raw = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    settings = parse_config(raw).train
    changes = {"threads": 1, "device": "cpu", "checkpoint_every_steps": 4, "batch_size": 8}
    return settings.model_copy(update={**changes, "validate_every_epochs": 2})


@pytest.fixture(scope="session")
def run() -> RunSettings:
    return RunSettings(
        epochs=None,
        steps=24,
        lr=3e-3,
        schedule="cosine",
        step_size=100,
        milestones=[],
        gamma=0.5,
        warmup=2,
        warmup_unit="step",
        select="last",
    )


def make_model() -> MomentModel:
    torch.manual_seed(0)
    return build_model("moment_detr", DIM + 2, DIM, SETTINGS)
