"""Secrets of the environment, kept out of logs, messages and records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY")
# A shorter value would blot out ordinary words of a log.
_SHORTEST_SECRET = 6


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Values of the environment that no log may show, the longest first."""
    values = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    for value in environ.values():
        try:
            password = urlsplit(value).password if "://" in value else None
        except ValueError:
            continue
        if password:
            values.add(password)
    return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


def hide_secrets(text: str, secrets: list[str]) -> str:
    """`text` with every secret replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def hide_user(url: str) -> str:
    """A URL without its user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)
