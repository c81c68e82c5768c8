"""The refiner: enhance block, groups that do not see each other, spans that move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.models.layers.position import span_positions
from mrmodel.models.layers.query_groups import JoinedQueries, LabelledQueries
from mrmodel.models.sa_detr.settings import SaDetrSettings
from mrmodel.models.sa_detr.span_enhance import SpanEnhance, hat_weights, sample_points
from mrmodel.models.sa_detr.span_refiner import (
    RefinedQueries,
    RefinerLayer,
    SeenVideo,
    SpanRefiner,
    gaussian_mask,
    move_spans,
)
from tests.conformance.test_models import evaluate, make_batch, make_targets
from tests.models.sa_detr.whole import RefinerInput, finder_of, small_model
from tests.models.small import train_pass

GROUPS, COUNTS = 2, (2, 1, 3)
NOISE = GROUPS * 2 * max(COUNTS)
D = 16


def settings_of(**given: Any) -> SaDetrSettings:
    small = {"hidden": D, "heads": 2, "ffn": 24, "dropout": 0.0, "align": {"samples": 4}}
    return SaDetrSettings.model_validate(small | given)


class Case:
    """Two videos of 7 and 9 clips, three queries each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = ((2, 3, D), (2, 9, D), (2, D), (2, 3, 2))
        rows = [torch.randn(*size, generator=generator) for size in sizes]
        self.content, self.memory, self.sentence = rows[:3]
        self.spans = rows[3].sigmoid()
        self.clips = torch.tensor([7, 9])

    def enhance(self, block: SpanEnhance) -> Tensor:
        found: Tensor = block(self.content, self.spans, self.memory, self.sentence, self.clips)
        return found


@pytest.mark.parametrize("norm", ["none", "softmax"])
@pytest.mark.parametrize("gate", ["scalar", "channel"])
@pytest.mark.parametrize(("scaled", "expand"), [(True, 0.0), (False, 0.5)])
def test_enhance_is_the_equations(norm: str, gate: str, scaled: bool, expand: float) -> None:
    """Equations 2 and 3 with the sampled rows written out."""
    torch.manual_seed(0)
    enhance = {"norm": norm, "gate": gate, "scaled": scaled}
    align = {"samples": 4, "expand": expand}
    block, case = SpanEnhance(settings_of(enhance=enhance, align=align)), Case()
    points = sample_points(case.spans, case.clips, 4, expand)
    sampled = hat_weights(points, 9) @ case.memory[:, None]
    projected = block.relevance.clip(sampled)
    direction = block.relevance.token(case.sentence)
    scores = (projected * direction[:, None, None]).sum(-1) / D**0.5
    if norm == "softmax":
        summary = (scores.softmax(-1)[..., None] * sampled).sum(2)
    else:
        summary = (scores[..., None] * sampled).mean(2)
    product = case.content * summary
    if gate == "scalar":
        product = product.sum(-1, keepdim=True)
    opened = (product / D**0.5 if scaled else product).sigmoid()
    expected = block.norm(block.fuse((summary + case.content) * opened) + case.content)
    torch.testing.assert_close(case.enhance(block), expected, rtol=1e-4, atol=1e-5)


def test_gate_is_one_number_a_query_between_zero_and_one() -> None:
    block, case = SpanEnhance(settings_of()), Case()
    summary = block.summary(case.spans, case.memory, case.sentence, case.clips)
    gate = block.gate(case.content, summary)
    assert gate.shape == (2, 3, 1)
    assert gate.min() > 0
    assert gate.max() < 1


def test_silent_enhance_is_the_norm_of_the_content() -> None:
    refiner = SpanRefiner(settings_of(preset="robust"))
    for layer in refiner.layers:
        assert layer.enhance is not None
        case = Case()
        expected = F.layer_norm(case.content, (D,))
        torch.testing.assert_close(case.enhance(layer.enhance), expected, rtol=0, atol=1e-5)
    assert SpanRefiner(settings_of()).layers[0].enhance.fuse.weight.any()  # type: ignore[union-attr]


