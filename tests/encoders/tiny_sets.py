"""Weight sets of tiny random networks, converted by the command's own code from published names.

Widths of rows are the real ones, because a stream's name says them; the rest is as small as it can
be.
"""

import gzip
from pathlib import Path

import torch
from safetensors.torch import save_file

from mrmodel.encoders.clip_tower import ClipConfig, ClipText, ClipTransformerSizes, ClipVision
from mrmodel.encoders.slowfast_tower import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.official.towers.convert import Conversion, convert

MERGES = [("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>")]
CLIP = ClipConfig(
    vision=ClipTransformerSizes(width=64, layers=2, heads=1, mlp=96),
    image_size=32,
    patch=8,
    text=ClipTransformerSizes(width=512, layers=1, heads=8, mlp=64),
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


def random_state(*networks, seed=0):
    """A seeded state in which every part matters: norms near one, matrices that keep the scale."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for network in networks:
        for name, tensor in network.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
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


MAKERS = {"clip_b32": make_clip, "slowfast": make_slowfast}


def make_all(folder: Path) -> Path:
    """The weights folder, with every set in it."""
    root, source = folder / "weights", folder / "published"
    source.mkdir()
    for make in MAKERS.values():
        make(root, source)
    return root
