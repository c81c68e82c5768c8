"""Where the pointers of champions and the outcomes of deliveries are."""

from __future__ import annotations

import os
from pathlib import Path

from mrmodel.errors import ConfigError
from mrmodel.processes import hide_user
from mrmodel.storage import Store, open_store
from mrmodel.tracking.experiment import ADDRESS_VARIABLE

STORE_VARIABLE = "MRMODEL_REGISTRY"


def registry_store(state: Path) -> Store:
    """The store of ``MRMODEL_REGISTRY``; without it, a folder below `state` (``.mrmodel``).

    Raises:
        ConfigError: versions are on a server, and the variable is not set.
    """
    url, server = os.environ.get(STORE_VARIABLE), os.environ.get(ADDRESS_VARIABLE, "")
    if not url and server.startswith("http"):
        rule = f"is not set; versions at {hide_user(server)} need a pointer that all can see"
        raise ConfigError(STORE_VARIABLE, None, rule)
    return open_store(url or str(state / "registry"), variable=STORE_VARIABLE)
