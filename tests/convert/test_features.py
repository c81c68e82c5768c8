"""What the how-to says of the features behind published checkpoints."""

import pytest
import torch
from torch import nn

from mrmodel.convert.streams import Modality, usual_streams
from mrmodel.features.prepare import prepare_text


def test_the_layer_norm_undoes_the_normalisation_of_tokens() -> None:
    """Rows of TVSum's tokens are read as they are by the published code; here they have norm 1."""
    rows = torch.randn(2, 7, 512, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.linspace(0.2, 2.0, 7)[:, None]
    prepared = prepare_text([rows], torch.ones(2, 7, dtype=torch.bool))
    norm = nn.LayerNorm(512)
    published, ours = norm(rows), norm(prepared)
    assert not torch.allclose(rows, prepared, rtol=0.5)
    torch.testing.assert_close(ours, published, rtol=0.01, atol=1e-4)


SLOWFAST, CLIP, BLIP = "slowfast.video2304", "clip_b32.video512", "blip2.video768"
CLIP_TEXT = "clip_b32.text512"


@pytest.mark.parametrize(
    ("modality", "width", "options", "names"),
    [
        ("video", 2816, {}, [SLOWFAST, CLIP]),
        ("video", 2816, {"v_feat_dirs": ["a/slowfast_x", "a/clip_x"]}, [SLOWFAST, CLIP]),
        ("video", 2816, {"v_feat_dirs": ["qv/clip", "qv/slowfast"]}, [CLIP, SLOWFAST]),
        ("video", 2816, {"v_feat_dirs": ["mine/rows"]}, [SLOWFAST, CLIP]),
        ("video", 3584, {"v_feat_dirs": ["slowfast", "clip", "blip"]}, [SLOWFAST, CLIP, BLIP]),
        ("video", 2048, {"v_feat_dirs": ["tvsum/i3d_features"]}, ["i3d.video2048"]),
        (
            "video",
            4864,
            {"v_feat_dirs": ["qv/clip", "qv/slowfast"], "a_feat_dirs": ["qv/pann"]},
            [CLIP, SLOWFAST, "pann.audio2048"],
        ),
        ("text", 512, {"t_feat_dir": "features/clip_text_features/"}, [CLIP_TEXT]),
        ("text", 1280, {"t_feat_dirs": ["clip_text", "blip_text"]}, [CLIP_TEXT, "blip2.text768"]),
        ("text", 300, {"t_feat_dir": "features/charades/glove"}, ["glove.text300"]),
    ],
)
def test_streams_follow_the_folders_of_the_options(
    modality: Modality, width: int, options: dict, names: list[str]
) -> None:
    assert [stream.name for stream in usual_streams("qd_detr", modality, width, options)] == names
