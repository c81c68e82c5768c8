"""Auxiliary and moment queries in one pass: what they start from, and who sees whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.sg_detr.anchors import AnchorGrid
from mrmodel.models.sg_detr.output import Heads, SgDetrOutput
from mrmodel.spans import xx_to_cxw
from tests.conformance.test_models import evaluate, make_batch, make_targets
from tests.models.sg_detr.whole import close, detector_of, small_model
from tests.models.small import train_pass

# The second video has one anchor, too few for all slots.
CLIPS = (9, 1, 7)
BATCH = make_batch(CLIPS)
RELEASED = {"preset": "released"}


class Pass:
    """A training pass; what its decoder was given, cut from what that came from."""

    leaves: tuple[Tensor, Tensor]

    def __init__(self) -> None:
        self.model = small_model()
        self.detector = detector_of(self.model)
        self.detector.decoder.register_forward_pre_hook(self._take)
        self.parts = train_pass(self.model, BATCH, make_targets(BATCH))[1]
        self.used = self.parts.host.query_used
        self.slots = self.used.shape[1]

    def _take(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not hasattr(self, "leaves"):
            content, spans = (part.detach().requires_grad_() for part in inputs[0])
            self.leaves, self.rest = (content, spans), inputs[1:]
            return (self.leaves, *self.rest)
        return inputs

    def reach(self, outputs: list[Tensor]) -> Tensor:
        """(B, P): the outputs have a gradient by the content or the reference of the query."""
        total = torch.stack([output.sum() for output in outputs]).sum()
        gradients = torch.autograd.grad(total, self.leaves, retain_graph=True)
        return torch.stack([(gradient != 0).any(-1) for gradient in gradients]).any(0)


def predictions(heads: Heads | None, used: Tensor | None = None) -> list[Tensor]:
    assert heads is not None
    parts = (heads.logits, heads.spans_cxw, heads.iou_logits)
    return [part if used is None else part[:, used] for part in parts]


@pytest.fixture(scope="module")
def found() -> Pass:
    return Pass()


def test_no_group_sees_the_other(found: Pass) -> None:
    moments = found.reach(predictions(found.parts.moments))
    assert not moments[:, : found.slots].any()
    assert bool(moments[:, found.slots :].all())
    auxiliary = found.reach(predictions(found.parts.auxiliary, found.used))
    # Nor does anybody see an empty slot.
    assert not found.used.all()
    assert torch.equal(auxiliary[:, : found.slots], found.used)
    assert not auxiliary[:, found.slots :].any()
    second = found.reach([part[:, 1] for part in predictions(found.parts.moments)])
    assert second.any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "changes", [{}, RELEASED, {"auxiliary_queries": False}, {"query_selection": False}]
)
def test_moment_queries_answer_in_training_as_in_evaluation(changes: dict[str, Any]) -> None:
    model = small_model(**changes)
    _, parts = train_pass(model, BATCH, make_targets(BATCH))
    assert (parts.auxiliary is None) == ("auxiliary_queries" in changes)
    output = evaluate(model, BATCH)
    assert isinstance(output, SgDetrOutput)
    assert output.raw is not None
    logits, spans, iou_logits = (part[-1] for part in predictions(parts.moments))
    padded = [(n + 3) // 4 * 4 if changes == RELEASED else n for n in CLIPS]
    stretch = torch.tensor(padded) / torch.tensor(CLIPS)
    expected = [logits, spans * stretch[:, None, None], iou_logits]
    close([output.raw.logits, output.raw.spans_cxw, output.raw.iou_logits], expected)


def test_auxiliary_queries_are_anchors_and_their_rows() -> None:
    model = small_model()
    detector, levels, given = detector_of(model), [], []
    assert detector.pyramid is not None
    detector.pyramid.register_forward_hook(lambda _, __, output: levels.extend(output))
    detector.decoder.register_forward_pre_hook(lambda _, inputs: given.extend(inputs[0]))
    _, parts = train_pass(model, BATCH, make_targets(BATCH))
    queries, host, rows = parts.auxiliary_queries, parts.host, torch.cat(levels, dim=1)
    slots = host.query_anchor.shape[1]
    content, spans = (part[:, :slots] for part in given)
    assert torch.equal(spans, queries.spans_cxw)
    assert torch.equal(queries.positive, host.query_window >= 0)
    grid = xx_to_cxw(AnchorGrid.of(9, torch.device("cpu")).spans_xx)
    for b, length in enumerate(CLIPS):
        used, anchor = host.query_used[b], host.query_anchor[b]
        close(content[b, used], detector.auxiliary_content(rows[b, anchor])[used])  # type: ignore[misc]
        # Within [0, 1], and not closer to its ends than a thousandth.
        close(spans[b, used], (grid[anchor] / length)[used].clamp(0.0, 1.0), 1.5e-3)
        assert not content[b, ~used].any()
        assert bool((spans[b, ~used] == 0.5).all())
    # Their contents teach the pyramid.
    assert torch.autograd.grad(content.square().sum(), levels[0])[0].any()
