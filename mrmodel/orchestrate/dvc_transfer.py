"""Data to and from a clone: through the DVC remote, or a shared cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrmodel.errors import OrchestrationError
from mrmodel.orchestrate.checkout import REMOTE
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore

log = logging.getLogger(__name__)

_TRIES = 3
_PAUSE_S = 2.0


class Transfer:
    """Moves data; retries for as long as the store is unreachable.

    Attributes:
        remote: name of the DVC remote in clones; None: there is none, the cache is shared.
    """

    def __init__(self, environment: RuntimeEnvironment, result_store: ResultStore) -> None:
        self._result_store = result_store
        self.remote = REMOTE if environment.remote is not None else None

    def fetch(self, repo: Any, paths: Sequence[str]) -> None:
        """Fetch outputs, or files in them, into a clone.

        Args:
            repo: DVC's repository object of the clone.
            paths: relative to its root.

        Raises:
            OrchestrationError: data are missing.
        """
        targets = [str(Path(repo.root_dir) / path) for path in paths]
        if not targets:
            return
        if self.remote is None:
            self._try(lambda: repo.checkout(targets), "read from the cache")
        else:
            self._try(lambda: repo.pull(targets), "pulled")

    def push(self, repo: Any, stage: str) -> None:
        """Push the outputs of a stage to where other workers find them."""
        if self.remote is not None:
            self._try(lambda: repo.push([stage]), "pushed")

    def _try(self, move: Callable[[], Any], word: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                move()
            except Exception as error:
                # The exception type depends on the kind of store.
                self._result_store.wait()
                if not left:
                    rule = f"data could not be {word}: {error}"
                    raise OrchestrationError(rule) from error
                log.warning("not %s yet: %s", word, error)
                time.sleep(_PAUSE_S)
            else:
                return