def test_constant_clips_give_the_constant() -> None:
    block = SpanEnhance(settings_of(enhance={"norm": "softmax"}))
    case = Case()
    row = torch.randn(D)
    summary = block.summary(case.spans, row.expand(2, 9, D), case.sentence, case.clips)
    torch.testing.assert_close(summary, row.expand(2, 3, D), rtol=0, atol=1e-5)


def test_padding_of_the_clips_changes_no_summary() -> None:
    block, case = SpanEnhance(settings_of()), Case()
    first = block.summary(case.spans, case.memory, case.sentence, case.clips)
    noisy = case.memory.clone()
    noisy[0, 7:] = 1e4
    second = block.summary(case.spans, noisy, case.sentence, case.clips)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("update", ["logit", "raw"])
def test_no_offset_moves_no_span(update: str) -> None:
    spans = torch.rand(2, 3, 2) * 0.9 + 0.05
    torch.testing.assert_close(move_spans(spans, torch.zeros(2, 3, 2), update), spans)


def test_spans_stay_inside() -> None:
    spans = torch.tensor([0.01, 0.99])
    for offset in (-5.0, 5.0):
        moved = move_spans(spans, torch.full((2,), offset), "logit")
        assert moved.min() > 0
        assert moved.max() < 1
    raw = move_spans(spans, torch.tensor([-0.5, 0.5]), "raw")
    assert raw.tolist() == [0.0, 1.0]


