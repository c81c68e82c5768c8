"""Runs the server until it is told to stop."""

from __future__ import annotations

import logging

import uvicorn

from mrmodel.server.app import build_app
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings

# Seconds that requests have to end once the server is told to stop.
_STOP_S = 30
# Seconds that a connection may be idle; longer than clients are told to wait before they try again.
_IDLE_S = 75
# Connections that wait for the server to take them.
_BACKLOG = 256


def run(settings: ServerSettings, host: str, port: int) -> None:
    """Serve at an address until SIGTERM or SIGINT; requests that run are answered first.

    Args:
        settings: of the server.
        host: name or address to listen at.
        port: 0 takes a free one, which the log names.
    """
    logging.getLogger("mrmodel.server").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    config = uvicorn.Config(
        build_app(Server(settings)),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_STOP_S,
    )
    uvicorn.Server(config).run()
