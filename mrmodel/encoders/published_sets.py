"""The weight sets that users bring: what they are called, and which published files they need."""

from __future__ import annotations

from dataclasses import dataclass

CONFIG, TENSORS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
LOCK = "weights.lock"


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """What a user has to bring for a set.

    Attributes:
        files: option of ``mrmodel weights convert`` -> the published file, in words.
        licence: of the published weights, as their publishers state it.
    """

    files: dict[str, str]
    licence: str

    def remedy(self, name: str) -> str:
        """What to fetch and what to run."""
        wanted = "; ".join(f"{option}: {file}" for option, file in self.files.items())
        options = " ".join(f"--{option} FILE" for option in self.files)
        return f"run `mrmodel weights convert {name} {options}` on published files ({wanted})"


PUBLISHED = {
    "clip_b32": PublishedSet(
        {
            "weights": "OpenAI's ViT-B-32.pt, or model.safetensors of clip-vit-base-patch32",
            "vocabulary": "bpe_simple_vocab_16e6.txt.gz of the same, or its tokenizer.json",
        },
        "MIT",
    ),
    "slowfast": PublishedSet(
        {"weights": "SLOWFAST_8x8_R50.pkl of PySlowFast's model zoo, Kinetics-400"},
        "Apache-2.0 (code); trained on Kinetics-400, whose videos have terms of their own",
    ),
    "internvideo2_1b": PublishedSet(
        {
            "weights": "InternVideo2-stage2_1b-224p-f4.pt",
            "vocabulary": "vocab.txt of bert-large-uncased",
        },
        "Apache-2.0",
    ),
    "blip2": PublishedSet(
        {
            "weights": "model.safetensors(.index.json) of blip2-itm-vit-g",
            "vocabulary": "vocab.txt or tokenizer.json of the same",
        },
        "MIT",
    ),
}
