"""BLIP and BLIP-2 as captioner and scorer: tiny networks, in folders as published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from mrmodel.errors import WeightsError
from mrmodel.pretraining.video_captions.blip import (
    BlipCaptioner,
    BlipScorer,
    Network,
    weight_digests,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<image>", ".", "a", "dog", "runs")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
TEXTS = ["a dog runs", "a dog", "."]
CPU = torch.device("cpu")
FRAMES = np.random.default_rng(3).integers(0, 255, (3, 1, 40, 40, 3), dtype=np.uint8)


def tokenizer() -> Any:
    words = models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    fast = Tokenizer(words)
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **marks)


def config_of(network: Network) -> Any:
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    words = SMALL | {"encoder_hidden_size": 16, "max_position_embeddings": 40}
    if network == "blip":
        marks = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
        text = words | marks | {"vocab_size": len(WORDS)}
        return transformers.BlipConfig(
            text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8
        )
    opt = {
        "model_type": "opt",
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return transformers.Blip2Config(
        vision_config=vision,
        qformer_config=words | {"vocab_size": len(WORDS), "use_qformer_text_input": True},
        text_config=opt,
        num_query_tokens=4,
        image_text_hidden_size=8,
        image_token_index=6,
    )


def save(network: Network, name: str, folder: Path) -> None:
    torch.manual_seed(1)
    model = getattr(transformers, name)(config_of(network))
    # Weights of 0.02, as initialised, give nearly equal outputs for all inputs.
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.5)
    model.save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    if network == "blip":
        processor = transformers.BlipProcessor(images, tokenizer())
    else:
        processor = transformers.Blip2Processor(images, tokenizer(), num_query_tokens=4)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=["blip", "blip2"])
def network(request: pytest.FixtureRequest) -> Network:
    name: Network = request.param
    return name


@pytest.fixture(scope="module")
def folders(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp(network)
    prefix = "Blip" if network == "blip" else "Blip2"
    save(network, f"{prefix}ForConditionalGeneration", root / "captioner")
    save(network, f"{prefix}ForImageTextRetrieval", root / "scorer")
    return root / "captioner", root / "scorer"


def test_captions_and_scores(network: Network, folders: tuple[Path, Path]) -> None:
    captioner = BlipCaptioner(network, folders[0], CPU)
    captions = captioner.caption(FRAMES)
    assert len(captions) == 3
    assert all(set(caption.split()) <= set(WORDS) for caption in captions)
    # No caption depends on the others of its batch.
    assert captions[1:2] == captioner.caption(FRAMES[1:2])

    scorer = BlipScorer(network, folders[1], "cos", CPU)
    images, texts = scorer.image_vectors(FRAMES), scorer.text_vectors(TEXTS)
    for rows in (images, texts):
        assert np.linalg.norm(rows, axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
    cosines = scorer.score(FRAMES, TEXTS)
    alone = [float(scorer.score(FRAMES[n : n + 1], TEXTS[n : n + 1])[0]) for n in range(3)]
    assert cosines == pytest.approx(alone, abs=1e-5)
    if network == "blip":  # of BLIP-2, the best of its query tokens counts
        assert cosines == pytest.approx((images * texts).sum(axis=1), abs=1e-5)

    matches = BlipScorer(network, folders[1], "itm", CPU).score(FRAMES, TEXTS)
    assert matches.shape == (3,)
    assert ((matches > 0) & (matches < 1)).all()
    assert len(set(matches.round(6).tolist())) == 3


def test_folders_that_hold_no_weights_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json there.*nothing is downloaded"):
        BlipCaptioner("blip2", folders[0] / "absent", CPU)
    assert set(weight_digests(folders[1])) > {"config.json", "model.safetensors"}
    weights = folders[1] / "model.safetensors"
    weights.rename(folders[1] / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="of safetensors"):
        BlipScorer("blip", folders[1], "cos", CPU)
    (folders[1] / "pytorch_model.bin").rename(weights)
