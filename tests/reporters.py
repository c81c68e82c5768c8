"""Reporters for tests."""

from __future__ import annotations


class RecordingReporter:
    """A `mrmodel.progress.Reporter` that keeps what it is sent."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, dict[str, object]]] = []

    def start(self, name: str, total: int, done: int = 0) -> None:
        self.events.append((name, total, {"done": done} if done else {}))

    def advance(self, steps: int = 1, **info: object) -> None:
        self.events.append(("advance", steps, info))

    def finish(self) -> None:
        self.events.append(("finish", 0, {}))
