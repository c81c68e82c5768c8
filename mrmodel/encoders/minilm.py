"""MiniLM-L6: the six-layer BERT sentence encoder (Wang et al. 2020; Reimers and Gurevych 2019).

Post-norm BERT with 384 channels, 12 heads and a 1536-wide GELU layer. Texts of all lengths share
one matrix of rows, and attention goes through them by length: there is no padding, so no mask is
needed (`_Packs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mrmodel.encoders.base import TokenCounts, count_tokens
from mrmodel.encoders.bundled_weights import WeightsLock

WIDTH, HEADS, HIDDEN, DEPTH = 384, 12, 1536, 6
VOCABULARY, POSITIONS = 30522, 512
NORM_EPS = 1e-12
MAX_TOKENS = 256  # longer texts are truncated: the model was trained on no more
PACK_TOKENS = 192  # of the texts that run together: more are hardly faster


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

    def forward(self, states: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, 384) -> (R, 384): the rows of B texts of N tokens for each of the `shapes` (B, N)."""
        parts = self.qkv(states).split([texts * length for texts, length in shapes])
        mixed = torch.cat([_mix(part, *shape) for part, shape in zip(parts, shapes, strict=True)])
        states = self.attention_norm(states + self.attention_out(mixed))
        inner = self.contract(F.gelu(self.expand(states)))
        return self.output_norm(states + inner)  # type: ignore[no-any-return]


def _mix(projected: Tensor, texts: int, length: int) -> Tensor:
    """Attention within each text: (texts * length, 3 * 384) -> (texts * length, 384)."""
    heads = projected.view(texts, length, 3, HEADS, WIDTH // HEADS)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return mixed.reshape(texts * length, WIDTH)


class MiniLm(nn.Module):
    """Token ids of texts -> their contextual vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.layers = nn.ModuleList(MiniLmLayer() for _ in range(DEPTH))

    def forward(self, token_ids: Sequence[Tensor], layers: int = DEPTH) -> Tensor:
        """Vectors of all texts, one text after the other.

        Args:
            token_ids: (B, N) int64 of B texts of N tokens, for several lengths N.
            layers: only the first ones run.

        Returns:
            (R, 384), R the number of all tokens; a text's sentence vector is the mean of its rows.
        """
        embedded = [self.words(ids) + self.positions.weight[: ids.shape[1]] for ids in token_ids]
        states = self.norm(torch.cat([rows.flatten(0, 1) for rows in embedded]))
        shapes = [(len(ids), ids.shape[1]) for ids in token_ids]
        for layer in self.layers[:layers]:
            states = layer(states, shapes)
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
        self._packs = _Packs(model)

    def token_counts(self, text: str) -> TokenCounts:
        """Word pieces of a text, and those that it cannot read."""
        return count_tokens(self._tokenizer, text)

    def token_states(self, texts: Sequence[str]) -> list[Tensor]:
        """One (n_tokens, 384) tensor per text, [CLS] and [SEP] included."""
        return self._packs([self._tokenizer.encode(text).ids for text in texts])

    def sentence_vectors(self, texts: Sequence[str]) -> Tensor:
        """(n, 384) of unit length: the mean of all token states, as MiniLM was trained."""
        return torch.stack([sentence_vector(states) for states in self.token_states(texts)])


class _Packs:
    """Runs MiniLM on texts, in packs of up to `PACK_TOKENS` tokens.

    A text has the bits that it has in a full pack, alone too. 64 sentences of 7 to 17 tokens take
    3.4 ms of CPU time each, 4.5 in batches of equal length, which are small (AMD EPYC, one thread).
    """

    def __init__(self, model: MiniLm) -> None:
        self._model = model
        self._same: dict[tuple[int, int], bool] = {}

    @torch.inference_mode()
    def __call__(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token ids of each text -> one (n_tokens, 384) tensor per text."""
        states: list[Tensor] = [torch.empty(0)] * len(token_ids)
        for places in _packed([len(ids) for ids in token_ids]):
            pack = [token_ids[place] for place in places]
            lengths = [len(ids) for ids in pack]
            missing = PACK_TOKENS - sum(lengths)
            if missing > 0 and not self._needs_no_filling(pack, missing):
                pack, lengths = [*pack, [0] * missing], [*lengths, missing]
            rows = self._model(_by_length(pack)).split(lengths)
            for place, row in zip(places, rows, strict=False):
                states[place] = row
        return states

    def _needs_no_filling(self, pack: Sequence[Sequence[int]], missing: int) -> bool:
        """Whether the texts alone have the bits that they have beside `missing` more tokens.

        Which kernels run, and so the order of sums, depends on shapes and threads: one comparison
        of the first layer, whose shapes all have, decides for all packs of a size.
        """
        size = (missing, torch.get_num_threads())
        if size not in self._same:
            alone = self._model(_by_length(pack), layers=1)
            filled = self._model(_by_length([*pack, [0] * missing]), layers=1)
            self._same[size] = torch.equal(alone, filled[: len(alone)])
        return self._same[size]


def _packed(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the texts of each pack, shorter texts first; a longer text is a pack alone."""
    pack: list[int] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if pack and tokens + lengths[place] > PACK_TOKENS:
            yield pack
            pack, tokens = [], 0
        pack.append(place)
        tokens += lengths[place]
    if pack:
        yield pack


def _by_length(pack: Sequence[Sequence[int]]) -> list[Tensor]:
    """(B, N) token ids of neighbours of equal length."""
    return [torch.tensor(list(texts)) for _, texts in groupby(pack, len)]


def sentence_vector(states: Tensor) -> Tensor:
    """(n_tokens, 384) -> (384,) of unit length."""
    return F.normalize(states.mean(dim=0), dim=-1)
