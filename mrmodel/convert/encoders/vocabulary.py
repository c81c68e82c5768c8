"""Tokenizers from published vocabulary files.

A ``tokenizer.json`` is used unchanged.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from mrmodel.errors import CheckpointError, DataError
from mrmodel.files import decode_text, read_text

# 49408 entries: 256 bytes, the same at the end of a word, the merges, and two special tokens.
_MAX_MERGES = 49408 - 2 * 256 - 2
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(path: Path) -> Tokenizer:
    """CLIP's byte-pair encoding: lower case, start and end token around each text.

    Args:
        path: ``bpe_simple_vocab_16e6.txt.gz`` of OpenAI, or a ``tokenizer.json``.

    Raises:
        CheckpointError: the file is neither of them.
    """
    if path.suffix == ".json":
        return _from_json(path)
    merges = _read_merges(path)
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(pair) for pair in merges] + [_START, _END]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    marks = [(mark, numbers[mark]) for mark in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=marks
    )
    return tokenizer


def bert_tokenizer(path: Path) -> Tokenizer:
    """BERT's WordPiece: lower case without accents, [CLS] and [SEP] around each text.

    Args:
        path: ``vocab.txt`` of an uncased BERT, or a ``tokenizer.json``.

    Raises:
        CheckpointError: the file is neither of them, or lacks a special token.
    """
    if path.suffix == ".json":
        return _from_json(path)
    try:
        # Not `splitlines`: other separators of Unicode may be words.
        words = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, DataError) as error:
        raise CheckpointError(f"{path}: cannot be read as a list of words: {error}") from None
    numbers = {word: number for number, word in enumerate(words)}
    for mark in ("[UNK]", "[CLS]", "[SEP]"):
        if mark not in numbers:
            raise CheckpointError(f"{path}: lacks {mark}: no vocabulary of BERT")
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=marks
    )
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: no tokenizer: {error}") from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a merge file, whose first line is a comment."""
    try:
        content = path.read_bytes()
        text = decode_text(gzip.decompress(content) if path.suffix == ".gz" else content, path)
    except (OSError, EOFError, zlib.error, DataError) as error:
        raise CheckpointError(f"{path}: cannot be read as a list of merges: {error}") from None
    merges = []
    for number, line in enumerate(text.split("\n")[1 : _MAX_MERGES + 1], start=2):
        pair = line.split()
        if line and len(pair) != 2:
            raise CheckpointError(f"{path}:{number}: {line!r} is no pair of letters to merge")
        if line:
            merges.append((pair[0], pair[1]))
    if not merges:
        raise CheckpointError(f"{path}: holds no pair of letters to merge")
    return merges


def _byte_letters() -> list[str]:
    """A printable character for each byte, in the order of the vocabulary.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others are mapped
    to the characters from 256 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sum(1 for byte in range(256) if byte not in visible)
    return [chr(code) for code in (*visible, *range(256, 256 + hidden))]
