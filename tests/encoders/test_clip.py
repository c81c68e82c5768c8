"""CLIP against Hugging Face's classes, and against a naive network in OpenAI's names."""

import gzip
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mrmodel.convert.encoders.clip import convert
from mrmodel.convert.encoders.torchscript import read_torchscript
from mrmodel.convert.encoders.vocabulary import clip_tokenizer
from mrmodel.encoders.clip import ClipJointTextEncoder, ClipTextEncoder, ClipVideoEncoder
from mrmodel.encoders.networks.clip import ClipConfig, ClipText, ClipVision
from mrmodel.encoders.torch_base import CLIP_MEAN, CLIP_SPREAD
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.errors import CheckpointError

from .tiny_sets import CLIP, MERGES, make_clip, random_state, write_merges

TEXTS = ["the red dog", "The  DOG's 2nd, thé!", "", "the dog " * 40]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder / "weights", folder)
    return WeightSet("clip_b32", folder / "weights")


@pytest.fixture(scope="module")
def reference(weights):
    """Hugging Face's class with the same tensors."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": CLIP.text.width,
        "intermediate_size": CLIP.text.mlp,
        "num_hidden_layers": CLIP.text.layers,
        "num_attention_heads": CLIP.text.heads,
        "vocab_size": CLIP.vocabulary,
        "max_position_embeddings": CLIP.positions,
        "bos_token_id": CLIP.vocabulary - 2,
        "eos_token_id": CLIP.vocabulary - 1,
    }
    vision = {
        "hidden_size": CLIP.vision.width,
        "intermediate_size": CLIP.vision.mlp,
        "num_hidden_layers": CLIP.vision.layers,
        "num_attention_heads": CLIP.vision.heads,
        "image_size": CLIP.image_size,
        "patch_size": CLIP.patch,
    }
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP.projection)
    ).eval()
    tensors = load_file(weights.folder / "model.safetensors")
    report = model.load_state_dict(tensors, strict=False)
    assert report.missing_keys == ["logit_scale"]
    assert not report.unexpected_keys
    return model


def pictures(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 1, CLIP.image_size, CLIP.image_size, 3), dtype=np.uint8)


def normalised(frames):
    """(n, 1, S, S, 3) uint8 -> (n, 3, S, S), channel by channel."""
    planes = [
        (frames[:, 0, ..., channel] / 255.0 - CLIP_MEAN[channel]) / CLIP_SPREAD[channel]
        for channel in range(3)
    ]
    return torch.tensor(np.stack(planes, axis=1), dtype=torch.float32)


def test_image_vectors_equal_the_reference(weights, reference):
    frames = pictures()
    with torch.inference_mode():
        expected = reference.get_image_features(pixel_values=normalised(frames)).pooler_output
    rows = ClipVideoEncoder(weights).encode_clips(frames)
    np.testing.assert_allclose(rows, expected.numpy(), rtol=0, atol=1e-5)


def test_token_states_and_sentence_vectors_equal_the_reference(weights, reference):
    encoder, joint = ClipTextEncoder(weights), ClipJointTextEncoder(weights)
    tokenizer = clip_tokenizer(weights.folder / "tokenizer.json")
    for text, rows, sentence in zip(
        TEXTS, encoder.encode_texts(TEXTS), joint.encode_texts(TEXTS), strict=True
    ):
        ids = tokenizer.encode(text).ids
        ids = [*ids[: CLIP.positions - 1], ids[-1]] if len(ids) > CLIP.positions else ids
        with torch.inference_mode():
            out = reference.text_model(input_ids=torch.tensor([ids]))
            projected = reference.text_projection(out.last_hidden_state[0])
        np.testing.assert_allclose(rows, out.last_hidden_state[0].numpy(), rtol=0, atol=1e-5)
        unit = nn.functional.normalize(projected[-1:], dim=-1)
        expected = torch.cat((unit, projected[1:-1]))
        np.testing.assert_allclose(sentence, expected.numpy(), rtol=0, atol=1e-5)


def test_the_tokenizer_equals_the_reference(tmp_path):
    from transformers import CLIPTokenizer

    ours = clip_tokenizer(write_merges(tmp_path / "merges.txt.gz"))
    vocabulary = ours.get_vocab(with_added_tokens=True)
    theirs = CLIPTokenizer(vocab=vocabulary, merges=list(MERGES))
    texts = [*TEXTS, "a\tb\n c", "naïve CAFÉ 😀 don't we'll", "x2y33", "ﬁ ａ"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_the_vocabulary_has_openais_order(tmp_path):
    words = clip_tokenizer(write_merges(tmp_path / "merges.txt.gz")).get_vocab()
    assert (words["!"], words["a"], words["!</w>"]) == (0, 64, 256)
    assert words["do"] == 512
    assert words["<|endoftext|>"] == CLIP.vocabulary - 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b"only a comment\n", b"first\na b c\n"])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content):
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        clip_tokenizer(path)
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        clip_tokenizer(path)


class OpenAiBlock(nn.Module):
    def __init__(self, width, heads, mlp, causal):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.causal = causal

    def forward(self, x):
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1) if self.causal else None
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(inner * torch.sigmoid(1.702 * inner))


def stack(sizes, causal):
    blocks = [OpenAiBlock(sizes.width, sizes.heads, sizes.mlp, causal) for _ in range(sizes.layers)]
    transformer = nn.Module()
    transformer.resblocks = nn.Sequential(*blocks)
    return transformer


class OpenAiClip(nn.Module):
    """Names and layout as OpenAI's file has them; written naively."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        width, patches = config.vision.width, (config.image_size // config.patch) ** 2
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.zeros(width))
        self.visual.positional_embedding = nn.Parameter(torch.zeros(patches + 1, width))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual.transformer = stack(config.vision, False)
        self.visual.proj = nn.Parameter(torch.zeros(width, config.projection))
        self.transformer = stack(config.text, True)
        self.token_embedding = nn.Embedding(config.vocabulary, config.text.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.positions, config.text.width))
        self.ln_final = nn.LayerNorm(config.text.width)
        self.text_projection = nn.Parameter(torch.zeros(config.text.width, config.projection))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("context_length", torch.tensor(config.positions))

    def forward(self, images, ids):
        x = self.visual.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat((self.visual.class_embedding.repeat(len(x), 1, 1), x), 1)
        x = self.visual.ln_pre(x + self.visual.positional_embedding)
        x = self.visual.ln_post(self.visual.transformer.resblocks(x)[:, 0])
        text = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        text = self.ln_final(self.transformer.resblocks(text))
        return x @ self.visual.proj, text, text[:, -1] @ self.text_projection


