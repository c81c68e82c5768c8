"""SG-DETR against numbers recorded from the published code, case by case.

A case is one .npz: options, inputs, and everything the published code computed from them. The
options decide how our model is built, so any file of that layout in the folder is checked.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrmodel.convert.parameter_names import UNUSED, match_state, our_name
from mrmodel.losses.windows import own_windows
from mrmodel.models import build_model
from mrmodel.models.sg_detr.anchors import AnchorGrid, AnchorTargets, assign
from mrmodel.models.sg_detr.host_inputs import HostInputs
from mrmodel.models.sg_detr.losses import match_heads
from mrmodel.models.sg_detr.model import SgDetr
from mrmodel.models.sg_detr.output import Heads, SgDetrOutput
from mrmodel.types import Batch, Targets
from tests.golden_parity.folder import GOLDEN
from tests.golden_parity.test_models import uniform

FOLDER = GOLDEN / "model_sg_detr"
# Options that no published run uses.
NOT_BUILT = {
    "other_modes": "focal loss, span weights, one-to-many targets, ... are in no published run",
    "dummies": "dummy tokens are replaced by the saliency gate in every published run",
    "audio_concat": "no published run reads audio",
    "denoise_collab": "denoising is off in every published run, and helped in none of ours",
}
NOT_CASES = ("postprocess_", "dataset")
FILES = [
    path
    for path in sorted(FOLDER.glob("*.npz"))
    if not path.stem.startswith(NOT_CASES) and path.stem not in NOT_BUILT
]
LOCAL, SALIENCY = "out/local_saliency_scores", "out/saliency_scores"


class Case:
    def __init__(self, path: Path) -> None:
        self.name = path.stem
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta_json"]))
        self.options: dict[str, Any] = self.meta["options"]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.arrays)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        found = {}
        for name, shape_text in zip(
            self.arrays["recipe/keys"].tolist(), self.arrays["recipe/shapes"].tolist(), strict=True
        ):
            shape = tuple(int(n) for n in shape_text.replace(",", " ").strip("()[] ").split())
            found[name] = torch.from_numpy(recipe(name, shape, self.meta["seed"]))
        sums = [float(tensor.double().sum()) for tensor in found.values()]
        np.testing.assert_allclose(sums, self.arrays["recipe/sum"], rtol=1e-6, atol=1e-4)
        return found

    @cached_property
    def batch(self) -> Batch:
        lengths = self.meta["video_lengths"]
        if "in/src_vid" in self.arrays:
            names = ("src_vid", "src_vid_mask", "src_txt", "src_txt_mask")
            video, video_mask, text, text_mask = (self.tensor(f"in/{name}") for name in names)
        else:
            video, video_mask = self._rows("src_vid", self.meta["feature_lengths"], lengths)
            text_lengths = self.meta["text_lengths"]
            text, text_mask = self._rows("src_txt", text_lengths, text_lengths)
        clip_len = self.meta["clip_len"]
        return Batch(
            qids=list(range(len(lengths))),
            vids=list(self.meta["vids"]),
            video=video,
            video_mask=video_mask.bool(),
            text=text,
            text_mask=text_mask.bool(),
            duration_s=[float(n * clip_len) for n in lengths],
            start_s=[0.0] * len(lengths),
            clip_len_s=float(clip_len),
            text_keys=[str(i) for i in range(len(lengths))],
        )

    def _rows(self, name: str, lengths: list[int], valid: list[int]) -> tuple[Tensor, Tensor]:
        width = self.options["vid_dim" if name == "src_vid" else "txt_dim"]
        rows = uniform(name, (len(valid), max(valid), width), self.meta["seed"])
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        place, count = np.arange(max(valid))[None], np.array(lengths)[:, None]
        if name == "src_vid":
            rows[..., -2], rows[..., -1] = place / count, place / count + 1 / count
        rows[place >= count] = 0
        rows = rows.astype(np.float32)
        np.testing.assert_allclose(
            rows.astype(np.float64).sum(), self.arrays[f"incheck/{name}"][0], rtol=1e-5, atol=1e-4
        )
        mask = place < np.array(valid)[:, None]
        return torch.from_numpy(rows), torch.from_numpy(mask)

    @cached_property
    def targets(self) -> Targets:
        return Targets(
            spans_cxw=self.tensor("tgt/spans"),
            span_counts=self.arrays["tgt/span_sizes"].tolist(),
            saliency_pos=self.tensor("tgt/saliency_pos_labels"),
            saliency_neg=self.tensor("tgt/saliency_neg_labels"),
            saliency_labels=self.tensor("tgt/saliency_all_labels"),
        )

    def settings(self) -> dict[str, Any]:
        """The published options in our words, dropout off, published quirks on."""
        o, w = self.options, self.options["weight_dict"]
        return {
            "preset": "released",
            "hidden": o["model_dim"],
            "ffn": 4 * o["model_dim"],
            "projection_layers": o["num_input_proj_layers"],
            "pooling_layers": o["num_aggregation_layers"],
            "cross_attention_layers": o["num_t2v_layers"],
            "encoder_layers": o["num_encoder_layers"],
            "decoder_layers": o["num_decoder_layers"],
            "anchor_head_layers": o["num_convs"],
            "queries": o["num_queries"],
            "dropout": 0.0,
            "drop_path": 0.0,
            "input_dropout": 0.0,
            "prior": o["prior_prob"],
            "saliency_guided": o["weight_attn_with_saliency"],
            "global_saliency": o["use_global_saliency_head"],
            "iou_head": o["predict_quality_score"],
            "query_selection": o["use_rpn"],
            "auxiliary_queries": "collab" in o["aux_anchors_type"],
            "anchor_topk": o["head_top_k_positive_anchors"],
            "match": {
                "span": o["cost_span"],
                "giou": o["cost_giou"],
                "label": o["cost_class"],
                "iou": o["cost_iou"],
            },
            "loss": {
                "background_weight": o["backgorund_weight"],
                "margin": o["saliency_margin"],
                "weights": {
                    "saliency": w["loss_saliency"],
                    "span": w["loss_span"],
                    "giou": w["loss_giou"],
                    "label": w["loss_label"],
                    "iou": w["loss_quality"],
                    "selector": o["encoder_coef"],
                    "auxiliary": o["colab_ref_reducer"],
                    "anchor_label": w["aux_loss_label"],
                    "anchor_span": w["aux_loss_span"],
                    "anchor_giou": w["aux_loss_giou"],
                    "anchor_centerness": w["aux_loss_ctrness"],
                    "alignment": w["loss_ms_align"],
                    "moment": w["loss_momcls"],
                },
            },
            "legacy_rank_axis": True,
        }

    def model(self, **changes: Any) -> SgDetr:
        o = self.options
        model = build_model("sg_detr", o["vid_dim"], o["txt_dim"], self.settings() | changes)
        assert isinstance(model, SgDetr)
        fit = match_state("sg_detr", self.parameters, model)
        assert fit.mismatches == ()
        model.load_state_dict(fit.state)
        return model.train()

    def host(self, model: SgDetr) -> HostInputs:
        """Our host inputs, with the recorded choices where they are random or a matter of ties.

        The published auxiliary queries and the loss of the anchors may have different top-k.
        """
        made = model.host_inputs(self.batch, self.targets, torch.Generator().manual_seed(0))
        host = HostInputs.of(made)
        if self.name == "tied_anchors":
            host = self.with_assignment(host, self.assignment(model, host, recorded=True))
        if "collab/selected" in self.arrays:
            selected = self.tensor("collab/selected").long()
            host = replace(
                host,
                query_anchor=selected,
                query_window=host.anchor_window.gather(1, selected),
                query_used=torch.ones_like(selected, dtype=torch.bool),
            )
        topk = self.options["loss_top_k_positive_anchors"]
        if topk != self.options["head_top_k_positive_anchors"]:
            host = self.with_assignment(host, self.assignment(model, host, topk=topk))
        return host

    def with_assignment(self, host: HostInputs, found: AnchorTargets) -> HostInputs:
        return replace(host, anchor_window=found.window, anchor_centerness=found.centerness)

    def assignment(
        self, model: SgDetr, host: HostInputs, recorded: bool = False, topk: int | None = None
    ) -> AnchorTargets:
        """Anchors of the windows, with another top-k or from the recorded candidates."""
        grid = AnchorGrid.of(self.batch.video_mask.shape[1], torch.device("cpu"))
        exists = torch.ones(len(self.batch), len(grid.centre), dtype=torch.bool)
        topk = model.settings.anchor_topk if topk is None else topk
        chosen = self.candidates(len(grid.centre), host) if recorded else None
        return assign(grid, exists, host.anchor_spans, host.window_valid, topk, chosen)

    def candidates(self, anchors: int, host: HostInputs) -> Tensor:
        """(B, W, A) the recorded candidates."""
        chosen = torch.zeros(*host.window_valid.shape, anchors, dtype=torch.bool)
        for sample in range(len(chosen)):
            rows = self.tensor(f"atss/candidates/{sample}").long()
            for window in range(rows.shape[1]):
                chosen[sample, window, rows[:, window]] = True
        return chosen


def recipe(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A parameter of the recorded model, first rule that fits."""
    value = uniform(name, shape, seed)
    if name.startswith("main_det_head.refpoint_embed"):
        value = 1.5 * value
    elif name.endswith(("rep_token", "rep_pos", "cls_q")):
        pass
    elif name == "local_saliency_head.temp":
        value = 3 + 0.1 * value
    elif name.endswith("mapping.1.weight"):
        value = 0.25 + 0.1 * value
    elif len(shape) >= 2:
        value = value * np.sqrt(6 / (shape[0] + np.prod(shape[1:])))
    elif name.endswith(("weight", ".scale")):
        value = 1 + 0.1 * value
    else:
        value = 0.1 * value
    return np.asarray(value, dtype=np.float32).reshape(shape)


