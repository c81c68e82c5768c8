"""Query selector: ranks are those of a sort, and depend on nothing but the sample's own clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.sg_detr.selector import LearnedQueries, QuerySelector, Start
from mrmodel.models.sg_detr.settings import SgDetrSettings
from tests.rounding import rounding

D, Q = 8, 5
LENGTHS = [9, 5, 3]
# Two or three sums of D terms in a row, of logits below 4. A clip of padding is 1e4 large.
SAME_LOGITS = {"rtol": 0.0, "atol": rounding(D, magnitude=4.0, stages=3)}
SAME_SPANS = {"rtol": 0.0, "atol": rounding(D, magnitude=1.0, stages=3)}


def selector_of(queries: int = Q, trained: bool = True, **qs: Any) -> QuerySelector:
    torch.manual_seed(0)
    selector = QuerySelector(SgDetrSettings(hidden=D, heads=2, queries=queries, qs=qs))
    if trained:
        nn.init.normal_(selector.span_head[-1].weight, std=0.5)  # type: ignore[arg-type]
    return selector


def clips_of(lengths: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random clips, 1e4 at padding; a sample's clips do not depend on the others."""
    memory = torch.full((len(lengths), max(lengths) + padding, D), 1e4)
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(10 + i)
        memory[i, :length] = torch.randn(length, D, generator=generator)
    return memory, torch.arange(memory.shape[1]) < torch.tensor(lengths)[:, None]


def heads_of(start: Start) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, Q), spans (B, Q, 2), used (B, Q) of the selector's own predictions."""
    assert start.heads is not None
    assert start.used is not None
    assert start.heads.iou_logits is None
    return start.heads.logits[0], start.heads.spans_cxw[0], start.used


def test_same_as_a_sort_of_the_valid_scores() -> None:
    selector = selector_of()
    memory, mask = clips_of(LENGTHS)
    start = selector(memory, mask)
    logits, spans, used = heads_of(start)
    for b, length in enumerate(LENGTHS):
        rows = selector.norm(selector.memory(memory[b, :length]))
        scores = selector.class_head(rows).squeeze(-1)
        order = sorted(range(length), key=lambda t: -float(scores[t].detach()))[:Q]
        assert used[b].tolist() == [rank < length for rank in range(Q)]
        for rank, t in enumerate(order):
            proposal = torch.tensor([(t + 0.5) / length, 0.1]).logit()
            expected = (selector.span_head(rows[t]) + proposal).sigmoid()
            torch.testing.assert_close(logits[b, rank], scores[t])
            torch.testing.assert_close(spans[b, rank], expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(start.spans_cxw[b, rank], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("length", [1, 7, 75])
def test_every_clip_can_be_chosen_the_first_one_too(length: int, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        start = selector_of(queries=length, trained=False)(*clips_of([length]))
    centres = start.spans_cxw[0, :, 0].sort().values
    torch.testing.assert_close(centres, (torch.arange(length) + 0.5) / length)


@pytest.mark.parametrize(("width", "first"), [("learned", 0.1), (0.05, 0.05)])
def test_first_width(width: str | float, first: float) -> None:
    selector = selector_of(trained=False, width=width)
    start = selector(*clips_of([9]))
    torch.testing.assert_close(start.spans_cxw[..., 1], torch.full((1, Q), first))
    assert selector.width.requires_grad == (width == "learned")


def test_slots_without_a_clip_have_their_own_learned_reference() -> None:
    selector = selector_of()
    start = selector(*clips_of(LENGTHS))
    torch.testing.assert_close(start.spans_cxw[2, 3:], selector.fallback[3:].sigmoid())


@pytest.mark.parametrize("content", ["learned", "token"])
@pytest.mark.parametrize("padding", [1, 20])
def test_padding_changes_no_slot(content: str, padding: int) -> None:
    """Alone the short sample has fewer clips than slots, with padding more."""
    selector = selector_of(content=content)
    together = selector(*clips_of(LENGTHS, padding))
    for b, length in enumerate(LENGTHS):
        memory, mask = clips_of(LENGTHS)
        alone = selector(memory[b : b + 1, :length], mask[b : b + 1, :length])
        torch.testing.assert_close(together.spans_cxw[b], alone.spans_cxw[0], **SAME_SPANS)
        torch.testing.assert_close(together.content[b], alone.content[0], rtol=0, atol=1e-5)
        logits, spans, used = heads_of(together)
        own_logits, own_spans, own_used = heads_of(alone)
        assert torch.equal(used[b], own_used[0])
        assert spans[b].isfinite().all()
        kept = used[b]
        torch.testing.assert_close(logits[b, kept], own_logits[0, kept], **SAME_LOGITS)
        torch.testing.assert_close(spans[b, kept], own_spans[0, kept], **SAME_SPANS)


def test_references_teach_the_fallback_alone() -> None:
    selector = selector_of()
    memory, mask = clips_of(LENGTHS)
    start = selector(memory.requires_grad_(), mask)
    learned = [memory, *selector.parameters()]
    gradients = torch.autograd.grad(
        start.spans_cxw.sum(), learned, retain_graph=True, allow_unused=True
    )
    for tensor, gradient in zip(learned, gradients, strict=True):
        if tensor is selector.fallback:
            assert (gradient.abs().sum(-1) > 0).tolist() == [False] * 3 + [True] * 2
        else:
            assert gradient is None
    _, spans, used = heads_of(start)
    taught = torch.autograd.grad(spans[used].sum(), [selector.width, memory])
    assert all(gradient.abs().sum() > 0 for gradient in taught)


def test_content_is_learned_by_rank_or_the_token() -> None:
    memory, mask = clips_of(LENGTHS)
    selector = selector_of()
    assert torch.equal(selector(memory, mask).content[1], selector.content)
    selector = selector_of(content="token")
    content = selector(memory, mask).content
    rows = selector.norm(selector.memory(memory[2, :3]))
    ranked = rows[selector.class_head(rows).squeeze(-1).argsort(descending=True)]
    torch.testing.assert_close(content[2, :3], ranked, rtol=0, atol=1e-5)
    assert torch.equal(content[2, 3:], selector.content[3:])


def test_learned_queries_are_the_same_for_every_sample() -> None:
    learned = LearnedQueries(SgDetrSettings(hidden=D, heads=2, queries=Q, detector="dab"))
    start = learned(*clips_of(LENGTHS))
    assert start.heads is None
    assert start.used is None
    for b in range(3):
        assert torch.equal(start.content[b], learned.content)
        assert torch.equal(start.spans_cxw[b], learned.spans.sigmoid())
