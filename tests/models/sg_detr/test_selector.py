"""Query selector: against a sort of the usable positions, and what has a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.models.sg_detr.anchors import PROPOSAL_WIDTHS, STRIDES, AnchorGrid
from mrmodel.models.sg_detr.selector import LearnedQueries, QuerySelector
from mrmodel.spans import inverse_sigmoid
from tests.models.sg_detr.whole import D, close, mask_of, rows_of, settings_of, shaken

LENGTHS, Q = [13, 5, 1], 9
MASK = mask_of(LENGTHS)


def selector_of() -> QuerySelector:
    return shaken(QuerySelector(settings_of(queries=Q)))


def grid_of(mask: Tensor) -> AnchorGrid:
    return AnchorGrid.of(mask.shape[1], torch.device("cpu"))


def levels_of(lengths: list[int], padding: int = 0) -> list[Tensor]:
    """Rows of the pyramid, garbage at the padding."""
    clips = [*lengths, max(lengths) + padding]
    sizes = [[math.ceil(n / stride) for n in clips] for stride in STRIDES]
    return [rows_of(own, garbage=1e4, seed=i)[:-1] for i, own in enumerate(sizes)]


def usable_positions(length: int) -> list[tuple[int, int, float, float]]:
    """Level, index, centre and width of the proposals of a video."""
    found = []
    for level, (stride, width) in enumerate(zip(STRIDES, PROPOSAL_WIDTHS, strict=True)):
        for index in range(math.ceil(length / stride)):
            centre = (index + 0.5) * stride / length
            if 0.0125 < centre < 0.9875:
                found.append((level, index, centre, width))
    return found


@pytest.mark.parametrize(("lengths", "padding"), [(LENGTHS, 2), ([2, 1], 0), ([2, 1], 30)])
def test_the_best_usable_positions_become_queries(lengths: list[int], padding: int) -> None:
    """More and fewer usable positions than queries, in a sample or in all of them."""
    selector = selector_of()
    levels, mask = levels_of(lengths, padding), mask_of(lengths, padding)
    start = selector(levels, mask, grid_of(mask))
    heads = start.heads
    assert heads is not None
    assert start.content.shape == (len(lengths), Q, D)
    assert torch.equal(start.spans_cxw, heads.spans_cxw[0])
    logits = (heads.logits[0, ..., None], heads.iou_logits[0, ..., None])
    found = torch.cat((*logits, start.spans_cxw, start.content), dim=-1)
    # A position that is not usable counts as a row of zeros, at the reference (1, 1).
    constant = selector.norm(selector.output.bias)
    heads_of = (selector.class_head, selector.iou_head)
    unused = torch.cat((*(head(constant) for head in heads_of), torch.ones(2), constant))
    for b, length in enumerate(lengths):
        rated = []
        for level, index, centre, width in usable_positions(length):
            row = selector.norm(selector.output(levels[level][b, index]))
            logit, iou_logit = (head(row) for head in heads_of)
            proposal = inverse_sigmoid(torch.tensor([centre, width]))
            span = (selector.span_head(row) + proposal).sigmoid()
            rank = (logit.sigmoid() * iou_logit.sigmoid()).sqrt().item()
            rated.append((rank, torch.cat((logit, iou_logit, span, row))))
        rated.sort(key=lambda pair: -pair[0])
        expected = [*(row for _, row in rated[:Q]), *[unused] * (Q - len(rated))]
        close(found[b], torch.stack(expected))


def test_the_first_and_the_last_half_clips_are_no_proposals() -> None:
    selector, mask = selector_of(), mask_of([76])
    _, usable = selector._proposals(mask, grid_of(mask))
    by_level = usable[0].split([152, 76, 38, 19])
    outside = [(~level).nonzero().flatten().tolist() for level in by_level]
    assert outside == [[0, 1, 150, 151], [0, 75], [], []]


def test_only_the_losses_of_the_selector_teach_it() -> None:
    selector = selector_of()
    levels = [level.requires_grad_() for level in levels_of(LENGTHS)]
    start = selector(levels, MASK, grid_of(MASK))
    assert not start.content.requires_grad
    assert not start.spans_cxw.requires_grad
    assert start.heads is not None
    for part in (start.heads.logits, start.heads.spans_cxw, start.heads.iou_logits):
        gradients = torch.autograd.grad(part.sum(), levels, retain_graph=True)
        taught = torch.cat(gradients, dim=1).any(-1).sum(1).tolist()
        assert taught == [min(Q, len(usable_positions(n))) for n in LENGTHS]


def test_learned_queries_are_the_same_for_every_sample() -> None:
    learned = LearnedQueries(settings_of(queries=Q, query_selection=False))
    start = learned([], MASK, grid_of(MASK))
    assert start.heads is None
    spans = torch.cat((learned.centre, learned.width), dim=1).sigmoid()
    close(start.spans_cxw, spans.expand(3, -1, -1))
    close(start.content, learned.content.expand(3, -1, -1))
    (start.spans_cxw.sum() + start.content.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in learned.parameters())
