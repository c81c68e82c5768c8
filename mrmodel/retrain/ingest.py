"""Finds new deliveries, checks them, and adds them to DVC on a run branch."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from mrmodel.config.schema import Config, load_config
from mrmodel.errors import DeliveryError, MrModelError, StorageError
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import PARAMS, RunBranch, fast_forward, workspace
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import (
    MARKER,
    Delivery,
    delivery_in,
    download,
    list_deliveries,
)
from mrmodel.retrain.dvc_dataset import DvcDataset, IngestedDelivery
from mrmodel.retrain.outcomes import Ledger, LedgerEntry
from mrmodel.retrain.report import DeliveryReport
from mrmodel.retrain.validate import ValidatedDelivery, check_folder
from mrmodel.storage import Store

log = logging.getLogger(__name__)

# In the clone, so that downloads of a killed process are removed with it.
_DOWNLOADS = "incoming"
# Of one delivery. Twenty videos of several hours take less, and others wait behind it.
CHECK_TIMEOUT_S = 6 * 3600


@dataclass(slots=True)
class IngestResult:
    """Result of an ingestion.

    Attributes:
        reports: of every delivery that was checked, by name; those with an outcome, or already in
            the data, are skipped.
        branch: run branch with the new data; None: no delivery was accepted.
    """

    reports: list[DeliveryReport] = field(default_factory=list)
    branch: str | None = None

    @property
    def taken(self) -> list[DeliveryReport]:
        """Deliveries whose data are on the branch."""
        return [report for report in self.reports if report.state == "taken"]


def ingest(incoming: Store, ledger: Ledger, places: RuntimeEnvironment, rev: str) -> IngestResult:
    """Add every new delivery to the data of `rev`, on a run branch, or quarantine it.

    Deliveries are processed in order of their names; each is compared with the data and with those
    accepted before it. An invalid one does not stop the others. Without new ones nothing changes.

    If a promotion was killed before `rev` was fast-forwarded to its data, it is done now.

    Args:
        incoming: holds the deliveries; read only.
        ledger: outcomes so far; outcomes of quarantined deliveries are added.
        places: where code and data are.
        rev: base of the run branch.

    Raises:
        DeliveryError: the repository is not set up for deliveries, or lacks promoted data.
        ConfigError: the corpus is not made from a folder.
        StorageError: a store is unreachable.
        OrchestrationError: data or revision are not available, or cannot be stored.
    """
    listed = list_deliveries(incoming)
    ingested = IngestResult()
    entries = ledger.entries()
    if not listed and not entries:
        return ingested
    with workspace(places, rev) as space:
        folder = DvcDataset(space.folder, space.config, places)
        present = folder.deliveries()
        lost = _unmerged(entries, present, ledger.withdrawn())
        if lost is not None:
            _merge(places, rev, lost)
            return ingest(incoming, ledger, places, rev)
        pending = _pending(listed, entries, present)
        ingested.reports = [_incomplete(one) for one in pending if not one.complete]
        complete = [one for one in pending if one.complete]
        if complete:
            _Ingestion(incoming, ledger, space, folder, ingested).take(complete)
    ingested.reports.sort(key=lambda report: report.name)
    return ingested


def check_sent(folder: Path, places: RuntimeEnvironment, rev: str) -> DeliveryReport:
    """Check a folder before it is sent; nothing is written.

    Args:
        folder: with the layout of the incoming store.
        places: where code and data are.
        rev: whose data it is compared with.

    Raises:
        DeliveryError, ConfigError: the repository is not set up for deliveries.
        OrchestrationError: data or revision are not available.
    """
    delivery = delivery_in(folder)
    if delivery.problem is not None:
        return _misnamed(delivery)
    with fresh_clone(places, rev, {}) as clone:
        config = load_config(clone / PARAMS)
        reference = DvcDataset(clone, config, places).reference()
        return check_folder(folder, delivery, reference, config).report


class _Ingestion:
    """One ingestion in its clone."""

    def __init__(
        self,
        incoming: Store,
        ledger: Ledger,
        space: RunBranch,
        folder: DvcDataset,
        ingested: IngestResult,
    ) -> None:
        self._incoming, self._ledger, self._space = incoming, ledger, space
        self._folder, self._result = folder, ingested
        self._config: Config = space.config
        # The existing data, and the data including accepted deliveries.
        self._before: Reference = folder.reference()
        self._reference = deepcopy(self._before)
        self._taken: list[IngestedDelivery] = []

    def take(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            report = self._look(delivery)
            log.info("delivery %s: %s%s", report.name, report.state, _because(report))
            self._result.reports.append(report)
        if self._taken:
            files = self._folder.commit(self._taken)
            names = ", ".join(one.name for one in self._taken)
            self._space.publish(files, f"Deliveries: {names}")
            self._result.branch = self._space.branch

    def _look(self, delivery: Delivery) -> DeliveryReport:
        if delivery.problem is not None:
            report = _misnamed(delivery)
            self._quarantine(report)
            return report
        folder = self._space.folder / _DOWNLOADS / delivery.name
        try:
            if not download(self._incoming, delivery, folder):
                return _left(delivery, "it changed while it was read")
            checked = self._check(folder, delivery)
        except StorageError as error:
            return _left(delivery, f"it cannot be read: {error}")
        except BrokenProcessPool:
            # It crashed twice, see `_apart`, and would do so every night.
            reason = "the process that checks it dies: a damaged video, or too little memory"
            checked = _refused(delivery, reason)
        except TimeoutError:
            limit = f"{CHECK_TIMEOUT_S / 3600:g} h"
            checked = _refused(delivery, f"its check took longer than {limit}; send it in parts")
        if checked.report.state == "quarantined":
            self._quarantine(checked.report)
        elif checked.report.state == "taken":
            self._merge(checked)
        return checked.report

    def _check(self, folder: Path, delivery: Delivery) -> ValidatedDelivery:
        """Check a delivery; conflicts only with data of this same ingestion are deferred.

        It is not yet known whether those data will stay.
        """
        checked = _apart(folder, delivery, self._reference, self._config)
        if checked.report.state == "quarantined" and self._taken:
            alone = _apart(folder, delivery, self._before, self._config)
            if alone.report.state == "taken":
                names = ", ".join(one.name for one in self._taken)
                checked.report.state = "waiting"
                checked.report.reasons.append(f"so beside what was taken before it: {names}")
        return checked

    def _quarantine(self, report: DeliveryReport) -> None:
        self._ledger.note(
            LedgerEntry(
                delivery=report.name,
                digest=report.digest,
                outcome="quarantined",
                reasons=report.reasons,
            )
        )

    def _merge(self, checked: ValidatedDelivery) -> None:
        report = checked.report
        self._folder.append(checked.lines(), checked.videos)
        checked.extend(self._reference)
        self._taken.append(IngestedDelivery(report.name, report.digest, report.videos, report.rows))


def _unmerged(
    entries: Iterable[LedgerEntry], present: Iterable[IngestedDelivery], withdrawn: Collection[int]
) -> LedgerEntry | None:
    """The last promotion, except of withdrawn models, whose data are not in the folder."""
    known = {(one.name, one.digest) for one in present}
    lost = [
        entry
        for entry in entries
        if entry.outcome == "promoted"
        and (entry.delivery, entry.digest) not in known
        and entry.version not in withdrawn
    ]
    return lost[-1] if lost else None


def _merge(places: RuntimeEnvironment, rev: str, entry: LedgerEntry) -> None:
    """Fast-forward `rev` to the run branch of a promotion.

    Raises:
        DeliveryError: this is not possible; it must be merged by hand.
    """
    left = fast_forward(places, rev, str(entry.branch))
    if left is not None:
        rule = f"was promoted but is not merged into {rev} ({left}); merge it first"
        raise DeliveryError(f"delivery {entry.delivery!r}: its branch {entry.branch} {rule}")


def _pending(
    listed: Iterable[Delivery], entries: Iterable[LedgerEntry], present: Iterable[IngestedDelivery]
) -> list[Delivery]:
    """Deliveries without an outcome that are not in the data."""
    done = {(entry.delivery, entry.digest) for entry in entries}
    done |= {(one.name, one.digest) for one in present}
    return [one for one in listed if (one.name, one.digest) not in done]


def _apart(
    folder: Path, delivery: Delivery, reference: Reference, config: Config
) -> ValidatedDelivery:
    """Check in a separate process, which a damaged video may crash or keep busy.

    Raises:
        BrokenProcessPool: it died twice.
        TimeoutError: it took longer than `CHECK_TIMEOUT_S`.
    """
    context = multiprocessing.get_context("spawn")
    for tries_left in (1, 0):
        started = time.monotonic()
        try:
            with ProcessPoolExecutor(1, context, _end_after, (CHECK_TIMEOUT_S,)) as pool:
                return pool.submit(_check, folder, delivery, reference, config).result()
        except BrokenProcessPool:
            if time.monotonic() - started >= CHECK_TIMEOUT_S:
                raise TimeoutError from None
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def _end_after(seconds: int) -> None:
    """Let the kernel kill this process then, whatever code of a library is at work."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _check(
    folder: Path, delivery: Delivery, reference: Reference, config: Config
) -> ValidatedDelivery:
    try:
        return check_folder(folder, delivery, reference, config)
    except DeliveryError:
        raise
    except MrModelError as error:
        return _refused(delivery, str(error))
    except Exception as error:  # A bug here must not block the other deliveries.
        log.exception("delivery %s", delivery.name)
        return ValidatedDelivery(_left(delivery, f"the check failed: {error!r}"), [], {})


def _refused(delivery: Delivery, reason: str) -> ValidatedDelivery:
    report = DeliveryReport(delivery.name, delivery.digest, "quarantined", [reason])
    return ValidatedDelivery(report, [], {})


def _misnamed(delivery: Delivery) -> DeliveryReport:
    return DeliveryReport(delivery.name, delivery.digest, "quarantined", [str(delivery.problem)])


def _incomplete(delivery: Delivery) -> DeliveryReport:
    reason = f"not complete yet: it has no object {MARKER}"
    return DeliveryReport(delivery.name, delivery.digest, "incomplete", [reason])


def _left(delivery: Delivery, reason: str) -> DeliveryReport:
    return DeliveryReport(delivery.name, delivery.digest, "waiting", [reason])


def _because(report: DeliveryReport) -> str:
    return f" ({'; '.join(report.reasons)})" if report.reasons else ""
