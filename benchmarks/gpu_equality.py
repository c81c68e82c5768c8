"""Whether a GPU gives the same bytes: in another place, in other company, and a second time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_bench import ENCODERS, PRECISIONS, Bench, EncoderCase, Figures, Item
from benchmarks.gpu_training import train
from mrmodel.train.optim import autocast
from mrmodel.types import ModelOutput

EQUAL_STEPS = 20  # of each of two trainings that are compared


def invariance_items(bench: Bench) -> Iterator[Item]:
    """Whether rows and answers depend on place and neighbours; what takes longest comes last."""

    def of_encoders(precision: str) -> Iterator[Item]:
        for case in ENCODERS:
            about = {"encoder": case.encoder.name, "precision": precision}
            yield about, partial(encoder_invariance, bench, case, precision)

    yield from of_encoders("bf16")
    for name in bench.names:
        for precision in PRECISIONS:
            about = {"model": name, "precision": precision}
            yield about, partial(model_invariance, bench, name, precision)
    yield from of_encoders("fp32")


def encoder_invariance(bench: Bench, case: EncoderCase, precision: str) -> Figures:
    """Differences of rows by order, company and batch size."""
    encoder = bench.encoder(case, precision)
    batch = 3 if bench.small else case.encoder.gpu_batch
    vars(encoder)["gpu_batch"] = batch
    clips = 64 if precision == "bf16" else max(16, 2 * batch)
    frames = bench.frames(encoder, 8 if bench.small else clips)
    rows = encoder.encode_clips(frames)
    differences: dict[str, float] = {"again": _apart(encoder.encode_clips(frames), rows)}
    for number in (1, 2):
        order = np.random.default_rng(number).permutation(len(frames))
        differences[f"order_{number}"] = _apart(encoder.encode_clips(frames[order]), rows[order])
    for clip in (0, len(frames) // 3, len(frames) - 1):
        alone = encoder.encode_clips(frames[clip : clip + 1])
        differences[f"alone_{clip}"] = _apart(alone, rows[clip : clip + 1])
    vars(encoder)["gpu_batch"] = 2 * batch
    other = {"twice_the_batch": _apart(encoder.encode_clips(frames), rows)}
    return {
        "equal": not any(differences.values()),
        **differences,
        **other,
        "mean_size": float(np.abs(rows).mean()),
        "finite": bool(np.isfinite(rows).all()),
    }


def model_invariance(bench: Bench, name: str, precision: str) -> Figures:
    """Differences of a query's answers by its place, its neighbours, and alone in a batch."""
    size = 4 if bench.small else 32
    data = bench.data(name, size, ragged=True)
    model = bench.model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # some begin as zeros, and hide inputs

    def answers(rows: list[int]) -> ModelOutput:
        batch = data.batch(rows, 0)[0]
        with torch.inference_mode(), autocast(bench.device, precision):
            output: ModelOutput = model(batch)
        return output

    # The first video is the longest, so that all batches with it are padded alike.
    rows = list(range(size))
    first = answers(rows)
    order = np.random.default_rng(1).permutation(size).tolist()
    half = size // 2
    others = list(range(len(data) - half, len(data)))
    found = {
        "again": (answers(rows), rows),
        "place": (answers(order), order),
        "neighbours": (answers(rows[:half] + others), rows[:half]),
        "alone": (answers([1]), [1]),
    }
    clips = [int(data.n_clips[row]) for row in rows]
    differences = {case: _answers_apart(o, first, r, clips) for case, (o, r) in found.items()}
    kept = ("again", "place", "neighbours")
    return {"equal": not any(any(differences[case].values()) for case in kept), **differences}


def _answers_apart(
    output: ModelOutput, first: ModelOutput, rows: list[int], clips: list[int]
) -> dict[str, float]:
    """Largest differences of the samples `rows` of `first`, which are the first of `output`."""
    fields = {
        "spans": (output.spans_cxw, first.spans_cxw),
        "scores": (output.scores, first.scores),
        "last_spans": (output.last.spans_cxw, first.last.spans_cxw),
    }
    apart = {
        name: max(_apart(_array(ours[i]), _array(theirs[row])) for i, row in enumerate(rows))
        for name, (ours, theirs) in fields.items()
    }
    apart["saliency"] = max(
        _apart(_array(output.saliency[i, : clips[row]]), _array(first.saliency[row, : clips[row]]))
        for i, row in enumerate(rows)
    )
    return apart


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Largest absolute difference; infinite where the shapes or the broken values differ."""
    if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(first.astype(np.float64) - second)).max(initial=0.0))


def determinism_items(bench: Bench) -> Iterator[Item]:
    """Whether a training can be repeated."""
    for name in bench.names:
        for precision in PRECISIONS:
            about = {"model": name, "precision": precision}
            yield about, partial(repeat_training, bench, name, precision)


def repeat_training(bench: Bench, name: str, precision: str) -> Figures:
    """Two trainings from one seed; where they differ, two more with PyTorch's strict kernels."""
    steps = 3 if bench.small else EQUAL_STEPS
    data = bench.data(name, bench.batches[0])

    def compare() -> Figures:
        (model, losses), (other, others) = (
            train(bench, name, precision, data, steps) for _ in range(2)
        )
        state = other.state_dict()
        apart = [_apart(_array(v), _array(state[key])) for key, v in model.state_dict().items()]
        pairs = enumerate(zip(losses, others, strict=True))
        return {
            "equal": not any(apart),
            "tensors_apart": sum(map(bool, apart)),
            "tensors": len(apart),
            "largest": max(apart),
            "first_other_loss": next((step for step, (a, b) in pairs if a != b), None),
            "losses": [losses[0], losses[-1]],
            "finite": bool(np.isfinite(losses).all()),
        }

    figures = compare()
    if not figures["equal"]:
        with ExitStack() as stack, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.use_deterministic_algorithms(True, warn_only=True)
            stack.callback(torch.use_deterministic_algorithms, False)
            figures["strict"] = compare()
        messages = Counter(str(warning.message)[:90] for warning in told)
        figures["strict_warnings"] = dict(messages.most_common(4))
    return figures
