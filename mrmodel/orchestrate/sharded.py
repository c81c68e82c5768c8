"""What an extraction in shards is about: data that every worker reads, without the code of shards.

Apart from `shards`, because that imports all of feature extraction, and each stage starts here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.errors import OrchestrationError
from mrmodel.features.keys import shard_of
from mrmodel.files import digest_of


class ShardInterrupted(OrchestrationError):
    """The process of a shard was killed, or the store was away; trying again may help."""


class ShardFailed(OrchestrationError):
    """A shard ended with an error of its own; trying again gives the same."""


@dataclass(frozen=True, slots=True)
class ShardOrder:
    """One shard to make.

    Attributes:
        stream: name of the encoder.
        plan: see `mrmodel.features.work.piece_plan`.
        digest: names the extraction in the store.
        index, count: which shard (from 0) of how many.
        files: names of its videos, in the folder of videos.
        workers: processes; 0: as params.yaml says.
    """

    stream: str
    plan: dict[str, Any]
    digest: str
    index: int
    count: int
    files: tuple[str, ...]
    workers: int = 0

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count} of {self.stream}"


@dataclass(frozen=True, slots=True)
class ShardedStream:
    """A stream that is extracted in shards.

    Attributes:
        stream: name of the encoder.
        plan: what decides its pieces; `plan_of` asks a clone.
        content: path -> hash, as DVC recorded it, of all that the stage depends on: the videos and
            the code. Shards of other content are never taken for these.
        files: names of all videos, in the folder of videos.
        count: shards.
        workers: processes of each shard; 0: as params.yaml says.
    """

    stream: str
    plan: dict[str, Any]
    content: dict[str, str]
    files: tuple[str, ...]
    count: int
    workers: int = 0

    @property
    def digest(self) -> str:
        """Names the extraction in the store: equal for equal inputs, on every machine."""
        return digest_of({"plan": self.plan, "content": self.content})

    def orders(self) -> list[ShardOrder]:
        """All shards."""
        names = {Path(name).stem: name for name in sorted(self.files)}
        return [
            ShardOrder(
                self.stream,
                self.plan,
                self.digest,
                index,
                self.count,
                tuple(names[key] for key in shard_of(names, index, self.count)),
                self.workers,
            )
            for index in range(self.count)
        ]
