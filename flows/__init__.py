"""Prefect wiring: which worker runs what, and when. What is done there is in `mrmodel`."""

import os

# Of the temporary server that Prefect starts where PREFECT_API_URL names none. These must stand
# before Prefect is imported, and the environment goes before them.
_TEMPORARY_SERVER = {
    # Usage data would go to Prefect's makers; without internet that is an error in every log.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # On a busy machine it does not start within Prefect's 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
for _name, _value in _TEMPORARY_SERVER.items():
    os.environ.setdefault(_name, _value)
