"""What the how-to says of the features behind published checkpoints."""

import torch
from torch import nn

from mrmodel.features.prepare import prepare_text


def test_the_layer_norm_undoes_the_normalisation_of_tokens() -> None:
    """Rows of TVSum's tokens are read as they are by the published code; here they have norm 1."""
    rows = torch.randn(2, 7, 512, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.linspace(0.2, 2.0, 7)[:, None]
    prepared = prepare_text([rows], torch.ones(2, 7, dtype=torch.bool))
    norm = nn.LayerNorm(512)
    published, ours = norm(rows), norm(prepared)
    assert not torch.allclose(rows, prepared, rtol=0.5)
    torch.testing.assert_close(ours, published, rtol=0.01, atol=1e-4)
