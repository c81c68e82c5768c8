"""What every request passes: who may ask, how much, and what every answer carries."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrmodel.server.errors import ApiError, api_error
from mrmodel.server.metrics import Metrics

log = logging.getLogger("mrmodel.server")

COOKIE = "mrmodel_session"
# Bytes of a body that is no upload.
_LONGEST_BODY = 1 << 20
# Seconds without a byte of a body.
_PATIENCE_S = 30.0
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Without a token; the page is needed to ask for it.
_OPEN = re.compile(r"/|/static/[^/]+|/healthz|/readyz|/v1/session")
_UPLOADS = "/v1/videos"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "media-src 'self' blob:; connect-src 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def error_response(error: ApiError, request_id: str) -> JSONResponse:
    """The body of an error."""
    body = {"code": error.code, "message": error.message, "request_id": request_id}
    return JSONResponse({"error": body}, error.status_code, error.headers)


def session_of(token: str) -> str:
    """The value of the cookie that stands for a token."""
    return hmac.new(token.encode(), b"mrmodel session", hashlib.sha256).hexdigest()


def is_token(given: str, token: str) -> bool:
    """Whether a text is the token."""
    return hmac.compare_digest(given.encode(), token.encode())


class Gate:
    """Middleware: request ids, access, limits of bodies, headers, log, metrics, errors.

    Args:
        app: what answers.
        token: that clients must send, by a header or as a session; None: clients of this machine
            need none, and must name it in the address, so that no web page can use a name of its
            own for it.
        metrics: of the server.
        upload_bytes: longest upload.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, metrics: Metrics, upload_bytes: int
    ) -> None:
        self._app, self._token, self._metrics = app, token, metrics
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                own.update({"X-Request-Id": request_id, **HEADERS})
            await send(message)

        try:
            self._admit(scope, headers)
            await self._app(scope, self._limited(scope, headers, receive), answer)
        except Exception as error:
            found = api_error(error)
            if found is None:
                log.exception("%s %s (request %s)", scope["method"], scope["path"], request_id)
                found = ApiError(500, "defect", "a defect of the server; its log tells more")
            if status:
                raise  # The answer was begun: only breaking off shows that it is incomplete.
            await error_response(found, request_id)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            log.info(
                "%s %s %s %.3f s request %s",
                scope["method"],
                ascii(scope["path"])[1:-1],
                status,
                seconds,
                request_id,
            )

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raise unless the client may ask."""
        host = headers.get("host", "")
        if self._token is None and not _is_loopback(host):
            message = "this server answers to names of this machine only, such as localhost"
            raise ApiError(421, "wrong_host", message)
        origin = headers.get("origin")
        if (
            scope["method"] not in _SAFE_METHODS
            and origin is not None
            and urlsplit(origin).netloc != host
        ):
            raise ApiError(403, "other_origin", "pages of other servers may change nothing here")
        if self._token is not None and not _OPEN.fullmatch(scope["path"]):
            _require_token(headers, self._token)

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which raises for a body that is too long or does not come."""
        is_upload = scope["path"] == _UPLOADS
        # An upload has a few hundred bytes around the file.
        longest = self._upload_bytes + _LONGEST_BODY if is_upload else _LONGEST_BODY
        too_long = ApiError(413, "too_large", f"a body has at most {longest} bytes here")
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > longest:
            raise too_long
        left, complete = longest, False

        async def limited() -> Message:
            nonlocal left, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), _PATIENCE_S)
            except TimeoutError:
                message_text = f"no byte of the body came within {_PATIENCE_S:g} s"
                raise ApiError(408, "too_slow", message_text) from None
            left -= len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if left < 0:
                raise too_long
            return message

        return limited


def _require_token(headers: Mapping[str, str], token: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(given.strip(), token):
        return
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None and is_token(cookie.value, session_of(token)):
        return
    message = "the server's token is needed: Authorization: Bearer ..."
    raise ApiError(401, "no_token", message, {"WWW-Authenticate": "Bearer"})


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
