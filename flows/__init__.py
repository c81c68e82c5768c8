"""Prefect flows: which worker runs what, and when. The work itself is in `mrmodel`."""

import os

import mrmodel  # noqa: F401  Before Prefect is imported: see mrmodel/startup.py.

# For the temporary server that Prefect starts without PREFECT_API_URL. To be set before Prefect
# is imported; variables of the environment take precedence.
_TEMPORARY_SERVER = {
    # Without internet, sending usage data would log errors.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # On a busy machine the server does not start within Prefect's default of 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
for _name, _value in _TEMPORARY_SERVER.items():
    os.environ.setdefault(_name, _value)
