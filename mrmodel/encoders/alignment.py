"""Image-text alignment in closed form, without training on image-text pairs.

Two maps project the features of an ImageNet classifier to the 384 channels of MiniLM. ConSE
(Norouzi et al. 2014) averages the class-text vectors, weighted by the class probabilities. The
ridge map takes the classifier's 1000 weight rows as visual prototypes and regresses the class-text
vectors on them, a closed-form DeViSE (Frome et al. 2013). An image's vector is the sum of both
outputs, each scaled to unit length: ConSE is better at classification, the ridge map at ranking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.minilm import WIDTH, SentenceModel
from mrmodel.encoders.networks.efficientnet_lite import (
    FEATURE_DIM,
    N_CLASSES,
    EfficientNetLite0,
    load_efficientnet_lite0,
    normalise,
)
from mrmodel.files import derive_seed

# Tuned on rendered videos that no stage of the pipeline uses (benchmarks/encoders.py).
TEMPERATURE = 2.0
RIDGE_PENALTY = 10.0
NEUTRAL_IMAGES = 64


class AlignedVideoModel(nn.Module):
    """The frames of one clip -> its vector in the sentence space; also exported to ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        self.class_vectors = nn.Parameter(torch.zeros(N_CLASSES, WIDTH))
        self.ridge = nn.Linear(FEATURE_DIM, WIDTH)

    def forward(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 RGB -> (384,) of unit length."""
        features = self.backbone(normalise(frames))
        chances = (self.backbone.classifier(features) / TEMPERATURE).softmax(dim=-1)
        named = F.normalize(chances @ self.class_vectors, dim=-1)
        mapped = F.normalize(self.ridge(features), dim=-1)
        return F.normalize(F.normalize(named + mapped, dim=-1).mean(dim=0), dim=-1)


def build_aligned_model(lock: WeightsLock, size: tuple[int, int]) -> AlignedVideoModel:
    """Solve the alignment from the pinned weights; takes half a minute, so cache the result.

    Args:
        lock: where the weights are.
        size: (width, height) of the images that will be encoded.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """
    # One thread: the result must not depend on the number of cores, to the bit.
    with torch.inference_mode(), _single_thread():
        model = AlignedVideoModel()
        model.backbone.load_state_dict(load_efficientnet_lite0(lock).state_dict())
        vectors = SentenceModel(lock).sentence_vectors(class_texts(lock)).double()
        vectors = vectors - vectors.mean(dim=0)
        ridge = solve_ridge(model.backbone.classifier.weight.double(), vectors)
        neutral = model.backbone(normalise(neutral_images(size))).double().mean(dim=0)
        model.class_vectors.copy_(vectors)
        model.ridge.weight.copy_(ridge.T)
        model.ridge.bias.copy_(-neutral @ ridge)
    return model.eval().requires_grad_(False)


def class_texts(lock: WeightsLock) -> list[str]:
    """One text per class: its names, then the first sentence of its description, if any.

    More than the first sentence costs three times the tokens and ranks no better.
    """
    described = json.loads(lock.path("imagenet.descriptions").read_text(encoding="utf-8"))
    plain = json.loads(lock.path("imagenet.names").read_text(encoding="utf-8"))
    texts = []
    for index in range(N_CLASSES):
        row = described.get(str(index))
        if row is None:
            texts.append(plain[index])
        else:
            sentence = (row.get("description") or "").split(". ")[0]
            texts.append(". ".join(filter(None, [", ".join(row["name"]), sentence])))
    return texts


def solve_ridge(prototypes: Tensor, vectors: Tensor) -> Tensor:
    """argmin_M |A M - V|^2 + RIDGE_PENALTY |M|^2, A = centred prototypes.

    Args:
        prototypes: (1000, 1280) classifier rows.
        vectors: (1000, 384) centred class-text vectors.

    Returns:
        M, (1280, 384).
    """
    centred = prototypes - prototypes.mean(dim=0)
    gram = centred.T @ centred
    gram.diagonal().add_(RIDGE_PENALTY)
    solution: Tensor = torch.linalg.solve(gram, centred.T @ vectors)
    return solution


def neutral_images(size: tuple[int, int]) -> Tensor:
    """(64, H, W, 3) uint8 neutral images: plain backgrounds with a few plain rectangles.

    Their mean feature is the origin of the ridge map. It replaces the mean feature of real images,
    which would need a data set, and ranks as well.
    """
    rng = np.random.default_rng(derive_seed("embedded.video", "neutral images"))
    width, height = size
    images = np.empty((NEUTRAL_IMAGES, height, width, 3), dtype=np.uint8)
    for image in images:
        image[:] = rng.integers(0, 256, 3)
        for _ in range(rng.integers(1, 5)):
            left, top, across, down = rng.random(4)
            x, y = int(left * 0.85 * width), int(top * 0.85 * height)
            right, bottom = (
                x + int((0.1 + 0.7 * across) * width),
                y + int((0.1 + 0.7 * down) * height),
            )
            image[y:bottom, x:right] = rng.integers(0, 256, 3)
    return torch.from_numpy(images)


def save_aligned_model(model: AlignedVideoModel, path: Path) -> None:
    """Write the tensors as safetensors."""
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def load_aligned_model(path: Path) -> AlignedVideoModel:
    """Read what `save_aligned_model` wrote."""
    model = AlignedVideoModel()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