@pytest.fixture(scope="module")
def openai():
    model = OpenAiClip(CLIP).eval()
    model.load_state_dict(random_state(model, seed=3) | {"context_length": torch.tensor(24)})
    return model


@torch.inference_mode()
def outputs(vision, text, images, ids):
    states = text(ids)
    return vision(images), states, text.project(states[:, -1])


def test_openais_names_are_converted(openai):
    images, ids = normalised(pictures(2, 5)), torch.tensor([[518, 64, 65, 519], [518, 3, 4, 519]])
    config, tensors = convert(openai.state_dict())
    assert config == CLIP
    vision, text = ClipVision(config), ClipText(config)
    vision.load_state_dict({k: v for k, v in tensors.items() if k.startswith("vis")})
    text.load_state_dict({k: v for k, v in tensors.items() if k.startswith("text")})
    with torch.inference_mode():
        expected = openai(images, ids)
    for ours, theirs in zip(outputs(vision, text, images, ids), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_torchscript_archive_gives_its_tensors(openai, tmp_path):
    example = normalised(pictures(1)), torch.tensor([[518, 519]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(openai.half().float(), example)
        traced.half().save(tmp_path / "model.pt")
    found, expected = read_torchscript(tmp_path / "model.pt"), openai.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=0, atol=0)


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        vision, text = ClipVision(ClipConfig()), ClipText(ClipConfig())
    counts = [sum(p.numel() for p in network.parameters()) for network in (vision, text)]
    # ViT-B/32 has 151 277 313 parameters; one of them is the temperature.
    assert sum(counts) == 151_277_312
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        published = CLIPModel(CLIPConfig()).state_dict()  # its defaults are ViT-B/32's too
    config, kept = convert(published)
    assert config == ClipConfig()
    ours = vision.state_dict() | text.state_dict()
    assert {name: t.shape for name, t in kept.items()} == {n: t.shape for n, t in ours.items()}


def test_a_stream_of_another_width_is_refused(tmp_path, weights):
    folder = tmp_path / "clip_b32"
    folder.mkdir()
    values = json.loads((weights.folder / "config.json").read_text()) | {"projection": 256}
    (folder / "config.json").write_text(json.dumps(values))
    other = WeightSet("clip_b32", tmp_path)
    other.write_lock([])
    with pytest.raises(Exception, match=r"config\.json: projection = 256.*512"):
        ClipVideoEncoder(other).fingerprint()
