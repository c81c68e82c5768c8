"""``python -m mrmodel.tune.errand STUDY --owner LABEL``: `worker` in a clone without data.

It runs in a clone of the revision that is tuned, with the revision's own code; what its trials read
comes from the DVC remote first.
"""

from __future__ import annotations

import logging
import sys

from dvc.repo import Repo

from mrmodel.orchestrate.places import Places
from mrmodel.orchestrate.results import Handover
from mrmodel.orchestrate.transfer import Transfer
from mrmodel.tune.study import TicketStudy
from mrmodel.tune.worker import main, objective_of

log = logging.getLogger(__name__)

# Each tells of every credential it looks for, and of every file that it moves.
_TALKATIVE = ("dvc", "dvc_objects", "dvc_data", "aiobotocore", "botocore", "s3fs")


def fetch_data(study: TicketStudy) -> None:
    """Bring what the trials of a study read into the current clone.

    Raises:
        OrchestrationError: something is not there.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    places = Places.from_environment()
    paths = [str(path) for path in objective_of(study.facts).needs(study.facts)]
    log.info("%s: pull %s", study.name, " ".join(paths))
    Transfer(places, Handover(places.handover, places.endpoint)).fetch(Repo(), paths)


if __name__ == "__main__":
    sys.exit(main(fetch_data))
