"""Finds new deliveries, checks them, and adds them to DVC on a run branch."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import shutil
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from mrmodel.config.schema import Config, load_config
from mrmodel.errors import DeliveryError, MrModelError, StorageError, reason_of
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import PARAMS, RunBranch, fast_forward, workspace
from mrmodel.processes import limit_memory
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import (
    MARKER,
    Delivery,
    delivery_in,
    download,
    excess,
    list_deliveries,
)
from mrmodel.retrain.dvc_dataset import DvcDataset, IngestedDelivery
from mrmodel.retrain.outcomes import Ledger, LedgerEntry
from mrmodel.retrain.report import DeliveryReport, some
from mrmodel.retrain.validate import ValidatedDelivery, check_folder
from mrmodel.startup import collect_garbage_rarely
from mrmodel.storage import Store
from mrmodel.text import shortened

log = logging.getLogger(__name__)

# In the clone, so that downloads of a killed process are removed with it.
_DOWNLOADS = "incoming"
# Of one delivery. Twenty videos of several hours take less, and others wait behind it.
CHECK_TIMEOUT_S = 6 * 3600
_LONGEST_REASON = 1000
# Of one run, so that a flood of them does not keep it busy for days. The others wait for the next.
_MOST_DELIVERIES = 100
_TO_BE_ALONE = "waits to be tried alone, because retrainings with it failed"


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

    @property
    def identities(self) -> list[tuple[str, str]]:
        """Name and digest of each of them."""
        return [report.identity for report in self.taken]


def ingest(
    incoming: Store, ledger: Ledger, environment: RuntimeEnvironment, rev: str
) -> IngestResult:
    """Add every new delivery to the data of `rev`, on a run branch, or quarantine it.

    Deliveries are processed in order of their names; each is compared with the data and with those
    accepted before it. An invalid one does not stop the others. Without new ones nothing changes.
    An attempt with the deliveries on the run branch has begun (`attempts.AttemptLog`): it ends with
    `finish.finish`, or fails.

    If a promotion was killed before `rev` was fast-forwarded to its data, it is done now.

    Args:
        incoming: holds the deliveries; read only.
        ledger: outcomes so far; outcomes of quarantined deliveries are added.
        environment: where code and data are.
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
    with workspace(environment, rev) as space:
        folder = DvcDataset(space.folder, space.config, environment)
        present = folder.deliveries()
        lost = _unmerged(entries, present, ledger.withdrawn())
        if lost is not None:
            _merge(environment, rev, lost)
            return ingest(incoming, ledger, environment, rev)
        pending = _pending(listed, entries, present)
        unfinished = _first([one for one in pending if not one.complete], "incomplete deliveries")
        ingested.reports = [_incomplete(one) for one in unfinished]
        complete = [one for one in pending if one.complete]
        if complete:
            waiting = [one.identity for one in complete[_MOST_DELIVERIES:]]
            complete = _first(complete, "deliveries")
            run = _Ingestion(incoming, ledger, space, folder, ingested)
            run.take_in_turns(complete, waiting)
    ingested.reports.sort(key=lambda report: report.name)
    return ingested


