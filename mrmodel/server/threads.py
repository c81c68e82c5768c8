"""Worker threads with a queue of limited length."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mrmodel.server.errors import ApiError, BusyError

T = TypeVar("T")
# Weight of the last call in the mean seconds of a call.
_NEW = 0.1


class Threads:
    """Runs calls in `count` threads; `queue` more may wait, others are refused.

    Used from the thread of the event loop alone.

    Args:
        name: of the threads.
        count, queue: see above.
        prepare: called in each thread when it starts.

    Attributes:
        pending: calls that run or wait.
    """

    def __init__(
        self, name: str, count: int, queue: int, prepare: Callable[[], object] | None = None
    ) -> None:
        self._pool = ThreadPoolExecutor(count, name, prepare)
        self._count, self._most = count, count + queue
        self._mean_s = 0.1
        self.pending = 0

    async def run(self, call: Callable[[], T], timeout_s: float) -> T:
        """The result of `call`; it may go on in its thread after a timeout.

        Raises:
            BusyError: too many wait already.
            ApiError: not done in time.
        """
        if self.pending >= self._most:
            raise BusyError(max(1, math.ceil(self.pending * self._mean_s / self._count)))
        self.pending += 1

        def timed() -> tuple[T, float]:
            began = time.perf_counter()
            return call(), time.perf_counter() - began

        future = asyncio.get_running_loop().run_in_executor(self._pool, timed)
        future.add_done_callback(self._left)
        try:
            result, seconds = await asyncio.wait_for(asyncio.shield(future), timeout_s)
        except TimeoutError:
            future.cancel()
            message = f"not done within {timeout_s:g} s"
            raise ApiError(503, "timed_out", message, {"Retry-After": "5"}) from None
        self._mean_s += _NEW * (seconds - self._mean_s)
        return result

    def close(self) -> None:
        """Wait for the calls that run; those that wait are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _left(self, future: asyncio.Future[tuple[T, float]]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # It has been looked at, also where nobody waits any more.