@lru_cache(maxsize=1)
def load(path: Path) -> Case:
    return Case(path)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return squeezed(load(request.param))


@pytest.fixture
def trained(case: Case) -> Case:
    """A case of which training was recorded."""
    if "loss_total" not in case.arrays:
        pytest.skip("evaluation only: the published code cannot train on one sample")
    return case


def step(
    case: Case, model: SgDetr, host: HostInputs
) -> tuple[SgDetrOutput, dict[str, Tensor], Tensor]:
    output = model(case.batch, replace(case.targets, host=host.as_mapping()))
    criterion = model.criterion()
    losses = criterion(output, case.targets, case.batch)
    return output, losses, criterion.total(losses)


def test_cases_are_there() -> None:
    assert {"default", "fullsize_recipe", "few_clips"} <= {path.stem for path in FILES}


def check(
    found: Tensor, case: Case, name: str, atol: float = 2e-5, mask: Tensor | None = None
) -> None:
    expected = case.tensor(name).to(found.dtype)
    if mask is not None:
        found, expected = found[mask], expected[mask]
    torch.testing.assert_close(
        found, expected, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}"
    )


def check_heads(
    found: Heads, layer: int, case: Case, prefix: str, spans: str = "pred_spans"
) -> None:
    check(found.logits[layer], case, f"{prefix}pred_logits")
    check(found.spans_cxw[layer], case, f"{prefix}{spans}")
    check(found.iou_logits[layer], case, f"{prefix}pred_quality_scores")


