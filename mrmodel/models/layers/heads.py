"""Heads that the DETR-style models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.settings import DetrSettings
from mrmodel.spans import inverse_sigmoid
from mrmodel.types import LayerOutput, ModelOutput

FOREGROUND, BACKGROUND = 0, 1  # class indices of the published checkpoints


class ContrastiveHead(nn.Module):
    """Queries and tokens as unit vectors in a joint space (Moment-DETR's alignment loss)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, width)
        self.text = nn.Linear(hidden, width)

    def project_query(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., width), unit vectors."""
        return F.normalize(self.query(states), dim=-1)

    def sum_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, d) -> (B, width): sum of the unit vectors of all tokens, or of those in `mask`."""
        vectors = F.normalize(self.text(tokens), dim=-1)
        if mask is not None:
            vectors = vectors * mask.unsqueeze(-1)
        return vectors.sum(1)


class DecoderHeads(nn.Module):
    """Class, span and optional alignment heads, shared by all decoder layers."""

    def __init__(self, settings: DetrSettings, span_outputs: int = 2) -> None:
        super().__init__()
        hidden = settings.hidden
        self.class_head = nn.Linear(hidden, 2)
        self.span_head = Mlp(hidden, hidden, span_outputs, 3)
        self.contrastive = (
            ContrastiveHead(hidden, settings.contrastive_width) if settings.contrastive else None
        )

    def forward(self, states: Tensor, references: Tensor | None = None) -> list[LayerOutput]:
        """One output for each layer.

        Args:
            states: (layers, B, Q, d).
            references: (layers, B, Q, 2) spans to which the span head predicts offsets; None = it
                predicts the span itself.
        """
        spans = self.span_head(states).float()
        if references is not None:
            spans = spans + inverse_sigmoid(references)
        return self.outputs(states, spans.sigmoid(), {})

    def outputs(
        self, states: Tensor, spans_cxw: Tensor, extras: Mapping[str, Tensor]
    ) -> list[LayerOutput]:
        """Outputs for given spans (layers, B, Q, 2); each of the `extras` is (layers, ...)."""
        extras = dict(extras)
        if self.contrastive is not None:
            extras["contrastive_query"] = self.contrastive.project_query(states)
        logits = self.class_head(states).float()
        tensors = (logits, spans_cxw, *extras.values())
        by_layer = zip(*(tensor.unbind() for tensor in tensors), strict=True)
        return [
            LayerOutput(logit, spans, dict(zip(extras, rows, strict=True)))
            for logit, spans, *rows in by_layer
        ]


def detr_output(
    layers: Sequence[LayerOutput], saliency: Tensor, extras: dict[str, Tensor], keep_aux: bool
) -> ModelOutput:
    """The output of a model that returns its last layer's windows, ranked by class."""
    last = layers[-1]
    return ModelOutput(
        last=last,
        spans_cxw=last.spans_cxw,
        scores=foreground_scores(last),
        saliency=saliency,
        aux=tuple(layers[:-1]) if keep_aux else (),
        extras=extras,
    )


def no_windows(saliency: Tensor) -> tuple[LayerOutput, Tensor, Tensor]:
    """Empty heads, windows and scores of a model without queries, for clip scores (B, L)."""
    scores = saliency.new_zeros(len(saliency), 0)
    spans = scores.unsqueeze(-1).expand(-1, -1, 2)
    return LayerOutput(scores.unsqueeze(-1), spans), spans, scores


def foreground_scores(layer: LayerOutput) -> Tensor:
    """(B, Q) foreground probability of each query."""
    return layer.logits.float().softmax(-1)[..., FOREGROUND]


class SaliencyHead(nn.Module):
    """Scaled dot product of each clip with the saliency token (QD-DETR)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.clip, self.token = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, clips: Tensor, token: Tensor) -> Tensor:
        """Clips (B, L, d), token (B, d) -> (B, L).

        <W c + b, u> is computed as <c, W^T u> + <b, u>: no matrix product over all clips.
        """
        direction = self.token(token) * token.shape[-1] ** -0.5
        offset = direction @ self.clip.bias
        products = clips @ (direction @ self.clip.weight).unsqueeze(-1)
        scores: Tensor = products.squeeze(-1) + offset.unsqueeze(-1)
        return scores
