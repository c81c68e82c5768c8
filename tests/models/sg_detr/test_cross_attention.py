"""The gate of saliency-guided cross attention: open, closed, clip by clip, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.sg_detr.cross_attention import Gate, SaliencyGuidedLayer
from mrmodel.models.sg_detr.settings import SgDetrSettings
from tests.rounding import rounding

B, L, N, D = 2, 5, 4, 8
FFN = 12
# A layer is three sums of up to FFN terms in a row, of which none is above 4. A gate that is left
# out, or of another clip, moves the rows by 0.01 or more.
SAME_ROWS = {"rtol": 0.0, "atol": rounding(FFN, magnitude=4.0, stages=3)}


def layer_of(gate: str = "clip", **changes: Any) -> SaliencyGuidedLayer:
    """A layer with every parameter away from its first value."""
    torch.manual_seed(0)
    changes = {"heads": 2, "dropout": 0.0} | changes
    settings = SgDetrSettings(hidden=D, ffn=FFN, sgca={"gate": gate}, **changes)
    layer = SaliencyGuidedLayer(settings)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def inputs() -> dict[str, Any]:
    torch.manual_seed(1)
    mask = torch.arange(N) < torch.tensor([[3], [4]])
    return {
        "clips": torch.randn(B, L, D),
        "position": torch.randn(B, L, D),
        "text": (torch.randn(B, N, D), torch.randn(B, N, D)),
        "allowed": mask[:, None, None],
    }


def residual_only(layer: SaliencyGuidedLayer, clips: Tensor) -> Tensor:
    clips = layer.norm1(clips)
    mixed: Tensor = layer.ffn(clips, clips, layer.norm2)
    return mixed


@pytest.mark.parametrize("training", [True, False])
def test_open_gate_is_plain_attention(training: bool) -> None:
    layer, given = layer_of().train(training), inputs()
    gate = Gate(clip=torch.full((B, L), 30.0).sigmoid())
    torch.testing.assert_close(layer(**given, gate=gate), layer(**given, gate=Gate()), **SAME_ROWS)


@pytest.mark.parametrize("kind", ["clip", "pair"])
def test_closed_gate_lets_nothing_through(kind: str) -> None:
    layer, given = layer_of(kind), inputs()
    size = (B, L) if kind == "clip" else (B, L, N)
    closed = Gate(**{kind: torch.full(size, -30.0).sigmoid()})
    expected = residual_only(layer, given["clips"])
    torch.testing.assert_close(layer(**given, gate=closed), expected, **SAME_ROWS)
    assert not torch.allclose(layer(**given, gate=Gate()), expected, atol=1e-2)


def test_gate_of_a_clip_concerns_that_clip_alone() -> None:
    layer, given = layer_of(), inputs()
    gate = torch.rand(B, L)
    before = layer(**given, gate=Gate(clip=gate))
    other = gate.clone()
    other[1, 2] = 1.0 - other[1, 2]
    changed = (layer(**given, gate=Gate(clip=other)) != before).any(-1)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("kind", "first", "second"), [("pair", 0.3, 0.2), ("pair_renorm", 0.6, 0.4)]
)
def test_pairwise_gate_by_hand(kind: str, heads: int, first: float, second: float) -> None:
    # Each head has the query (sqrt(e), 0 ..) of width e and the keys (ln 3, 0 ..) and 0, so the
    # scores are ln 3 and 0, the weights 3/4 and 1/4. The gates 0.4 and 0.8 make 0.3 and 0.2 of
    # them; renormalised, 0.6 and 0.4. The third token may not be read.
    layer = layer_of(kind, heads=heads)
    for linear in (layer.query, layer.key, layer.value, layer.output):
        nn.init.eye_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    width = D // heads
    clips, keys = torch.zeros(1, 1, D), torch.zeros(1, 3, D)
    clips[..., ::width] = math.sqrt(width)
    keys[0, 0, ::width] = math.log(3.0)
    keys[0, 2] = 1e4
    values = torch.stack((torch.arange(8.0), torch.ones(8), torch.full((8,), 1e4)))[None]
    pair = torch.tensor([[[0.4, 0.8, 0.9]]])
    allowed = torch.tensor([True, True, False])[None, None, None]
    found = layer(clips, torch.zeros(1, 1, D), (keys, values), Gate(pair=pair), allowed)
    read = first * values[:, :1] + second * values[:, 1:2]
    torch.testing.assert_close(found, residual_only(layer, clips + read), **SAME_ROWS)


@pytest.mark.parametrize("kind", ["pair", "pair_renorm"])
def test_equal_pairs_are_one_gate(kind: str) -> None:
    layer, given = layer_of(kind), inputs()
    found = layer(**given, gate=Gate(pair=torch.full((B, L, N), 0.25)))
    gate = Gate(clip=torch.full((B, L), 0.25)) if kind == "pair" else Gate()
    torch.testing.assert_close(found, layer(**given, gate=gate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "pair"])
def test_two_sentences_are_two_runs(kind: str) -> None:
    layer, given = layer_of(kind), inputs()
    size = (2 * B, L) if kind == "clip" else (2 * B, L, N)
    gate = torch.rand(size)
    texts = tuple(torch.cat((rows, rows.flip(0))) for rows in given["text"])
    allowed = torch.cat((given["allowed"], given["allowed"].flip(0)))
    both = layer(given["clips"], given["position"], texts, Gate(**{kind: gate}), allowed)
    for half in (slice(0, B), slice(B, None)):
        text = (texts[0][half], texts[1][half])
        own = Gate(**{kind: gate[half]})
        alone = layer(given["clips"], given["position"], text, own, allowed[half])
        torch.testing.assert_close(both[half], alone, **SAME_ROWS)


def test_position_tells_clips_apart() -> None:
    layer, given = layer_of(), inputs()
    given["clips"] = torch.ones(B, L, D)
    found = layer(**given, gate=Gate())
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)
    given["position"] = torch.zeros(1, L, D)
    found = layer(**given, gate=Gate())
    torch.testing.assert_close(found[:, 0], found[:, 1])
