"""Ports of 127.0.0.1: whether they are free, and some that are."""

from __future__ import annotations

import random
import socket

# Below the range from which Linux takes the ports of outgoing connections: one of those could
# take a port between our look and the start of the server.
_LOWEST, _HIGHEST = 12_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen on it now."""
    with socket.socket() as probe:
        # As servers do: a connection that has just ended does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """So many different free ports, drawn at random, so that parallel tests rarely meet."""
    found: list[int] = []
    # Not the seeded generator of the module: processes of one test run would draw equal ports.
    draw = random.SystemRandom()
    while len(found) < count:
        port = draw.randrange(_LOWEST, _HIGHEST)
        if port not in found and is_free(port):
            found.append(port)
    return found
