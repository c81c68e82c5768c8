import pytest
import torch

from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.networks.efficientnet_lite import (
    EfficientNetLite0,
    SameConv2d,
    load_efficientnet_lite0,
    normalise,
)


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1)])
def test_same_padding_pads_the_end_more_than_the_start(side, kernel, stride):
    convolution = SameConv2d(1, 1, kernel, stride, bias=False).requires_grad_(False)
    image = torch.rand(1, 1, side, side)
    output = convolution(image)
    assert output.shape[-1] == -(-side // stride)
    # By hand: pad generously, then take windows from where the padding rule starts them.
    total = max((output.shape[-1] - 1) * stride + kernel - side, 0)
    padded = torch.nn.functional.pad(image, (total // 2, kernel, total // 2, kernel))
    expected = [
        [
            (padded[0, 0, i : i + kernel, j : j + kernel] * convolution.weight[0, 0]).sum()
            for j in range(0, output.shape[-1] * stride, stride)
        ]
        for i in range(0, output.shape[-1] * stride, stride)
    ]
    torch.testing.assert_close(output[0, 0], torch.tensor(expected))


def test_size_of_the_network():
    model = EfficientNetLite0()
    # 4.65 million parameters as published, without the two vectors of each folded normalisation.
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(
        4.63e6, rel=0.01
    )
    assert len(model.blocks) == 16


def test_normalise_scales_as_in_training():
    frames = torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    images = normalise(frames)
    assert images.shape == (1, 3, 2, 2)
    assert images[0, :, 0, 0].tolist() == pytest.approx([-127 / 128, 0.0, 1.0])


def test_folded_network_equals_the_unfolded_checkpoint():
    """Stem and first block computed from the published tensors, normalisation and all."""
    lock = WeightsLock()
    model = load_efficientnet_lite0(lock)
    tensors = torch.load(lock.path("efficientnet_lite0.weights"), weights_only=True)

    def normed(values, name):
        return torch.nn.functional.batch_norm(
            values,
            tensors[f"{name}.running_mean"],
            tensors[f"{name}.running_var"],
            tensors[f"{name}.weight"],
            tensors[f"{name}.bias"],
            eps=1e-3,
        )

    def convolved(values, name, **options):
        return torch.nn.functional.conv2d(values, tensors[f"{name}.weight"], **options)

    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (0, 1, 0, 1))
    states = normed(convolved(padded, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    block = "_blocks.0."
    states = convolved(states, f"{block}_depthwise_conv", padding=1, groups=32)
    states = normed(states, f"{block}_bn1").clamp(0, 6)
    expected = normed(convolved(states, f"{block}_project_conv"), f"{block}_bn2")
    with torch.inference_mode():
        actual = model.blocks[0](torch.nn.functional.relu6(model.stem(image)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
