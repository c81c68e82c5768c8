"""Which feature streams local saliency can be taken from."""

from __future__ import annotations

from typing import Any

import pytest

from mrmodel.components import MODELS
from mrmodel.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "video_dims"),
    [
        ({}, [384]),
        ({}, [384, 56]),
        ({"local": {"first_channel": 56}}, [56, 384]),
        ({"local": {"space": "projected"}}, [2304, 512]),
    ],
)
def test_an_aligned_stream_is_there(settings: dict[str, Any], video_dims: list[int]) -> None:
    MODELS.get("sg_detr").check_streams(settings, video_dims, [384])


@pytest.mark.parametrize(
    ("settings", "video_dims"),
    [
        ({}, [2304, 512]),
        ({}, [56, 384]),
        ({"local": {"first_channel": 10}}, [384, 56]),
        ({"local": {"first_channel": 440}}, [384, 56]),
    ],
)
def test_no_aligned_stream(settings: dict[str, Any], video_dims: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"models\.sg_detr\.local\.space = 'raw'.*384 channels"):
        MODELS.get("sg_detr").check_streams(settings, video_dims, [384])


def test_baselines_read_any_streams() -> None:
    for name in ("moment_detr", "qd_detr"):
        MODELS.get(name).check_streams({}, [2304, 512], [300])
