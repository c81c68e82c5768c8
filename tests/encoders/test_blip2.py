"""BLIP-2: what is taken of Hugging Face's model, and a naive Q-Former beside it."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mrmodel.convert.encoders.blip2 import convert as convert_names
from mrmodel.convert.encoders.convert import read_tensors
from mrmodel.encoders.blip2 import Blip2SetConfig, Blip2Text, Blip2TextEncoder, Blip2Vision
from mrmodel.encoders.blip2 import Blip2VideoEncoder as VideoEncoder
from mrmodel.encoders.torch_base import CLIP_MEAN, CLIP_SPREAD
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.errors import CheckpointError, WeightsError

from .tiny_sets import BLIP2, make_blip2, random_state

TEXTS = ["a dog", "the red dog runs!", "", "an apple falls, the dog runs"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip2")
    make_blip2(folder / "weights", folder)
    return WeightSet("blip2", folder / "weights")


@pytest.fixture(scope="module")
def state():
    return random_state(Blip2Vision(BLIP2), Blip2Text(BLIP2))


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)


def attend(state, name, x, y):
    """12 heads of 64, one at a time; then the output layer with its residual."""
    query = linear(state, f"{name}.attention.query", x)
    key = linear(state, f"{name}.attention.key", y)
    value = linear(state, f"{name}.attention.value", y)
    heads = []
    for start in range(0, 768, 64):
        part = slice(start, start + 64)
        scores = query[:, part] @ key[:, part].T / 8
        heads.append(scores.softmax(-1) @ value[:, part])
    mixed = linear(state, f"{name}.output.dense", torch.cat(heads, -1))
    return norm(state, f"{name}.output.LayerNorm", mixed + x)


def naive_qformer(state, x, picture=None):
    """(N, 768) of one text, or of the queries with a picture."""
    x = norm(state, "qformer.layernorm", x)
    ending = "" if picture is None else "_query"
    for number in range(BLIP2.qformer.layers):
        layer = f"qformer.encoder.layer.{number}"
        x = attend(state, f"{layer}.attention", x, x)
        if picture is not None and number % 2 == 0:
            x = attend(state, f"{layer}.crossattention", x, picture)
        inner = F.gelu(linear(state, f"{layer}.intermediate{ending}.dense", x))
        inner = linear(state, f"{layer}.output{ending}.dense", inner)
        x = norm(state, f"{layer}.output{ending}.LayerNorm", inner + x)
    return x


@torch.inference_mode()
def test_token_rows_equal_a_naive_qformer(weights, state):
    tokenizer = weights.tokenizer()
    for text, rows in zip(TEXTS, Blip2TextEncoder(weights).encode_texts(TEXTS), strict=True):
        ids = tokenizer.encode(text).ids
        words = state["embeddings.word_embeddings.weight"][ids]
        positions = state["embeddings.position_embeddings.weight"][: len(ids)]
        expected = naive_qformer(state, words + positions)
        np.testing.assert_allclose(rows, expected.numpy(), rtol=0, atol=1e-5)


def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28, 3), dtype=np.uint8)


@torch.inference_mode()
def test_rows_of_clips_are_first_query_states(weights, state):
    vision = Blip2Vision(BLIP2).eval()
    vision.load_state_dict({k: v for k, v in state.items() if not k.startswith("embeddings")})
    pixels = torch.from_numpy((pictures()[:, 0] / 255.0 - CLIP_MEAN) / CLIP_SPREAD).float()
    seen = vision.vision_model(pixel_values=pixels.permute(0, 3, 1, 2)).last_hidden_state
    for row, picture in zip(VideoEncoder(weights).encode_clips(pictures()), seen, strict=True):
        expected = naive_qformer(state, state["queries.tokens"][0], picture)[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_padding_in_hugging_faces_model_changes_nothing(weights, state):
    text = Blip2Text(BLIP2).eval()
    text.load_state_dict({k: state[k] for k in text.state_dict()})
    tokenizer = weights.tokenizer()
    tokenizer.enable_padding(length=20)
    encoded = tokenizer.encode_batch(TEXTS)
    ids = torch.tensor([encoding.ids for encoding in encoded])
    mask = torch.tensor([encoding.attention_mask for encoding in encoded])
    embedded = text.embeddings(ids)
    out = text.qformer(query_embeds=embedded, query_length=0, attention_mask=mask)
    for row, wanted, valid in zip(
        Blip2TextEncoder(weights).encode_texts(TEXTS), out.last_hidden_state, mask.sum(1),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(row, wanted[:valid].numpy(), rtol=0, atol=1e-5)


def test_the_published_network_has_hugging_faces_names():
    from transformers import (
        Blip2Config,
        Blip2ForImageTextRetrieval,
        Blip2QFormerConfig,
        Blip2VisionConfig,
    )

    with torch.device("meta"):
        qformer = Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True)
        settings = Blip2Config(vision_config=Blip2VisionConfig(), qformer_config=qformer)
        published = Blip2ForImageTextRetrieval(settings).state_dict()
        networks = (Blip2Vision(Blip2SetConfig()), Blip2Text(Blip2SetConfig()))
    config, kept = convert_names(published)
    assert config == Blip2SetConfig()
    ours = {name: t.shape for network in networks for name, t in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in kept.items()} == ours


def test_half_precision_is_for_the_vision_transformer(weights, tmp_path):
    make_blip2(tmp_path / "weights", tmp_path, options={"compute_dtype": "bfloat16"})
    half = VideoEncoder(WeightSet("blip2", tmp_path / "weights"))
    rows, expected = half.encode_clips(pictures()), VideoEncoder(weights).encode_clips(pictures())
    assert 0 < np.abs(rows - expected).max() < 0.2
    assert half._model.qformer.layernorm.weight.dtype == torch.float32


def test_without_transformers_it_says_what_to_install(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (VideoEncoder.fingerprint, lambda encoder: encoder.encode_clips(pictures())):
        with pytest.raises(WeightsError, match=r"mrmodel\[blip2\]"):
            use(VideoEncoder(weights))


def test_every_file_of_an_index_is_locked(weights):
    sources = [source.file for source in weights.lock().sources]
    assert sources == ["one.safetensors", "two.safetensors", "blip2.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no index"),
        ("[]", "no index"),
        (json.dumps({"weight_map": {"a": "../one.safetensors"}}), "not beside it"),
        (json.dumps({"weight_map": {"a": 3}}), "no index"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(path)
