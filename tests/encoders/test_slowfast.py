"""SlowFast against recorded outputs of PySlowFast, and a naive network over the published names."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mrmodel.convert.encoders.convert import Conversion, convert, lock_again, read_tensors
from mrmodel.convert.encoders.slowfast import convert as convert_names
from mrmodel.encoders.networks.slowfast import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.encoders.slowfast import SlowFastVideoEncoder
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.errors import CheckpointError
from mrmodel.files import derive_seed

from .tiny_sets import SLOWFAST, make_slowfast, random_state

GOLDEN = Path(__file__).parents[1] / "golden/encoders/slowfast.npz"
SLOW_FRAMES = [0, 4, 8, 13, 17, 22, 26, 31]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slowfast")
    make_slowfast(folder / "weights", folder)
    return folder


@pytest.fixture(scope="module")
def state():
    return random_state(SlowFast(SLOWFAST))


def layer(state, name, x, stride=(1, 1, 1), norm=None):
    weight = state[f"{name}.weight"].double()
    x = F.conv3d(x, weight, None, stride, [side // 2 for side in weight.shape[2:]])
    norm = norm or f"{name}_bn"
    mean, variance, scale, shift = (
        state[f"{norm}.{part}"].double()[:, None, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def naive_slowfast(state, frames, fused=True, slow=SLOW_FRAMES):
    """The network, written from its description, in double precision."""
    paths = [frames[:, :, slow].double(), frames.double()]
    for path in (0, 1):
        stem = f"s1.pathway{path}_stem"
        x = layer(state, f"{stem}.conv", paths[path], (1, 2, 2), f"{stem}.bn").relu()
        paths[path] = F.max_pool3d(x, [1, 3, 3], [1, 2, 2], [0, 1, 1])
    for stage in (2, 3, 4, 5):
        fuse = f"s{stage - 1}_fuse"
        folded = layer(state, f"{fuse}.conv_f2s", paths[1], (4, 1, 1), f"{fuse}.bn").relu()
        paths[0] = torch.cat((paths[0], folded if fused else folded * 0), 1)
        for path in (0, 1):
            block = 0
            while f"s{stage}.pathway{path}_res{block}.branch2.a.weight" in state:
                name = f"s{stage}.pathway{path}_res{block}"
                stride = (1, 2, 2) if stage > 2 and block == 0 else (1, 1, 1)
                x = paths[path]
                y = layer(state, f"{name}.branch2.a", x).relu()
                y = layer(state, f"{name}.branch2.b", y, stride).relu()
                y = layer(state, f"{name}.branch2.c", y)
                if f"{name}.branch1.weight" in state:
                    x = layer(state, f"{name}.branch1", x, stride)
                paths[path] = (x + y).relu()
                block += 1
    return torch.cat([x.flatten(2).mean(2) for x in paths], 1)


def test_rows_equal_the_official_ones():
    config = SlowFastConfig(
        stem=16,
        stages=tuple(
            SlowFastStage(blocks=blocks, inner=inner, out=4 * inner)
            for blocks, inner in ((3, 16), (4, 32), (6, 64), (3, 128))
        ),
    )
    network = SlowFast(config).eval()
    network.load_state_dict(random_state(network, seed=12))
    rng = np.random.default_rng(derive_seed("clips", 32))
    frames = torch.from_numpy(rng.standard_normal((2, 3, 32, 64, 64), np.float32))
    with np.load(GOLDEN) as file, torch.inference_mode():
        np.testing.assert_allclose(network(frames).numpy(), file["rows"], rtol=0, atol=1e-5)


def clips(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 32, 3), dtype=np.uint8)


def pixels(frames):
    return torch.from_numpy((frames / 255.0 - 0.45) / 0.225).permute(0, 4, 1, 2, 3)


def test_rows_equal_the_naive_network(made, state):
    frames = clips()
    rows = SlowFastVideoEncoder(WeightSet("slowfast", made / "weights")).encode_clips(frames)
    expected = naive_slowfast(state, pixels(frames)).numpy()
    assert rows.min() >= 0
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mutation", [{"fused": False}, {"slow": list(range(0, 32, 4))}])
def test_another_network_gives_other_rows(made, state, mutation):
    frames = clips(1)
    rows = SlowFastVideoEncoder(WeightSet("slowfast", made / "weights")).encode_clips(frames)
    other = naive_slowfast(state, pixels(frames), **mutation).numpy()
    assert np.abs(rows - other).max() > 1e-3


def caffe2_name(name):
    """PySlowFast's name of a tensor as Caffe2 calls it."""
    endings = {"bn.weight": "bn_s", "bn.bias": "bn_b"}
    endings |= {"bn.running_mean": "bn_rm", "bn.running_var": "bn_riv", "weight": "w"}
    ending = next(end for end in endings if name.endswith(end))
    stem, end = name.removesuffix(ending), endings[ending]
    if found := re.match(r"s1\.pathway(\d)_stem", stem):
        fast = "t_" if found[1] == "1" else ""
        return f"{fast}{'res_' if end != 'w' else ''}conv1_{end}"
    if found := re.match(r"s(\d)_fuse", stem):
        if found[1] == "1":
            return f"t_pool1_subsample_{end}"
        last = SLOWFAST.stages[int(found[1]) - 2].blocks - 1
        return f"t_res{found[1]}_{last}_branch2c_bn_subsample_{end}"
    found = re.match(r"s(\d)\.pathway(\d)_res(\d+)\.(branch1|branch2\.[abc])", stem)
    fast = "t_" if found[2] == "1" else ""
    return f"{fast}res{found[1]}_{found[3]}_{found[4].replace('.', '')}_{end}"


