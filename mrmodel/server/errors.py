"""Errors as clients see them: a status, a stable code and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.exceptions import HTTPException

from mrmodel.errors import (
    DataError,
    LibraryError,
    MrModelError,
    StorageError,
    UnknownNameError,
    VideoError,
    is_of_the_machine,
)

# Statuses of codes of a VideoError; others are 422.
_OF_VIDEOS = {
    "not_found": 404,
    "unknown_container": 415,
    "invalid_data": 415,
    "no_video_stream": 415,
    "no_decoder": 415,
    "too_long": 413,
    "too_many_pixels": 413,
}


class ApiError(HTTPException):
    """An answer other than what was asked for.

    Args:
        status: of HTTP.
        code: for programs; never changed once published.
        message: for people.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.message = code, message


class BusyError(ApiError):
    """There is more to do than fits the queue.

    Args:
        retry_after_s: when to try again.
    """

    def __init__(self, retry_after_s: int) -> None:
        message = f"too many requests at a time; try again in {retry_after_s} s"
        super().__init__(429, "busy", message, {"Retry-After": str(retry_after_s)})


def api_error(error: Exception) -> ApiError | None:
    """The answer to an error that a client or the machine caused; None: it is a defect.

    No path of this machine is in it.
    """
    match error:
        case ApiError():
            return error
        case VideoError():
            who = f"{Path(error.path).name}: " if error.path else ""
            return ApiError(_OF_VIDEOS.get(error.code, 422), error.code, f"{who}{error.detail}")
        case DataError():
            return ApiError(422, "invalid", error.rule)
        case UnknownNameError():
            return ApiError(422, "unknown_name", str(error))
        case LibraryError():
            # After the folder: what holds, and what to do.
            return ApiError(409, "library", str(error).partition(": ")[2] or str(error))
        case StorageError():
            return ApiError(503, "storage", error.rule)
        case MrModelError():
            return ApiError(422, "refused", str(error))
        case OSError() if is_of_the_machine(error):
            return ApiError(507, "machine", "the server cannot write: its disk is full or broken")
        case MemoryError():
            return ApiError(507, "machine", "the server has not enough memory for this")
    return None
