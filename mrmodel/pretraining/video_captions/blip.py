"""BLIP and BLIP-2 as captioner and scorer, from folders that the user brings; extra ``[blip2]``.

The folders are in Hugging Face's format (``config.json``, safetensors, the processor's files).
Nothing is downloaded, no pickle is read, and no code of a folder runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mrmodel.encoders.base import Frames, Rows
from mrmodel.errors import WeightsError
from mrmodel.files import sha256_of
from mrmodel.pretraining.video_captions.captioners import unit
from mrmodel.video.sampling import FrameSampling

# Pixels of the square frames, from which the processors make their own sizes.
_SIDE = 384
_MAX_TOKENS = 30
Network = Literal["blip", "blip2"]
_CAPTIONERS = {"blip": "BlipForConditionalGeneration", "blip2": "Blip2ForConditionalGeneration"}
_SCORERS = {"blip": "BlipForImageTextRetrieval", "blip2": "Blip2ForImageTextRetrieval"}


def weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder of weights, by name."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return {path.name: sha256_of(path) for path in files}


class BlipCaptioner:
    """Writes captions, by greedy decoding.

    Args:
        network: the family of the network in the folder.
        folder: for example the files of blip2-opt-2.7b, or of blip-image-captioning-large, which
            the published script uses.
        device: where it runs.

    Raises:
        WeightsError: the folder holds no such network, or transformers is not installed.
    """

    def __init__(self, network: Network, folder: Path, device: torch.device) -> None:
        self._model, self._processor = _load(_CAPTIONERS[network], folder, device)
        self._device = device

    @torch.inference_mode()
    def caption(self, frames: Frames) -> list[str]:
        """(n, 1, H, W, 3) uint8 RGB -> one caption each."""
        inputs = self._processor(images=list(frames[:, 0]), return_tensors="pt")
        tokens = self._model.generate(
            **inputs.to(self._device), max_new_tokens=_MAX_TOKENS, do_sample=False, num_beams=1
        )
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


class BlipScorer:
    """Compares frames and captions.

    Args:
        network: the family of the network in the folder.
        folder: for example the files of blip2-itm-vit-g, or of blip-itm-base-coco, which the
            published script uses.
        score: cosine of the projected vectors, or the matching head's probability.
        device: where it runs.

    Raises:
        WeightsError: the folder holds no such network, or transformers is not installed.
    """

    sampling = FrameSampling(1, (_SIDE, _SIDE), "middle", "bicubic", "crop")

    def __init__(
        self, network: Network, folder: Path, score: Literal["cos", "itm"], device: torch.device
    ) -> None:
        self._model, self._processor = _load(_SCORERS[network], folder, device)
        self._network, self._score, self._device = network, score, device

    @torch.inference_mode()
    def score(self, frames: Frames, texts: Sequence[str]) -> Rows:
        """Cosines or probabilities of frames and texts, (n,)."""
        matches = self._score == "itm"
        inputs = self._inputs(frames, texts)
        if self._network == "blip":
            scores = self._model(**inputs, use_itm_head=matches).itm_score
        else:
            scores = self._model(**inputs, use_image_text_matching_head=matches).logits_per_image
        return _rows(scores.softmax(dim=1)[:, 1] if matches else scores.diagonal())

    @torch.inference_mode()
    def image_vectors(self, frames: Frames) -> Rows:
        """(n, d) of unit length; of BLIP-2's query tokens the mean."""
        inputs = self._inputs(frames, ["."])
        if self._network == "blip":
            states = self._model.vision_model(pixel_values=inputs["pixel_values"])[0]
            return unit(_rows(self._model.vision_proj(states[:, 0])))
        return unit(_rows(self._model(**inputs).image_embeds.mean(dim=1)))

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> Rows:
        """(n, d) of unit length."""
        inputs = self._inputs(np.zeros((1, 1, _SIDE, _SIDE, 3), np.uint8), texts)
        if self._network == "blip":
            words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            states = self._model.text_encoder(**words)[0]
            return unit(_rows(self._model.text_proj(states[:, 0])))
        return unit(_rows(self._model(**inputs).text_embeds))

    def _inputs(self, frames: Frames, texts: Sequence[str]) -> Any:
        images = self._processor(
            images=list(frames[:, 0]), text=list(texts), padding=True, return_tensors="pt"
        )
        return images.to(self._device)


def _rows(values: Tensor) -> Rows:
    found: Rows = values.float().cpu().numpy()
    return found


def _load(name: str, folder: Path, device: torch.device) -> tuple[Any, Any]:
    """The network of a folder in eval mode, and its processor."""
    try:
        import transformers
    except ImportError:
        hint = 'pip install "mrmodel[blip2]"'
        raise WeightsError(f"captions of BLIP need Hugging Face's networks: {hint}") from None
    if not (folder / "config.json").is_file():
        rule = "no config.json there: give a folder with the published files of the network"
        raise WeightsError(f"{folder}: {rule}; nothing is downloaded")
    try:
        model = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{folder}: holds no {name} of safetensors: {reason}") from None
    return model.to(device).eval(), processor