def test_a_caffe2_pickle_is_converted(state, made, tmp_path):
    blobs = {caffe2_name(name): tensor.numpy() for name, tensor in state.items()}
    assert len(blobs) == len(state)
    assert {"conv1_w", "t_res_conv1_bn_riv", "t_res3_1_branch2c_bn_subsample_bn_s"} <= blobs.keys()
    extra = {"conv1_w_momentum": np.zeros(3), "lr": np.float32(1), "pred_w": np.zeros((2, 3))}
    extra |= {"model_iter": np.int64(7), "res2_0_branch2a_bn_s_momentum": np.zeros(1)}
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs | extra, "cfg": "a text"}, protocol=2))
    options = {"image_size": 32}
    convert(Conversion("slowfast", path, options=options, root=tmp_path / "weights"))
    for file in ("config.json", "model.safetensors"):
        ours = tmp_path / "weights/slowfast" / file
        assert ours.read_bytes() == (made / "weights/slowfast" / file).read_bytes()


class Payload:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_code_is_refused(tmp_path, protocol, capsys):
    path = tmp_path / "a.pkl"
    for content in ({"blobs": {"conv1_w": Payload()}}, {"blobs": [1]}, {"other": 1}, 7):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"a\.pkl"):
            convert(Conversion("slowfast", path, root=tmp_path))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(Conversion("slowfast", path, root=tmp_path))
    assert capsys.readouterr().out == ""


def published_shapes():
    """Names and shapes of R50 8x8, from the paper's table and PySlowFast's naming."""
    shapes = {}

    def convolution(name, norm, *shape):
        shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (shape[0],)

    convolution("s1.pathway0_stem.conv", "s1.pathway0_stem.bn", 64, 3, 1, 7, 7)
    convolution("s1.pathway1_stem.conv", "s1.pathway1_stem.bn", 8, 3, 5, 7, 7)
    for number, fast in enumerate((8, 32, 64, 128), start=1):
        convolution(f"s{number}_fuse.conv_f2s", f"s{number}_fuse.bn", 2 * fast, fast, 7, 1, 1)
    slow_in, fast_in = (80, 320, 640, 1280), (8, 32, 64, 128)
    for index, (blocks, inner, kernel) in enumerate(
        ((3, 64, 1), (4, 128, 1), (6, 256, 3), (3, 512, 3))
    ):
        for path, channels, width, frames in (
            (0, slow_in[index], inner, kernel),
            (1, fast_in[index], inner // 8, 3),
        ):
            for block in range(blocks):
                name = f"s{index + 2}.pathway{path}_res{block}"
                before = 4 * width if block else channels
                if block == 0:
                    convolution(f"{name}.branch1", f"{name}.branch1_bn", 4 * width, before, 1, 1, 1)
                a, b, c = (f"{name}.branch2.{letter}" for letter in "abc")
                convolution(a, f"{a}_bn", width, before, frames, 1, 1)
                convolution(b, f"{b}_bn", width, width, 1, 3, 3)
                convolution(c, f"{c}_bn", 4 * width, width, 1, 1, 1)
    return shapes


def test_the_published_network_has_the_published_names():
    with torch.device("meta"):
        network = SlowFast(SlowFastConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == published_shapes()
    assert len(shapes) == 550
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(33.6e6, rel=2e-3)
    config, tensors = convert_names({**network.state_dict(), "head.projection.weight": None})
    assert config == SlowFastConfig()
    assert tensors.keys() == shapes.keys()


def test_compat_decides_the_frames(made, tmp_path):
    folder = tmp_path / "slowfast"
    make_slowfast(tmp_path, tmp_path)
    encoder = SlowFastVideoEncoder(WeightSet("slowfast", tmp_path))
    assert (encoder.sampling.rule, encoder.sampling.fit) == ("hero", "crop")
    values = json.loads((folder / "config.json").read_text()) | {"compat": "fixed"}
    (folder / "config.json").write_text(json.dumps(values))
    lock_again("slowfast", tmp_path)
    fixed = SlowFastVideoEncoder(WeightSet("slowfast", tmp_path))
    assert fixed.sampling.rule == "middle"
    assert fixed.fingerprint() != encoder.fingerprint()


def test_pyslowfast_files_are_unwrapped(made):
    assert read_tensors(made / "slowfast.pyth").keys() == random_state(SlowFast(SLOWFAST)).keys()
