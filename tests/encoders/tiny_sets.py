"""Weight sets of tiny random networks, converted by the command's own code from published names.

Widths of rows are the real ones, because a stream's name says them; the rest is as small as it can
be.
"""

import gzip
import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mrmodel.convert.encoders.convert import Conversion, convert
from mrmodel.encoders.blip2 import (
    Blip2SetConfig,
    Blip2Text,
    Blip2Vision,
    Blip2VisionSizes,
    QFormerSizes,
)
from mrmodel.encoders.internvideo2 import InternVideo2Config, ProjectedText, ProjectedVision
from mrmodel.encoders.networks.bert import BertSizes
from mrmodel.encoders.networks.clip import ClipConfig, ClipText, ClipVision
from mrmodel.encoders.networks.internvideo2 import VisionSizes
from mrmodel.encoders.networks.slowfast import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.encoders.user_weights import TransformerSizes
from mrmodel.files import derive_seed

MERGES = [("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>")]
CLIP = ClipConfig(
    vision=TransformerSizes(width=64, layers=2, heads=1, mlp=96),
    image_size=32,
    patch=8,
    text=TransformerSizes(width=512, layers=1, heads=8, mlp=64),
    vocabulary=2 * 256 + len(MERGES) + 2,
    positions=24,
    projection=512,
)

SLOWFAST = SlowFastConfig(
    stem=16,
    stages=(
        SlowFastStage(blocks=1, inner=8, out=16),
        SlowFastStage(blocks=2, inner=8, out=24),
        SlowFastStage(blocks=1, inner=8, out=32),
        SlowFastStage(blocks=1, inner=16, out=2048),
    ),
    image_size=32,
)
# Names as the official checkpoint has them; 16 heads is what 1B has everywhere.
INTERNVIDEO2 = InternVideo2Config(
    vision=VisionSizes(
        width=64, layers=2, mlp=96, pooled=32, patch=14, grid=4, heads=16, pool_heads=16
    ),
    text=BertSizes(width=64, layers=1, heads=16, mlp=48, vocabulary=69, positions=48),
    image_size=56,
)
BLIP2 = Blip2SetConfig(
    vision=Blip2VisionSizes(width=64, layers=2, heads=16, mlp=96, patch=14),
    qformer=QFormerSizes(width=768, layers=3, heads=12, mlp=32, vocabulary=69, positions=48),
    queries=4,
    image_size=28,
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
WORDS += [f"##{letter}" for letter in string.ascii_lowercase]
WORDS += ["the", "red", "dog", "runs", "!", ".", ",", "'", "1", "2", "apple", "falls"]


def random_state(*networks, seed=0):
    """A state in which every part matters: norms near one, matrices that keep the scale.

    A tensor follows from its name and shape, so networks with the same names have the same tensors.
    """
    state = {}
    for network in networks:
        for name, tensor in network.state_dict().items():
            rng = np.random.default_rng(derive_seed("state", seed, name))
            noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), np.float32))
            if name.endswith("running_var"):
                state[name] = 1 + 0.1 * noise.abs()
            elif tensor.ndim > 1:
                state[name] = noise / max(1, tensor[0].numel()) ** 0.5
            else:
                state[name] = 0.2 * noise + (name.endswith(("weight", "gamma")) * 1.0)
    return state


def write_merges(path: Path) -> Path:
    lines = ["a comment", *(" ".join(pair) for pair in MERGES), ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return path


def make_clip(root: Path, source: Path, **changes):
    """The set ``clip_b32`` in `root`; published files are written to `source`."""
    weights = source / "clip.safetensors"
    save_file(random_state(ClipVision(CLIP), ClipText(CLIP)), weights)
    vocabulary = write_merges(source / "merges.txt.gz")
    return convert(Conversion("clip_b32", weights, vocabulary, root=root, **changes))


def make_slowfast(root: Path, source: Path, **changes):
    """The set ``slowfast`` in `root`, from a checkpoint as PySlowFast writes it."""
    weights = source / "slowfast.pyth"
    torch.save({"epoch": 1, "model_state": random_state(SlowFast(SLOWFAST))}, weights)
    options = {"image_size": 32} | changes.pop("options", {})
    return convert(Conversion("slowfast", weights, options=options, root=root, **changes))


def write_words(path: Path) -> Path:
    path.write_text("\n".join(WORDS) + "\n")
    return path


def internvideo2_state():
    """The official checkpoint at a tiny size, with what the encoders do not need."""
    state = random_state(ProjectedVision(INTERNVIDEO2), ProjectedText(INTERNVIDEO2))
    layer = "text_encoder.bert.encoder.layer.1"
    for name in ("attention.self.query.weight", "crossattention.self.key.weight"):
        state[f"{layer}.{name}"] = torch.ones(64, 64)
    for name in ("clip_decoder.0.head.weight", "final_clip_decoder.norm.bias", "clip_pos_embed"):
        state[f"vision_encoder.{name}"] = torch.ones(3)
    for name in ("itm_head.weight", "temp", "text_encoder.cls.predictions.bias"):
        state[name] = torch.ones(1)
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(48)[None]
    return state


def make_internvideo2(root: Path, source: Path, **changes):
    """The set ``internvideo2_1b`` in `root`, from a checkpoint as DeepSpeed wraps it."""
    weights = source / "internvideo2.pt"
    torch.save({"module": internvideo2_state(), "step": 3}, weights)
    vocabulary = write_words(source / "vocab.txt")
    return convert(Conversion("internvideo2_1b", weights, vocabulary, root=root, **changes))


def make_blip2(root: Path, source: Path, **changes):
    """The set ``blip2`` in `root`, from two files with an index as Hugging Face writes them."""
    state = random_state(Blip2Vision(BLIP2), Blip2Text(BLIP2))
    state["query_tokens"] = state.pop("queries.tokens")
    state |= {"itm_head.weight": torch.ones(2, 768), "vision_projection.bias": torch.ones(8)}
    names = sorted(state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, source / file)
    places = {name: file for file, held in parts.items() for name in held}
    weights = source / "model.safetensors.index.json"
    weights.write_text(json.dumps({"weight_map": places}))
    vocabulary = write_words(source / "blip2.txt")
    return convert(Conversion("blip2", weights, vocabulary, root=root, **changes))


MAKERS = {
    "clip_b32": make_clip,
    "slowfast": make_slowfast,
    "internvideo2_1b": make_internvideo2,
    "blip2": make_blip2,
}


def make_all(folder: Path) -> Path:
    """The weights folder, with every set in it."""
    root, source = folder / "weights", folder / "published"
    source.mkdir()
    for make in MAKERS.values():
        make(root, source)
    return root