def squeezed(case: Case) -> Case:
    """Recorded logits have a last axis of one."""
    for name, array in case.arrays.items():
        if name.rpartition("/")[2] in ("pred_logits", "pred_quality_scores"):
            case.arrays[name] = array.reshape(array.shape[:2])
    return case


def test_evaluation(case: Case) -> None:
    model = case.model().eval()
    with torch.no_grad():
        output = model(case.batch)
    assert output.raw is not None
    mask = case.batch.video_mask
    name = SALIENCY if case.options["use_global_saliency_head"] else LOCAL
    check(output.saliency, case, name, 1e-4, mask)
    check(output.raw.logits, case, "out/pred_logits")
    check(output.raw.spans_cxw, case, "out/pred_spans")
    if case.options["predict_quality_score"]:
        check(output.raw.iou_logits, case, "out/pred_quality_scores")
    else:
        assert output.raw.iou_logits is None


def test_zero_clips_up_to_a_multiple_of_four_are_the_models_own(case: Case) -> None:
    """Given the features without them, the model appends them, and scales windows back."""
    lengths = torch.tensor(case.meta["feature_lengths"])
    padded = torch.tensor(case.meta["video_lengths"])
    assert torch.equal((lengths + 3) // 4 * 4, padded)
    clips = int(lengths.max())
    batch = replace(
        case.batch,
        video=case.batch.video[:, :clips],
        video_mask=torch.arange(clips) < lengths[:, None],
    )
    with torch.no_grad():
        output = case.model().eval()(batch)
    assert output.raw is not None
    assert output.saliency.shape == batch.video_mask.shape
    check(output.raw.logits, case, "out/pred_logits")
    check(output.raw.spans_cxw * (lengths / padded)[:, None, None], case, "out/pred_spans")


def test_silent_padding_gives_what_a_sample_gives_alone(case: Case) -> None:
    """Without `legacy_padding` the outputs are those recorded in batches of one sample."""
    if not case.has("out_alone/"):
        pytest.skip("not recorded alone")
    model = case.model(legacy_padding=False).eval()
    with torch.no_grad():
        output = model(case.batch)
    assert output.raw is not None
    mask = case.batch.video_mask
    check(output.raw.logits, case, "out_alone/pred_logits")
    check(output.raw.spans_cxw, case, "out_alone/pred_spans")
    name = LOCAL if case.options["use_global_saliency_head"] is False else SALIENCY
    check(output.saliency, case, name.replace("out/", "out_alone/"), 1e-4, mask)
    assert output.raw.anchor_logits is not None
    for sample, of_sample in enumerate(output.raw.anchor_logits):
        exists = of_sample > torch.finfo(of_sample.dtype).min
        case.arrays["alone"] = case.arrays[f"out_alone/atss_logits/{sample}"].reshape(-1)
        check(of_sample[exists], case, "alone")


def test_training_outputs(trained: Case) -> None:
    case, model = trained, trained.model()
    with torch.no_grad():
        output, _, _ = step(case, model, case.host(model))
    parts = output.training
    assert parts is not None
    assert parts.moments is not None
    assert parts.anchors is not None
    mask = case.batch.video_mask
    check(parts.local, case, LOCAL, 1e-4, mask)
    negative = parts.host.has_negative
    assert negative.tolist() == case.arrays["out/real_neg_mask"].astype(bool).tolist()
    check_rows(parts.negative_local[negative], case, f"{LOCAL}_neg", mask[negative])
    if case.options["use_global_saliency_head"]:
        check_rows(parts.negative_global[negative], case, "out/saliency_scores_neg", mask[negative])
    layers = case.options["num_decoder_layers"]
    for layer in range(layers):
        check_heads(
            parts.moments, layer, case, f"out/aux/{layer}/" if layer + 1 < layers else "out/"
        )
    if parts.selector is not None:
        check_heads(parts.selector, 0, case, "out/encoder/")
    for name in ("logits", "regression", "centerness"):
        recorded = [case.arrays[f"out/atss_{name}/{level}"] for level in range(4)]
        case.arrays[f"anchors/{name}"] = np.concatenate(recorded, axis=1)
        found = getattr(parts.anchors, name)
        check(found.view(case.arrays[f"anchors/{name}"].shape), case, f"anchors/{name}")
    if parts.auxiliary is not None:
        check(parts.auxiliary.logits.unsqueeze(-1), case, "collab/out_logits")
        check(parts.auxiliary.spans_cxw, case, "collab/out_spans")
    assert parts.alignment is not None
    check(parts.alignment.moment, case, "out/moment_token")
    check(parts.alignment.non_moment, case, "out/non_moment_token")
    check(parts.alignment.sentence, case, "out/sent_txt_token")
    check(parts.alignment.clips, case, "out/moment_clips", mask=mask)


def check_rows(found: Tensor, case: Case, name: str, mask: Tensor) -> None:
    expected = case.tensor(name)
    torch.testing.assert_close(
        found[mask], expected[mask], rtol=0, atol=1e-4, msg=lambda text: f"{name}: {text}"
    )


def test_assignment(trained: Case) -> None:
    case, model = trained, trained.model()
    host = case.host(model)
    counts = host.window_valid.sum(1).tolist()
    spans = torch.cat([rows[:n] for rows, n in zip(host.anchor_spans, counts, strict=True)])
    check(spans, case, "atss/targets_clips", 1e-6)
    positive = host.anchor_window >= 0
    assert torch.equal(positive, case.tensor("atss/labels").bool())
    check(host.anchor_centerness[positive], case, "atss/centerness_targets", 1e-6)


def held(fractions: np.ndarray) -> np.ndarray:
    """What the clamped inverse sigmoid and the sigmoid after it leave of spans."""
    fractions = fractions.clip(0.0, 1.0)
    above, below = fractions.clip(min=1e-3), (1.0 - fractions).clip(min=1e-3)
    return above / (above + below)


def test_auxiliary_queries(trained: Case) -> None:
    case, model = trained, trained.model()
    if "collab/labels" not in case.arrays:
        assert not case.options["aux_anchors_type"]
        return
    with torch.no_grad():
        output, _, _ = step(case, model, case.host(model))
    queries = output.training.auxiliary_queries
    assert torch.equal(queries.positive, case.tensor("collab/labels").bool())
    case.arrays["collab/references"] = held(case.arrays["collab/anchors"])
    check(queries.spans_cxw, case, "collab/references", 1e-6)
    made = HostInputs.of(model.host_inputs(case.batch, case.targets, torch.Generator()))
    if case.name != "tied_anchors":
        assert made.query_anchor.shape == case.arrays["collab/selected"].shape
        assert torch.equal(made.query_window >= 0, queries.positive)
    true = own_windows(queries.window[None], output.training.anchor_truth)[0]
    check(true[queries.positive], case, "collab/matched_gts", 1e-6)


def test_matching(trained: Case) -> None:
    case, model = trained, trained.model()
    if case.options["cost_reference"]:
        pytest.skip("the distance to learned references costs only where windows weigh nothing")
    with torch.no_grad():
        output, _, _ = step(case, model, case.host(model))
    parts, weights = output.training, model.settings.match
    moments = match_heads(parts.moments, parts.host.truth, weights)
    found = {f"aux{layer}": rows for layer, rows in enumerate(moments[:-1])}
    found["main"] = moments[-1]
    if parts.selector is not None:
        found["encoder"] = match_heads(parts.selector, parts.host.truth, weights)[0]
    recorded = {name.split("/")[1] for name in case.arrays if name.startswith("match/")}
    assert recorded == found.keys()
    for name, window in found.items():
        sizes = case.arrays[f"match/{name}/sizes"].tolist()
        queries, targets = (case.arrays[f"match/{name}/{side}"] for side in ("pred", "tgt"))
        pairs = zip(queries.tolist(), targets.tolist(), strict=True)
        expected = torch.full_like(window, -1)
        for sample, size in enumerate(sizes):
            for _ in range(size):
                query, target = next(pairs)
                expected[sample, query] = target
        assert torch.equal(window, expected), name


SALIENCY_PARTS = {
    "relevance": "log_saliency_bce_{}",
    "margin": "log_margin_saliency_{}",
    "rank": "log_saliency_contrastive_{}",
    "negative": "log_saliency_neg_pair_{}",
}
ANCHOR_LOSSES = {"centerness": "ctrness"}
ALIGNMENT_LOSSES = {"alignment": "loss_ms_align", "moment": "loss_momcls"}


def published_name(name: str, layers: int) -> str:
    """The published name of one of our losses."""
    group, *middle, term = name.split("/")
    if group == "saliency":
        return SALIENCY_PARTS[term].format(middle[0])
    if group == "anchors":
        return f"aux_loss_{ANCHOR_LOSSES.get(term, term)}"
    if group == "alignment":
        return ALIGNMENT_LOSSES[term]
    prefix = {"decoder": "", "selector": "enc_", "auxiliary": "co_"}[group]
    layer = int(middle[0][1:]) if middle else layers - 1
    suffix = "" if layer + 1 == layers else f"_{layer}"
    return f"{prefix}loss_{'quality' if term == 'iou' else term}{suffix}"


# Reported by the published code with weight 0, or always 0.
NOT_LOSSES = ("loss_vfl", "l1_ref", "loss_orthogonal", "_attn")


def test_losses(trained: Case) -> None:
    case, model = trained, trained.model()
    with torch.no_grad():
        _, losses, total = step(case, model, case.host(model))
    criterion, layers = model.criterion(), case.options["num_decoder_layers"]
    weights = json.loads(str(case.arrays["weight_json"]))
    recorded = {name.removeprefix("loss/") for name in case.arrays if name.startswith("loss/")}
    seen = {"loss_saliency"}
    for name, value in losses.items():
        published = published_name(name, layers)
        seen.add(published)
        factor = 1.0
        if name.startswith(("selector/", "auxiliary/")):
            # The published value has the factor of its group in it.
            key = "encoder_coef" if name.startswith("selector/") else "colab_ref_reducer"
            factor = case.options[key]
        of_windows = published.startswith(("loss_", "co_", "aux_"))
        if case.options["cost_reference"] and of_windows and not weights[published]:
            continue  # other matching and top-k; weighs nothing
        expected = float(case.arrays[f"loss/{published}"])
        np.testing.assert_allclose(
            factor * float(value), expected, rtol=1e-4, atol=1e-6, err_msg=name
        )
        if not name.startswith("saliency/"):
            assert criterion.weight(name) == pytest.approx(factor * weights[published]), name
    left = {n for n in recorded - seen if not any(part in n for part in NOT_LOSSES)}
    assert not left
    np.testing.assert_allclose(float(total), float(case.arrays["loss_total"]), rtol=1e-4)


def test_gradient_norms(trained: Case) -> None:
    case, model = trained, trained.model()
    step(case, model, case.host(model))[2].backward()
    found = {
        name: -1.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
    }
    recorded = {
        name.removeprefix("grad_norm/"): float(value)
        for name, value in case.arrays.items()
        if name.startswith("grad_norm/")
    }
    compared = 0
    for name, expected in recorded.items():
        ours = our_name("sg_detr", name)
        if ours not in found:
            assert UNUSED.match(ours), name
            continue
        value = found[ours]
        if expected <= 0.0 and value <= 0.0:
            continue  # not reached, or reached with weight 0
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-6, err_msg=name)
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("schedule", ["train", "train_schedule"])
def test_five_steps(trained: Case, schedule: str) -> None:
    """AdamW as published: decay on everything, the gradient norm cut at 0.1."""
    case, model, meta = trained, trained.model(), trained.meta
    host = case.host(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=meta["lr"], weight_decay=meta["weight_decay"]
    )
    rates = (
        case.arrays["train_schedule/lr"].tolist()
        if schedule == "train_schedule"
        else [meta["lr"]] * 5
    )
    expected = case.arrays[f"{schedule}/loss_total"]
    spread = np.abs(case.arrays[f"{schedule}_perturbed/loss_total"] - expected)
    for i, value in enumerate(expected):
        total = step(case, model, host)[2]
        allowed = max(1e-3 * abs(value), 10.0 * spread[i])
        assert abs(float(total) - value) <= allowed, (i, float(total), value, spread[i])
        if i < len(rates):
            for group in optimizer.param_groups:
                group["lr"] = rates[i]
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), meta["clip_norm"])
            optimizer.step()
    if schedule == "train_schedule":
        names = case.arrays["train_schedule/parameter_names"].tolist()
        ours = dict(model.named_parameters())
        for name, norm in zip(names, case.arrays["train_schedule/parameter_norm"], strict=True):
            if our_name("sg_detr", name) in ours:
                found = float(ours[our_name("sg_detr", name)].norm())
                np.testing.assert_allclose(found, norm, rtol=2e-3, atol=1e-4, err_msg=name)


def test_parameter_names() -> None:
    """Every recorded parameter has one counterpart of the same shape, and no other exists."""
    recorded = json.loads((FOLDER / "parameters.json").read_text(encoding="utf-8"))
    model = build_model("sg_detr", 514, 512, {"preset": "released"})
    published = {
        f"model.{name}": torch.zeros(shape)
        for name, shape, _, _ in recorded["qvhighlights_state_dict"]
    }
    fit = match_state("sg_detr", published, model)
    assert fit.mismatches == ()
    assert sorted({name.removeprefix("model.").split(".")[0] for name in fit.unused}) == [
        "aux_det_head", "txt_position_embed",
    ]  # fmt: skip
