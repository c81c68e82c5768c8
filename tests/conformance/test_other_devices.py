"""Training and answers on a device that is not the CPU; on a GPU where there is one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mrmodel.components import MODELS
from mrmodel.config.postprocess import VALIDATION
from mrmodel.config.schema import RunSettings, TrainSettings
from mrmodel.models import MomentModel
from mrmodel.predict.inference import decode_output
from mrmodel.predict.postprocess import Postprocess
from mrmodel.presets import render
from mrmodel.train.loop import Plan, fit
from mrmodel.types import Batch, ModelOutput, Targets
from tests.conformance.other_device import on_device, watched
from tests.conformance.test_models import build, make_batch, make_targets, without_dropout
from tests.reporters import RecordingReporter

NAMES = sorted(MODELS)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# Waits that the results ask for: matching.
WAITS = {"moment_detr": 1, "qd_detr": 1, "sa_detr": 2, "sg_detr": 1, "video_lights": 1}
# A step on a GPU takes as long as it takes to issue its operations. These are a tenth more than
# what forward pass, losses and backward pass issued when the list was last changed.
OPERATIONS = {
    "moment_detr": 1550, "qd_detr": 2800, "sa_detr": 4200, "sg_detr": 6400, "video_lights": 5000,
}  # fmt: skip


def moved(batch: Batch, targets: Targets, move: Any) -> tuple[Batch, Targets]:
    names = ("video", "video_mask", "text", "text_mask")
    return (
        replace(batch, **{name: move(getattr(batch, name)) for name in names}),
        replace(
            targets,
            spans_cxw=move(targets.spans_cxw),
            saliency_pos=move(targets.saliency_pos),
            saliency_neg=move(targets.saliency_neg),
            saliency_labels=move(targets.saliency_labels),
            host={key: move(values) for key, values in targets.host.items()},
        ),
    )


def total_loss(model: MomentModel, batch: Batch, targets: Targets) -> Tensor:
    torch.manual_seed(4)
    criterion = model.criterion()
    return criterion.total(criterion(model(batch, targets), targets, batch))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reads_no_tensor_of_the_cpu_waits_where_it_must_and_issues_no_more(
    name: str,
) -> None:
    batch, on_cpu = make_batch(), without_dropout(name).train()
    targets = make_targets(batch)
    targets = replace(targets, host=on_cpu.host_inputs(batch, targets, torch.Generator()))
    expected = total_loss(on_cpu, batch, targets)
    model = on_device(without_dropout(name)).train()
    there = moved(batch, targets, on_device)
    with watched() as seen:
        total = total_loss(model, *there)
        total.backward()
    assert len(seen.waits) <= WAITS[name], Counter(seen.waits)
    assert seen.operations <= OPERATIONS[name]
    torch.testing.assert_close(total.inner, expected.detach(), rtol=1e-4, atol=1e-4)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.inner.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_reads_no_tensor_of_the_cpu(name: str) -> None:
    batch = make_batch()
    there, _ = moved(batch, make_targets(batch), on_device)
    settings = Postprocess.of(VALIDATION, 2.0)
    with torch.no_grad():
        expected = decode_output(build(name).eval()(batch), batch, settings)
        model = on_device(build(name)).eval()
        with watched():
            found = decode_output(model(there), there, settings)
    assert [len(one.windows) for one in found] == [len(one.windows) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.saliency == pytest.approx(other.saliency, abs=1e-4)


class OneBatch:
    """A set of one batch on a GPU."""

    def __init__(self, size: int) -> None:
        batch = make_batch()
        self.pair = moved(batch, make_targets(batch), lambda values: values.to("cuda"))
        self.size = size

    def epoch_batches(self, epoch: int) -> list[int]:
        return [0] * self.size

    def batch(self, indices: Any, epoch: int) -> tuple[Batch, Targets]:
        return self.pair


class NullRun:
    def log(self, metrics: Any, step: int) -> None:
        pass


def train_on_gpu(name: str, precision: str, steps: int, resume: Path) -> MomentModel:
    tree = yaml.safe_load(render("sample"))["train"]
    changes = {"precision": precision, "device": "cuda", "checkpoint_every_steps": 2}
    settings = TrainSettings.model_validate(tree | changes)
    run = RunSettings.model_validate(tree["scratch"] | {"steps": steps})
    model = build(name)
    fit(model, OneBatch(3), Plan(settings, run, 1, resume), None, (NullRun(), RecordingReporter()))
    return model


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_after_an_interruption(name: str, precision: str, tmp_path: Path) -> None:
    train_on_gpu(name, precision, 4, tmp_path / "state.pt")
    model = train_on_gpu(name, precision, 6, tmp_path / "state.pt")
    for key, value in model.state_dict().items():
        assert value.device.type == "cuda", key
        assert value.isfinite().all(), key


@GPU
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_answers_of_the_cpu(name: str) -> None:
    batch = make_batch()
    there, targets = moved(batch, make_targets(batch), lambda values: values.to("cuda"))

    def answers(model: MomentModel, batch: Batch) -> ModelOutput:
        with torch.inference_mode():
            output: ModelOutput = model.eval()(batch)
        return output

    expected, found = answers(build(name), batch), answers(build(name).to("cuda"), there)
    mask = batch.video_mask
    torch.testing.assert_close(
        found.saliency.cpu()[mask], expected.saliency[mask], rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        found.last.spans_cxw.cpu(), expected.last.spans_cxw, rtol=1e-3, atol=1e-4
    )
    total = total_loss(without_dropout(name).to("cuda").train(), there, targets)
    on_cpu = total_loss(without_dropout(name).train(), batch, make_targets(batch))
    assert math.isclose(float(total.detach()), float(on_cpu.detach()), rel_tol=1e-3)
