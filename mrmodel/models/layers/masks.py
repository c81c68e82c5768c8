"""Attention masks from padding masks."""

from __future__ import annotations

import torch
from torch import Tensor


def key_mask(mask: Tensor) -> Tensor | None:
    """(B, T) valid keys -> (B, 1, 1, T) for `attend`; None when nothing is padded.

    The shortcut is taken on CPU only: elsewhere looking at the mask would wait for the device.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    return mask[:, None, None, :]


def cross_mask(readers: Tensor, keys: Tensor, heads: int, legacy_samples: int) -> Tensor | None:
    """Which keys of another sequence may be read.

    Args:
        readers: (B, S) bool.
        keys: (B, T) bool.
        heads: attention heads.
        legacy_samples: size of the published batches, of which there may be several one after the
            other, for `legacy_tiled_mask`; 0 = hide padding only.

    Returns:
        As `key_mask`, or (B, heads, S, T).
    """
    if not legacy_samples:
        return key_mask(keys)
    batches = zip(
        torch.split(readers, legacy_samples), torch.split(keys, legacy_samples), strict=True
    )
    return torch.cat([legacy_tiled_mask(reader, key, heads) for reader, key in batches])


def legacy_tiled_mask(readers: Tensor, keys: Tensor, heads: int) -> Tensor:
    """The published cross-modal mask, in which a sample is hidden tokens by its batch mates.

    The extra mask (reader and key both padding) is laid out head by head, yet read sample by
    sample: row ``b * heads + h`` gets the mask of sample ``(b * heads + h) mod B`` (baselines.md,
    section 4.3). For parity with published numbers only.

    Args:
        readers: (B, S) bool.
        keys: (B, T) bool.
        heads: attention heads.

    Returns:
        (B, heads, S, T) bool, True = may be read.
    """
    hidden = ~readers[:, :, None] & ~keys[:, None, :]
    misread = hidden.repeat(heads, 1, 1).view(len(hidden), heads, *hidden.shape[1:])
    return keys[:, None, None, :] & ~misread
