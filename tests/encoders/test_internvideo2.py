"""InternVideo2 against recorded outputs of the official code, and against Hugging Face's BERT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mrmodel.convert.encoders.convert import Conversion, convert
from mrmodel.convert.encoders.internvideo2 import convert as convert_names
from mrmodel.convert.encoders.vocabulary import bert_tokenizer
from mrmodel.encoders.internvideo2 import (
    InternVideo2Config,
    InternVideo2TextEncoder,
    InternVideo2VideoEncoder,
    ProjectedText,
    ProjectedVision,
)
from mrmodel.encoders.networks import internvideo2 as tower
from mrmodel.encoders.networks.bert import Bert, BertSizes
from mrmodel.encoders.networks.internvideo2 import (
    InternVideo2Vision,
    VisionSizes,
    stretch_positions,
)
from mrmodel.encoders.torch_base import IMAGENET_MEAN, IMAGENET_SPREAD
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.errors import CheckpointError, WeightsError
from mrmodel.files import derive_seed

from .tiny_sets import (
    INTERNVIDEO2,
    internvideo2_state,
    make_internvideo2,
    random_state,
    write_words,
)

GOLDEN = Path(__file__).parents[1] / "golden/encoders"
GOLDEN_SIZES = VisionSizes(
    width=192, layers=6, heads=4, mlp=837, pool_heads=4, pooled=64, patch=14, grid=4
)
TEXTS = ["a dog", "The red dog runs!", "", "a", "12 Äpfel fall, dogs"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvideo2")
    make_internvideo2(folder / "weights", folder)
    return WeightSet("internvideo2_1b", folder / "weights")


@torch.inference_mode()
def golden_difference(frames, gelu="exact", change=lambda network: None):
    """Largest absolute difference to the official outputs for clips of so many frames."""
    network = InternVideo2Vision(GOLDEN_SIZES, gelu).eval()
    network.load_state_dict(random_state(network, seed=11))
    change(network)
    rng = np.random.default_rng(derive_seed("clips", frames))
    clips = torch.from_numpy(rng.standard_normal((2, 3, frames, 56, 56), np.float32))
    with np.load(GOLDEN / "internvideo2_vision.npz") as file:
        expected = torch.from_numpy(file[f"pooled_{frames}"])
    return float((network(clips) - expected).abs().max())


@pytest.mark.parametrize("frames", [4, 1, 8])
def test_pooled_vectors_equal_the_official_ones(frames):
    assert golden_difference(frames) < 1e-5


class PerHeadNorm(nn.Module):
    """The mistake that looks right: statistics a head, the same weights."""

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight

    def forward(self, states):
        heads = states.unflatten(-1, (GOLDEN_SIZES.heads, -1))
        scale = torch.rsqrt(heads.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * (heads * scale).flatten(-2)


def norm_per_head(network):
    for block in network.blocks:
        block.attn.q_norm = PerHeadNorm(block.attn.q_norm)
        block.attn.k_norm = PerHeadNorm(block.attn.k_norm)


def drop_class_token_from_the_query(network):
    pooling = network.clip_projector

    def forward(states):
        query = pooling.norm1_q(states[:, 1:].mean(1, keepdim=True))
        return pooling.cross_attn(query, pooling.norm1_k(states), pooling.norm1_v(states))

    pooling.forward = forward


def swap_tables(network):
    patches = GOLDEN_SIZES.grid**2
    first = network.pos_embed[:, : 1 + patches].clone()
    image = network.img_pos_embed.clone()
    network.img_pos_embed.data.copy_(first)
    network.pos_embed.data[:, : 1 + patches] = image


def leave_out_layer_scale(network):
    for block in network.blocks:
        block.ls2 = nn.Identity()


@pytest.mark.parametrize("frames", [4, 1])
@pytest.mark.parametrize(
    "change",
    [norm_per_head, drop_class_token_from_the_query, swap_tables, leave_out_layer_scale],
)
def test_a_mutation_is_seen(change, frames):
    assert golden_difference(frames, change=change) > 1e-4


def test_the_form_of_gelu_is_seen():
    assert 1e-5 < golden_difference(4, gelu="tanh") < 1e-1


def test_the_norm_counts_in_float32():
    norm = tower._RmsNorm(64).bfloat16()
    states = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = states.float() * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(states), exact.bfloat16(), rtol=0, atol=0)


def test_a_table_of_the_same_size_is_left_alone():
    table = torch.randn(1, 1 + 4 * 9, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stretch_positions(table, (4, 3), (4, 3)), table)
    wider = stretch_positions(table, (4, 3), (2, 6))
    assert wider.shape == (1, 1 + 2 * 36, 8)
    assert torch.equal(wider[:, 0], table[:, 0])
    flat = torch.ones(1, 1 + 4 * 9, 8)
    torch.testing.assert_close(stretch_positions(flat, (4, 3), (7, 5)), torch.ones(1, 176, 8))


def clips(frames=4):
    rng = np.random.default_rng(frames)
    return rng.integers(0, 256, (2, frames, 56, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [4, 1, 6])
def test_rows_are_projected_pooled_vectors(weights, frames, tmp_path):
    if frames != 4:
        make_internvideo2(tmp_path / "weights", tmp_path, options={"frames": frames})
        weights = WeightSet("internvideo2_1b", tmp_path / "weights")
    encoder = InternVideo2VideoEncoder(weights)
    pixels = (clips(frames) / 255.0 - IMAGENET_MEAN) / IMAGENET_SPREAD
    network = ProjectedVision(InternVideo2Config(**dict(INTERNVIDEO2) | {"frames": frames}))
    network.load_state_dict(random_state(network))
    with torch.inference_mode():
        batch = torch.from_numpy(pixels).float().permute(0, 4, 1, 2, 3)
        expected = network.vision_proj(network.vision_encoder(batch))
    rows = encoder.encode_clips(clips(frames))
    np.testing.assert_allclose(rows, expected.numpy(), rtol=0, atol=1e-5)
    assert encoder.sampling.frames_per_clip == frames


def test_bfloat16_stays_close(weights, tmp_path):
    make_internvideo2(tmp_path / "weights", tmp_path, options={"compute_dtype": "bfloat16"})
    half = InternVideo2VideoEncoder(WeightSet("internvideo2_1b", tmp_path / "weights"))
    full = InternVideo2VideoEncoder(weights)
    ours, expected = half.encode_clips(clips()), full.encode_clips(clips())
    cosine = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1)
    assert (cosine / np.linalg.norm(expected, axis=1)).min() > 0.999


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertModel

    sizes = INTERNVIDEO2.text
    config = BertConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def test_token_rows_equal_the_reference_with_padding(weights, bert):
    state = random_state(ProjectedText(INTERNVIDEO2))
    prefix = "text_encoder.bert."
    bert.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if prefix in k})
    tokenizer = weights.tokenizer()
    tokenizer.enable_padding(length=40)
    encoded = tokenizer.encode_batch(TEXTS)
    ids = torch.tensor([encoding.ids for encoding in encoded])
    mask = torch.tensor([encoding.attention_mask for encoding in encoded])
    with torch.inference_mode():
        hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = hidden @ state["text_proj.weight"].T + state["text_proj.bias"]
    rows = InternVideo2TextEncoder(weights).encode_texts(TEXTS)
    for row, wanted, valid in zip(rows, expected, mask.sum(1).tolist(), strict=True):
        assert len(row) == valid
        np.testing.assert_allclose(row, wanted[:valid].numpy(), rtol=0, atol=1e-5)


def test_long_texts_are_cut(weights):
    (rows,) = InternVideo2TextEncoder(weights).encode_texts(["the dog " * 40])
    assert len(rows) == 40


def test_the_tokenizer_equals_the_reference(tmp_path):
    from transformers import BertTokenizer

    path = write_words(tmp_path / "vocab.txt")
    numbers = {word: number for number, word in enumerate(path.read_text().split())}
    ours, theirs = bert_tokenizer(path), BertTokenizer(vocab=numbers, do_lower_case=True)
    for text in [*TEXTS, "Thé\tREDs!", "漢 dog", "x" * 120, "a.b,c"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_a_vocabulary_without_marks_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"lacks \[UNK\]"):
        bert_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        bert_tokenizer(tmp_path / "missing.txt")


def shapes_of(*networks):
    return {
        name: tuple(tensor.shape)
        for network in networks
        for name, tensor in network.state_dict().items()
    }


def published_vision():
    """Names and shapes of the official 1B vision encoder."""
    manifest = json.loads((GOLDEN / "internvideo2_1b_vision.json").read_text())
    return {
        row["name"].replace("*", str(number)): tuple(row["shape"])
        for row in manifest["tensors"]
        for number in range(row["count"])
    }


def test_the_published_network_has_the_published_names():
    from transformers import BertConfig, BertModel

    config = InternVideo2Config()
    with torch.device("meta"):
        vision, text = ProjectedVision(config), ProjectedText(config)
        large = BertConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            vocab_size=30522,
        )
        bert = BertModel(large, add_pooling_layer=False)
        published = {name: torch.empty(shape) for name, shape in published_vision().items()}
        published |= {f"text_encoder.bert.{k}": v for k, v in bert.state_dict().items()}
        for layer in range(19, 24):
            name = f"text_encoder.bert.encoder.layer.{layer}.crossattention.self.key.weight"
            published[name] = torch.empty(1024, 1408)
        published |= {"vision_proj.weight": torch.empty(512, 768)}
        published |= {"vision_proj.bias": torch.empty(512), "text_proj.bias": torch.empty(512)}
        published |= {"text_proj.weight": torch.empty(512, 1024), "temp": torch.empty(())}
        published |= {"itm_head.weight": torch.empty(2, 1024), "itm_head.bias": torch.empty(2)}
    found, kept = convert_names(published)
    assert found == config
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == shapes_of(vision, text)
    towers = (vision.vision_encoder, text.text_encoder, vision.vision_proj, text.text_proj)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in towers]
    assert millions[0] == pytest.approx(1019.6, abs=0.05)
    assert millions[1] == pytest.approx(271.1, abs=0.05)
    assert millions[2] + millions[3] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_encoder.blocks.0.attn.qkv.bias": torch.ones(192)}, "qkv.bias has no place"),
        ({"other.weight": torch.ones(1)}, "other.weight has no place"),
        ({"text_proj.weight": torch.ones(512, 65)}, r"text_proj.weight is \(512, 65\)"),
        ({"vision_encoder.cls_token": None}, "cls_token is missing"),
        ({"vision_encoder.pos_embed": None}, "pos_embed is missing"),
    ],
)
def test_another_network_is_refused(tmp_path, change, message):
    state = {k: v for k, v in (internvideo2_state() | change).items() if v is not None}
    torch.save(state, tmp_path / "a.pt")
    vocabulary = write_words(tmp_path / "vocab.txt")
    with pytest.raises((WeightsError, CheckpointError), match=message):
        convert(Conversion("internvideo2_1b", tmp_path / "a.pt", vocabulary, root=tmp_path))
    assert not (tmp_path / "internvideo2_1b").exists()


def test_bert_large_is_the_default():
    assert BertSizes().layers == 19
    with torch.device("meta"):
        assert len(Bert(BertSizes()).encoder.layer) == 19
