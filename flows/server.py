"""The Prefect server is asked for an answer before a command needs it."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from mrmodel.addresses import shown
from mrmodel.errors import ConfigError

_PATIENCE_S = 10.0


def require_server() -> None:
    """Check the server of PREFECT_API_URL; without one, Prefect starts a temporary server.

    Raises:
        ConfigError: it is no address, does not answer, or refuses the password.
    """
    address = get_current_settings().api.url
    if not address:
        return
    rule = _fault(address)
    if rule:
        raise ConfigError("PREFECT_API_URL", shown(address), rule)


def _fault(address: str) -> str:
    try:
        parts = urlsplit(address)
        # `port` raises ValueError for one that is no number.
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return "is no address, such as http://host:4200/api"
    except ValueError as error:
        return str(error)
    # Prefect's own patience is two minutes and more.
    quick = {PREFECT_CLIENT_MAX_RETRIES: 1}
    with (
        temporary_settings(quick),
        get_client(httpx_settings={"timeout": _PATIENCE_S}, sync_client=True) as client,
    ):
        found = client.api_healthcheck()  # It asks for no password.
        if found is None:
            try:
                client.api_version()
            except PrefectHTTPStatusError as error:
                if error.response.status_code != HTTPStatus.UNAUTHORIZED:
                    raise
                return "asks for a password, which is not the one in PREFECT_API_AUTH_STRING"
            return ""
    return f"does not answer: {' '.join(str(found).split()) or type(found).__name__}"
