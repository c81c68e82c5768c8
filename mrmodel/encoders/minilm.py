"""MiniLM-L6: the six-layer BERT sentence encoder (Wang et al. 2020; Reimers and Gurevych 2019).

Post-norm BERT with 384 channels, 12 heads and a 1536-wide GELU layer. A batch holds texts of equal
length: there is no padding, so no mask is needed (`TokenBatches`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mrmodel.encoders.base import TokenCounts, count_tokens
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.torch_base import TokenBatches

WIDTH, HEADS, HIDDEN, DEPTH = 384, 12, 1536, 6
VOCABULARY, POSITIONS = 30522, 512
NORM_EPS = 1e-12
MAX_TOKENS = 256  # longer texts are truncated: the model was trained on no more


class MiniLmLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.expand = nn.Linear(WIDTH, HIDDEN)
        self.contract = nn.Linear(HIDDEN, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, 384) -> (B, N, 384)."""
        batch, length, _ = states.shape
        heads = self.qkv(states).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        mixed = self.attention_out(mixed.reshape(batch, length, WIDTH))
        states = self.attention_norm(states + mixed)
        inner = self.contract(F.gelu(self.expand(states)))
        return self.output_norm(states + inner)  # type: ignore[no-any-return]


class MiniLm(nn.Module):
    """Token ids of texts of equal length -> their contextual vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.layers = nn.ModuleList(MiniLmLayer() for _ in range(DEPTH))

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 -> (B, N, 384); a text's sentence vector is the mean of its N rows."""
        return self.first_layers(token_ids, DEPTH)

    def first_layers(self, token_ids: Tensor, count: int) -> Tensor:
        """As `forward`, but only the first `count` layers."""
        positions = self.positions.weight[: token_ids.shape[1]]
        states = self.norm(self.words(token_ids) + positions)
        for layer in self.layers[:count]:
            states = layer(states)
        return states  # type: ignore[no-any-return]


def load_minilm(lock: WeightsLock) -> tuple[MiniLm, Tokenizer]:
    """The pretrained network, in eval mode, and its tokenizer.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """
    model = MiniLm()
    model.load_state_dict(convert_checkpoint(load_file(lock.path("minilm.weights"))))
    return model.eval().requires_grad_(False), load_tokenizer(lock.path("minilm.tokenizer"))


def load_tokenizer(path: Path) -> Tokenizer:
    """WordPiece, lower-cased, with [CLS] and [SEP]; truncates at MAX_TOKENS and never pads."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def convert_checkpoint(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published BERT names -> ours; q, k and v become one matrix, the pooler is dropped."""
    words = tensors["embeddings.word_embeddings.weight"]
    # Single texts are always segment 0, so its constant vector is folded into the positions.
    positions = tensors["embeddings.position_embeddings.weight"]
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    converted = {"words.weight": words, "positions.weight": positions + segment}
    for kind in ("weight", "bias"):
        converted[f"norm.{kind}"] = tensors[f"embeddings.LayerNorm.{kind}"]
        for index in range(DEPTH):
            source, target = f"encoder.layer.{index}.", f"layers.{index}."
            parts = [
                tensors[f"{source}attention.self.{name}.{kind}"]
                for name in ("query", "key", "value")
            ]
            converted[f"{target}qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in _LAYER_NAMES.items():
                converted[f"{target}{ours}.{kind}"] = tensors[f"{source}{theirs}.{kind}"]
    return converted


_LAYER_NAMES = {
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "output_norm": "output.LayerNorm",
}


class SentenceModel:
    """MiniLM and its tokenizer.

    Args:
        lock: where the weights are.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """

    def __init__(self, lock: WeightsLock) -> None:
        model, self._tokenizer = load_minilm(lock)
        # All layers have the same shapes.
        self._batches = TokenBatches(model, probe=lambda ids: model.first_layers(ids, 1))

    def token_counts(self, text: str) -> TokenCounts:
        """Word pieces of a text, and those that it cannot read."""
        return count_tokens(self._tokenizer, text)

    def token_states(self, texts: Sequence[str]) -> list[Tensor]:
        """One (n_tokens, 384) tensor per text, [CLS] and [SEP] included."""
        return self._batches([self._tokenizer.encode(text).ids for text in texts])

    def sentence_vectors(self, texts: Sequence[str]) -> Tensor:
        """(n, 384) of unit length: the mean of all token states, as MiniLM was trained."""
        return torch.stack([sentence_vector(states) for states in self.token_states(texts)])


def sentence_vector(states: Tensor) -> Tensor:
    """(n_tokens, 384) -> (384,) of unit length."""
    return F.normalize(states.mean(dim=0), dim=-1)
