"""A model folder with tiny encoders, without a training, and a video to search."""

from __future__ import annotations

from pathlib import Path

import torch

from mrmodel.config.postprocess import VALIDATION
from mrmodel.encoders.tiny import TinyTextEncoder, TinyVideoEncoder
from mrmodel.predict.predictor import stream_of
from mrmodel.predict.serving import write_serving
from mrmodel.train.checkpoint import ModelConfig, save_model
from tests.video.fixtures import write_video

SMALL = {"hidden": 16, "heads": 2, "ffn": 24}
CLIP_LEN_S = 2.0


def write_model(folder: Path) -> Path:
    """A moment_detr with random weights; the same ones each time."""
    config = ModelConfig(
        model="moment_detr",
        settings=SMALL,
        video_streams=(stream_of(TinyVideoEncoder(), CLIP_LEN_S),),
        text_streams=(stream_of(TinyTextEncoder(), None),),
        clip_len_s=CLIP_LEN_S,
        max_clips=75,
        max_tokens=32,
        protocol="qvhighlights",
        training={},
    )
    torch.manual_seed(0)
    save_model(folder, config.build(), config)
    write_serving(folder, VALIDATION)
    return folder


def write_short_video(path: Path) -> Path:
    """Eight seconds."""
    return write_video(path, n_frames=32, fps=4)