def test_moved_spans_by_hand() -> None:
    # Logit of 0.5 is 0, so that an offset of log 3 gives 3/4; added up, 0.5 + 0.2 is 0.7.
    half = torch.tensor([0.5, 0.5])
    found = move_spans(half, torch.tensor([1.0986123, 0.0]), "logit")
    torch.testing.assert_close(found, torch.tensor([0.75, 0.5]))
    found = move_spans(half, torch.tensor([0.2, -0.1]), "raw")
    torch.testing.assert_close(found, torch.tensor([0.7, 0.4]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gauss": {"mode": "add_log", "alpha": 5.0, "pos": "end"}},
        {"gauss": {"mode": "none"}, "residual": "query"},
        {"gauss": {"alpha": 0.5}, "enhance": {"enabled": False}},
    ],
)
def test_layer_is_the_equations(changes: dict[str, Any]) -> None:
    """Equations 1 and 4 to 6, head by head."""
    torch.manual_seed(0)
    settings = settings_of(**changes)
    layer, case, position = RefinerLayer(settings), Case(), torch.randn(2, 9, D)
    mask = torch.arange(9) < case.clips[:, None]
    heads = [slice(0, D // 2), slice(D // 2, D)]
    code = layer.span_code(span_positions(case.spans, D))
    packed = layer.self_attention
    query, key, value = F.linear(case.content, packed.in_proj_weight, packed.in_proj_bias).chunk(
        3, -1
    )
    read = []
    for head in heads:
        scores = (query + code)[..., head] @ (key + code)[..., head].transpose(1, 2)
        read.append((scores / (D / 2) ** 0.5).softmax(-1) @ value[..., head])
    content = layer.norm1(case.content + packed.out_proj(torch.cat(read, -1)))
    if layer.enhance is not None:
        content = layer.enhance(content, case.spans, case.memory, case.sentence, case.clips)

    query = layer.cross_query(content)
    key, value = layer.cross_key(case.memory), layer.cross_value(case.memory)
    gauss = settings.gauss
    offset = {"center": 0.5, "end": 1.0}[gauss.pos]
    near = gaussian_mask(case.spans, case.clips, 9, gauss.alpha, offset)
    read = []
    for head in heads:
        scores = query[..., head] @ key[..., head].transpose(1, 2)
        scores = (scores + code[..., head] @ position[..., head].transpose(1, 2)) / D**0.5
        scores = scores * near if gauss.mode == "mul_logits" else scores
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        if gauss.mode == "add_log":
            weights = weights * near / (weights * near).sum(-1, keepdim=True)
        read.append(weights @ value[..., head])
    residual = query if settings.residual == "query" else content
    content = layer.norm2(residual + layer.cross_output(torch.cat(read, -1)))
    expected = layer.ffn(content, content, layer.norm3)
    found = layer(case.content, case.spans, SeenVideo(case.memory, position, mask, case.sentence),
                  None)  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def refined(refiner: SpanRefiner) -> RefinedQueries:
    case = Case()
    mask = torch.arange(9) < case.clips[:, None]
    seen = SeenVideo(case.memory, torch.randn(2, 9, D), mask, case.sentence)
    found: RefinedQueries = refiner(JoinedQueries(case.content, case.spans, None), seen)
    return found


def test_untrained_layers_keep_the_spans() -> None:
    found = refined(SpanRefiner(settings_of()))
    expected = Case().spans.expand(2, -1, -1, -1)
    torch.testing.assert_close(found.spans_cxw, expected, rtol=0, atol=1e-5)


def test_a_layer_passes_no_gradient_through_its_spans() -> None:
    """What the second layer says depends on the first one's offset by its content alone."""
    torch.manual_seed(0)
    refiner = SpanRefiner(settings_of()).eval()
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    seen: list[Tensor] = []
    refiner.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    found = refined(refiner)
    assert not seen[0].requires_grad
    assert torch.equal(seen[0], found.spans_cxw[0])


class Groups:
    """A training pass whose queries are leaves of the graph."""

    def __init__(self, **dn: Any) -> None:
        batch, model = make_batch(), small_model(dn={"groups": GROUPS} | dn)
        self.input = RefinerInput(model, leaves=True)
        _, parts = train_pass(model, batch, make_targets(batch, COUNTS))
        assert parts.direct is not None
        assert parts.noise is not None
        assert parts.noise_queries is not None
        self.direct, self.noise = parts.direct, parts.noise
        self.queries: LabelledQueries = parts.noise_queries

    def reach(self, *outputs: Tensor) -> Tensor:
        """(B, P): the outputs have a gradient by the content or the span of the slot."""
        total = torch.stack([output.sum() for output in outputs]).sum()
        gradients = self.input.grad(total)
        return torch.stack([(gradient != 0).any(-1) for gradient in gradients]).any(0)


@pytest.fixture(scope="module")
def groups() -> Groups:
    return Groups()


def test_direct_queries_see_themselves_only(groups: Groups) -> None:
    reach = groups.reach(groups.direct.quality_logits, groups.direct.spans_cxw)
    assert not reach[:, :NOISE].any()
    assert reach[:, NOISE:].all()


@pytest.mark.parametrize("sees_match", [True, False])
@pytest.mark.parametrize("group", range(GROUPS))
def test_noise_group_sees_itself_and_direct_queries_if_wanted(group: int, sees_match: bool) -> None:
    found = Groups(sees_match=sees_match)
    own = (torch.arange(NOISE) // (NOISE // GROUPS) == group) & found.queries.used
    reach = found.reach(found.noise.quality_logits[:, own], found.noise.spans_cxw[:, own])
    assert torch.equal(reach[:, :NOISE], own)
    assert torch.equal(reach[:, NOISE:], torch.full_like(reach[:, NOISE:], sees_match))


def test_nobody_reads_an_empty_slot(groups: Groups) -> None:
    used = groups.queries.used
    assert not used.all()
    reach = groups.reach(groups.noise.quality_logits[:, used], groups.direct.quality_logits)
    assert torch.equal(reach[:, :NOISE], used)
    assert groups.noise.spans_cxw.isfinite().all()


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_direct_queries_answer_in_training_as_in_evaluation(preset: str) -> None:
    batch, model = make_batch(), small_model(preset=preset)
    output, parts = train_pass(model, batch, make_targets(batch, COUNTS))
    assert parts.noise is not None
    answer = evaluate(model, batch)
    torch.testing.assert_close(output.scores, answer.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.spans_cxw, answer.spans_cxw, rtol=0, atol=1e-5)


def test_queries_have_no_order() -> None:
    model = small_model()
    batch = make_batch()
    seen = RefinerInput(model)
    evaluate(model, batch)
    order = torch.tensor([2, 0, 3, 1])
    content, spans, _ = seen.queries
    moved = JoinedQueries(content[:, order], spans[:, order], None)
    refiner = finder_of(model).refiner
    found, other = refiner(seen.queries, seen.seen), refiner(moved, seen.seen)
    torch.testing.assert_close(other.spans_cxw, found.spans_cxw[:, :, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        other.quality_logits, found.quality_logits[:, :, order], rtol=0, atol=1e-5
    )
