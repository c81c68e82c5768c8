import pytest
import torch
from torch import nn

from mrmodel.encoders.torch_base import embed_patches
from tests.rounding import rounding


@pytest.mark.parametrize("size", [(32, 48), (33, 55)], ids=["whole patches", "a rest"])
@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_embedded_as_by_a_convolution(size, bias):
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, *size)
    flat, deep = nn.Conv2d(3, 5, 16, 16, bias=bias), nn.Conv3d(3, 5, (1, 16, 16), (1, 16, 16))
    expected = flat(pictures).flatten(2).transpose(1, 2)
    # A convolution and a product add up the 768 pixels of a patch in orders of their own. A pixel
    # out of its place would move a sum by 0.01 or more.
    close = {"rtol": 0, "atol": rounding(3 * 16 * 16, float(expected.detach().abs().max()))}
    got = embed_patches(pictures, flat.weight, flat.bias)
    torch.testing.assert_close(got, expected, **close)
    frames = deep(pictures[:, :, None]).flatten(2).transpose(1, 2)
    got = embed_patches(pictures, deep.weight, deep.bias)
    torch.testing.assert_close(got, frames, **close)