def check_sent(folder: Path, environment: RuntimeEnvironment, rev: str) -> DeliveryReport:
    """Check a folder before it is sent; nothing is written.

    Args:
        folder: with the layout of the incoming store.
        environment: where code and data are.
        rev: whose data it is compared with.

    Raises:
        DeliveryError, ConfigError: the repository is not set up for deliveries.
        OrchestrationError: data or revision are not available.
    """
    delivery = delivery_in(folder)
    with fresh_clone(environment, rev, {}) as clone:
        config = load_config(clone / PARAMS)
        refused = delivery.problem or excess(delivery, config.retrain)
        if refused is not None:
            return _refused(delivery, refused).report
        reference = DvcDataset(clone, config, environment).reference()
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
        self._taken_bytes = 0
        # Deliveries that wait for no reason of their own.
        self._aside: list[str] = []

    def take_in_turns(
        self, deliveries: Sequence[Delivery], waiting: Collection[tuple[str, str]] = ()
    ) -> None:
        """Take complete deliveries; see `attempts.AttemptLog.plan` for those that failed before.

        `waiting` are those that this run does not look at, whose attempts are kept.
        """
        attempts = self._ledger.attempts
        undecided = {one.identity: one for one in deliveries}
        plan = attempts.plan(undecided, self._config.retrain.attempts)
        for identity, reason in plan.spent.items():
            self._conclude(_refused(undecided.pop(identity), reason).report)
        for turn in plan.turns:
            chosen = [undecided[identity] for identity in turn.deliveries]
            if self._taken:
                reason = (
                    _TO_BE_ALONE if turn.alone else f"waits for {self._taken[0].name}, tried alone"
                )
                for delivery in chosen:
                    self._conclude(_left(delivery, reason))
                continue
            others = plan.failed & undecided.keys() - set(turn.deliveries)
            self._aside = sorted(name for name, _ in others)
            attempts.begin(turn.deliveries, {*undecided, *waiting}, turn.alone)
            with attempts.running(turn.deliveries):
                for report in self._take(chosen):
                    if report.state == "quarantined":
                        del undecided[report.identity]
                self._commit()

    def _take(self, deliveries: Iterable[Delivery]) -> list[DeliveryReport]:
        """Look at each delivery; the attempt with those that are not taken is over."""
        reports = [self._conclude(self._look(delivery)) for delivery in deliveries]
        for state, forget in (
            ("quarantined", self._ledger.attempts.end),
            ("waiting", self._ledger.attempts.withdraw),
        ):
            forget([report.identity for report in reports if report.state == state])
        return reports

    def _commit(self) -> None:
        if self._taken:
            files = self._folder.commit(self._taken)
            names = some([one.name for one in self._taken])
            self._space.publish(files, f"Deliveries: {names}")
            self._result.branch = self._space.branch

    def _conclude(self, report: DeliveryReport) -> DeliveryReport:
        """Log a verdict, and write it down if it is final."""
        report.reasons = [shortened(reason, _LONGEST_REASON) for reason in report.reasons]
        log.info("delivery %s: %s%s", report.name, report.state, _because(report))
        if report.state == "quarantined":
            self._quarantine(report)
        self._result.reports.append(report)
        return report

    def _look(self, delivery: Delivery) -> DeliveryReport:
        refused = delivery.problem or excess(delivery, self._config.retrain)
        if refused is not None:
            return _refused(delivery, refused).report
        folder = self._space.folder / _DOWNLOADS / delivery.name
        try:
            return self._receive(delivery, folder)
        except StorageError as error:
            return _left(delivery, f"it cannot be read: {error}")
        except BrokenProcessPool:
            # It crashed twice, see `_apart`, and would do so every night.
            reason = "the process that checks it dies: a damaged video, or too little memory"
            return _refused(delivery, reason).report
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                reason = "a name in it is too long for the file system of the retraining"
                return _refused(delivery, reason).report
            self._aside.append(delivery.name)
            return _left(delivery, f"not taken, because of this machine: {reason_of(error)}")
        finally:
            # What was taken has been moved away; the rest makes room for the next delivery.
            shutil.rmtree(folder, ignore_errors=True)

    def _receive(self, delivery: Delivery, folder: Path) -> DeliveryReport:
        """Download, check and merge a delivery.

        Raises:
            BrokenProcessPool: see `_apart`.
            OSError: something cannot be written here.
            StorageError: it cannot be read.
        """
        # DVC's cache takes a copy, and has none yet of what was taken before.
        needed = 2 * delivery.n_bytes + self._taken_bytes
        if needed > shutil.disk_usage(self._space.folder).free:
            raise OSError(errno.ENOSPC, f"less than {needed / 1e9:.3g} GB free on its disk")
        if not download(self._incoming, delivery, folder):
            return _left(delivery, "it changed while it was read")
        try:
            checked = self._check(folder, delivery)
        except TimeoutError:
            limit = f"{CHECK_TIMEOUT_S / 3600:g} h"
            return _refused(
                delivery, f"its check took longer than {limit}; send it in parts"
            ).report
        if checked.report.state == "taken":
            self._merge(checked)
            self._taken_bytes += delivery.n_bytes
        return checked.report

    def _check(self, folder: Path, delivery: Delivery) -> ValidatedDelivery:
        """Check a delivery; conflicts only with data of this same ingestion are deferred.

        It is not yet known whether those data will stay. Nor whether those will come that wait.
        """
        checked = _apart(folder, delivery, self._reference, self._config)
        if checked.report.state == "quarantined" and self._taken:
            alone = _apart(folder, delivery, self._before, self._config)
            if alone.report.state == "taken":
                names = some([one.name for one in self._taken])
                checked.report.state = "waiting"
                checked.report.reasons.append(f"so beside what was taken before it: {names}")
        if checked.report.state == "quarantined" and self._aside:
            # Its records may be about videos of those.
            checked.report.state = "waiting"
            checked.report.reasons.append(f"so without what waits: {some(self._aside)}")
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


def _merge(environment: RuntimeEnvironment, rev: str, entry: LedgerEntry) -> None:
    """Fast-forward `rev` to the run branch of a promotion.

    Raises:
        DeliveryError: this is not possible; it must be merged by hand.
    """
    left = fast_forward(environment, rev, str(entry.branch))
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


def _first(deliveries: list[Delivery], kind: str) -> list[Delivery]:
    """As many as one run looks at, by name; says how many are left."""
    left = deliveries[_MOST_DELIVERIES:]
    if left:
        text = "%d %s, more than a run looks at; %d wait for the next run, from %s on"
        log.warning(text, len(deliveries), kind, len(left), left[0].name)
    return deliveries[:_MOST_DELIVERIES]


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
    """Let the kernel kill this process then, whatever code of a library is at work.

    It gets no more than a share of the memory, either.
    """
    limit_memory()
    collect_garbage_rarely()
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
    except MemoryError:
        return _refused(delivery, "its check takes more memory than there is; send it in parts")
    except Exception as error:  # A bug here must not block the other deliveries.
        log.exception("delivery %s", delivery.name)
        return ValidatedDelivery(_left(delivery, f"the check failed: {error!r}"), [], {})


def _refused(delivery: Delivery, reason: str) -> ValidatedDelivery:
    report = DeliveryReport(delivery.name, delivery.digest, "quarantined", [reason])
    return ValidatedDelivery(report, [], {})


def _incomplete(delivery: Delivery) -> DeliveryReport:
    reason = f"not complete yet: it has no object {MARKER}"
    return DeliveryReport(delivery.name, delivery.digest, "incomplete", [reason])


def _left(delivery: Delivery, reason: str) -> DeliveryReport:
    return DeliveryReport(delivery.name, delivery.digest, "waiting", [reason])


def _because(report: DeliveryReport) -> str:
    return f" ({'; '.join(report.reasons)})" if report.reasons else ""
