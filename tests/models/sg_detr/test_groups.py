"""Groups of queries in one pass: nothing flows where the mask of section 4.5 forbids it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.models.layers.query_groups import LabelledQueries, group_mask
from mrmodel.models.sg_detr.output import Heads, SgDetrOutput
from tests.conformance.test_models import evaluate, make_batch, make_targets
from tests.models.sg_detr.whole import DecoderInput, detector_of, small_model
from tests.models.small import train_pass

GROUPS, COUNTS = 2, (2, 1, 3)
DN = GROUPS * 2 * max(COUNTS)
MODES = ["dab", "dino", "hybrid"]


@dataclass
class Pass:
    """A training pass whose decoder queries are leaves, and its groups as slices of them."""

    leaves: tuple[Tensor, Tensor]
    match: Heads
    dn: Heads
    dn_queries: LabelledQueries
    aux: Heads
    aux_queries: LabelledQueries

    @property
    def slots(self) -> dict[str, slice]:
        aux_end = DN + self.aux_queries.used.shape[1]
        return {"dn": slice(0, DN), "aux": slice(DN, aux_end), "match": slice(aux_end, None)}

    def reach(self, outputs: list[Tensor]) -> Tensor:
        """(B, P): the outputs have a gradient by the content or the reference of the slot."""
        total = torch.stack([output.sum() for output in outputs]).sum()
        gradients = torch.autograd.grad(total, self.leaves, retain_graph=True)
        return torch.stack([(gradient != 0).any(-1) for gradient in gradients]).any(0)


def heads_at(heads: Heads, slots: Tensor | slice) -> list[Tensor]:
    """All predictions at slots, given as a slice or as (B, S) bool."""
    assert heads.iou_logits is not None
    parts = (heads.logits, heads.spans_cxw, heads.iou_logits)
    return [part[:, :, slots] if isinstance(slots, slice) else part[:, slots] for part in parts]


def pass_of(**changes: Any) -> Pass:
    batch, model = make_batch(), small_model(dn={"groups": GROUPS} | changes)
    seen = DecoderInput(model, leaves=True)
    _, parts = train_pass(model, batch, make_targets(batch, COUNTS))
    assert parts.match is not None
    assert parts.dn is not None
    assert parts.dn_queries is not None
    assert parts.aux is not None
    assert parts.aux_queries is not None
    return Pass(seen.queries, parts.match, parts.dn, parts.dn_queries, parts.aux, parts.aux_queries)


@pytest.fixture(scope="module")
def found() -> Pass:
    return pass_of()


def test_moment_queries_see_themselves_only(found: Pass) -> None:
    reach = found.reach(heads_at(found.match, slice(None)))
    assert not reach[:, found.slots["dn"]].any()
    assert not reach[:, found.slots["aux"]].any()
    assert reach[:, found.slots["match"]].all()


def test_auxiliary_queries_see_themselves_only(found: Pass) -> None:
    reach = found.reach(heads_at(found.aux, found.aux_queries.used))
    assert not reach[:, found.slots["dn"]].any()
    assert not reach[:, found.slots["match"]].any()
    assert torch.equal(reach[:, found.slots["aux"]], found.aux_queries.used)


@pytest.mark.parametrize("sees_match", [True, False])
@pytest.mark.parametrize("group", range(GROUPS))
def test_denoising_group_sees_itself_and_moment_queries_if_wanted(
    group: int, sees_match: bool
) -> None:
    found = pass_of(sees_match=sees_match)
    used = found.dn_queries.used
    own = (torch.arange(DN) // (DN // GROUPS) == group) & used
    reach = found.reach(heads_at(found.dn, own))
    assert torch.equal(reach[:, found.slots["dn"]], own)
    assert not reach[:, found.slots["aux"]].any()
    expected = torch.full_like(reach[:, found.slots["match"]], sees_match)
    assert torch.equal(reach[:, found.slots["match"]], expected)


def test_a_sample_sees_its_own_queries_only(found: Pass) -> None:
    heads = [*heads_at(found.match, slice(None)), *heads_at(found.dn, slice(None))]
    reach = found.reach([part[:, 1] for part in heads])
    assert reach.any(1).tolist() == [False, True, False]


def test_nobody_reads_an_empty_slot(found: Pass) -> None:
    used = torch.cat((found.dn_queries.used, found.aux_queries.used), 1)
    assert not used.all()
    real = [
        *heads_at(found.match, slice(None)),
        *heads_at(found.dn, found.dn_queries.used),
        *heads_at(found.aux, found.aux_queries.used),
    ]
    reach = found.reach(real)[:, : used.shape[1]]
    assert torch.equal(reach, used)
    for heads in (found.dn, found.aux):
        assert all(part.isfinite().all() for part in heads_at(heads, slice(None)))


@pytest.mark.parametrize("mode", MODES)
def test_moment_queries_answer_in_training_as_in_evaluation(mode: str) -> None:
    """The answers of the decoder, before fusion."""
    batch, model = make_batch(), small_model(detector=mode)
    _, parts = train_pass(model, batch, make_targets(batch, COUNTS))
    output = evaluate(model, batch)
    assert isinstance(output, SgDetrOutput)
    assert output.raw is not None
    assert parts.match is not None
    assert (parts.dn is not None) == (mode != "dab")
    assert (parts.aux is not None) == (mode == "hybrid")
    raw = (output.raw.logits, output.raw.spans_cxw, output.raw.iou_logits)
    for trained, evaluated in zip(heads_at(parts.match, slice(None)), raw, strict=True):
        assert evaluated is not None
        torch.testing.assert_close(trained[-1], evaluated, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad", ["mask", "negatives"])
def test_one_pass_is_a_separate_auxiliary_pass(pad: str) -> None:
    batch, model = make_batch(), small_model(aux={"pad": pad})
    seen = DecoderInput(model)
    _, parts = train_pass(model, batch, make_targets(batch, COUNTS))
    assert parts.aux is not None
    assert parts.aux_queries is not None
    assert parts.dn_queries is not None
    used = parts.aux_queries.used
    first = parts.dn_queries.used.shape[1]
    content, spans = (part[:, first : first + used.shape[1]] for part in seen.queries)
    memory, allowed, _ = seen.rest
    mutual = used[:, None, None, :] | torch.eye(used.shape[1], dtype=torch.bool)
    alone = detector_of(model).decoder((content, spans), memory, allowed, mutual)
    for one, other in zip(heads_at(alone, used), heads_at(parts.aux, used), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_garbage_in_empty_slots_changes_no_answer() -> None:
    batch, model = make_batch(), small_model()
    seen = DecoderInput(model)
    _, parts = train_pass(model, batch, make_targets(batch, COUNTS))
    assert parts.dn_queries is not None
    assert parts.aux_queries is not None
    assert parts.match is not None
    used = torch.cat(
        (parts.dn_queries.used, parts.aux_queries.used, torch.ones(3, 4, dtype=torch.bool)), 1
    )
    content, spans = seen.queries
    noisy = content.masked_fill(~used[..., None], 1e4), spans.masked_fill(~used[..., None], 0.9)
    decoder = detector_of(model).decoder
    first, second = (decoder(given, *seen.rest) for given in (seen.queries, noisy))
    for one, other in zip(heads_at(first, used), heads_at(second, used), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sees_match", [True, False])
def test_mask_by_hand(sees_match: bool) -> None:
    # Two denoising groups of two, one auxiliary query, two moment queries; the second slot of
    # group 1 is empty. Rows read columns.
    group = torch.tensor([1, 1, 2, 2, -1, 0, 0])
    used = torch.tensor([[True, False, True, True, True, True, True]])
    seen = int(sees_match)
    expected = [
        [1, 0, 0, 0, 0, seen, seen],
        [1, 1, 0, 0, 0, seen, seen],
        [0, 0, 1, 1, 0, seen, seen],
        [0, 0, 1, 1, 0, seen, seen],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert group_mask(group, used, sees_match)[0, 0].long().tolist() == expected
