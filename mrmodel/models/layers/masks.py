"""Attention masks from padding masks."""

from __future__ import annotations

from torch import Tensor


def key_mask(mask: Tensor) -> Tensor | None:
    """(B, T) valid keys -> (B, 1, 1, T) for `attend`; None when nothing is padded.

    The shortcut is taken on CPU only: elsewhere looking at the mask would wait for the device.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    return mask[:, None, None, :]


def legacy_tiled_mask(video_mask: Tensor, text_mask: Tensor, heads: int) -> Tensor:
    """The published text-to-video mask, in which a sample is hidden tokens by its batch mates.

    The extra mask (clip and token both padding) is laid out head by head, yet read sample by
    sample: row ``b * heads + h`` gets the mask of sample ``(b * heads + h) mod B`` (baselines.md,
    section 4.3). For parity with published numbers only.

    Args:
        video_mask: (B, L) bool.
        text_mask: (B, N) bool.
        heads: attention heads.

    Returns:
        (B, heads, L, N) bool, True = may be read.
    """
    hidden = ~video_mask[:, :, None] & ~text_mask[:, None, :]
    misread = hidden.repeat(heads, 1, 1).view(len(hidden), heads, *hidden.shape[1:])
    return text_mask[:, None, None, :] & ~misread
