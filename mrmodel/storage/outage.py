"""Which errors of an S3 server are retried, and what its error codes mean."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_LOST = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    FlexibleChecksumError,
    RetriesExceededError,
)
# AWS asks to retry these; the third means that another write of the key is in progress.
_AGAIN = {"SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted"}
_MEANING = {
    "SignatureDoesNotMatch": "the secret key is wrong",
    "InvalidAccessKeyId": "the access key is unknown",
    "AccessDenied": "these credentials may not do that",
    "NoSuchBucket": "there is no such bucket",
    "ExpiredToken": "the session token has expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "403": "the credentials are wrong, or may not do that",
    "404": "there is no such bucket",
}


def code_of(error: ClientError) -> str:
    """The server's error code, such as ``NoSuchKey``; for HEAD only the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def ride_out(what: str, call: Callable[[], _T], patience_s: float) -> _T:
    """Retry with backoff until the server responds; the last attempt starts within `patience_s`.

    Args:
        what: description of the call, for the log.
        call: must be idempotent.
        patience_s: seconds; 0 means a single attempt.
    """
    end = time.monotonic() + patience_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except (BotoCoreError, ClientError, Boto3Error) as error:
            left = end - time.monotonic()
            if not _transient(error) or left <= 0:
                raise
            _logger.warning("%s: %s; trying for %.0f s more", what, sentence_of(error), left)
        # Jitter, so that the clients of a restarted server do not retry at the same time.
        time.sleep(min(left, pause * random.uniform(0.5, 1)))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def sentence_of(error: Exception) -> str:
    """Describe an error without the server's message, which may quote the request."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "no status")
        code = code_of(error)
        meaning = f": {_MEANING[code]}" if code in _MEANING else ""
        return f"the server refuses with {code or 'no code'} ({status}){meaning}"
    if isinstance(error, NoCredentialsError):
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    if isinstance(error, PartialCredentialsError):
        return "half of the credentials is missing: an access key needs its secret key"
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return sentence_of(error.__context__)
    if isinstance(error, _LOST):
        return f"the server cannot be reached, or broke off ({type(error).__name__})"
    return type(error).__name__


def _transient(error: Exception) -> bool:
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return _transient(error.__context__)
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status == 429 or code_of(error) in _AGAIN
    return isinstance(error, _LOST)
