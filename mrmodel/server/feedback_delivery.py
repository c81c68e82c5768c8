"""Makes a delivery for retraining out of the feedback that waits in a journal.

Rows and videos are checked by the rules of the ingestion (`retrain.row_checks`) before they are
sent, so what it would leave out is left out, and named, here.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mrmodel.config.schema import Config, load_config
from mrmodel.data.ingest.videos import KNOWN_KINDS, VIDEO_SUFFIXES
from mrmodel.features.keys import base_video, composed, normalise_query
from mrmodel.files import link_or_copy, one_at_a_time, sha256_of, write_jsonl
from mrmodel.names import problem_of_part
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import PARAMS
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import ANNOTATIONS, MARKER, VIDEOS
from mrmodel.retrain.dvc_dataset import DvcDataset
from mrmodel.retrain.finish import open_incoming
from mrmodel.retrain.row_checks import check_records
from mrmodel.retrain.videos import DeliveredVideos, md5_of
from mrmodel.server.feedback import DeliveryRecord, FeedbackEntry, Journal
from mrmodel.storage import Store
from mrmodel.types import Window

_TABLE = ANNOTATIONS[0]
# In the clone, so that links of a killed process are removed with it.
_FOLDER = "feedback"


@dataclass(frozen=True, slots=True)
class UndeliveredEntry:
    """An entry that was not delivered, and why not."""

    entry: FeedbackEntry
    reason: str

    def __str__(self) -> str:
        return f"{self.entry.name}, {self.entry.query!r}: {self.reason}"


@dataclass(slots=True)
class FeedbackDelivery:
    """What a call of `deliver` did.

    Attributes:
        name: of the delivery in the incoming store; None: there was nothing to deliver.
        rows: number of its annotations.
        videos: names of the new videos in it.
        left_out: entries that are never delivered.
        waiting: entries that the next call tries again.
        problems: lines of the journal that cannot be read.
    """

    name: str | None = None
    rows: int = 0
    videos: list[str] = field(default_factory=list)
    left_out: list[UndeliveredEntry] = field(default_factory=list)
    waiting: list[UndeliveredEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def deliver(
    journal: Journal, incoming: Store, environment: RuntimeEnvironment, rev: str = "HEAD"
) -> FeedbackDelivery:
    """Deliver all accepted and corrected hits that were not delivered before, as one delivery.

    Hits of one query in one video become one row of ``train.jsonl``. A call that was killed is
    completed by the next one, under its name and with its entries alone.

    Args:
        journal: the feedback.
        incoming: store of deliveries; nothing in it is read.
        environment: where the repository is whose model is retrained.
        rev: its branch, whose data the videos and rows are compared with.

    Raises:
        DeliveryError, ConfigError: the repository is not set up for deliveries.
        OrchestrationError: its data or the revision are not available.
        StorageError: the store cannot be written; the next call goes on.
        OutputError: the journal cannot be written.
    """
    with one_at_a_time(journal.path.with_suffix(".lock")):
        state = journal.read()
        begun, entries = state.unfinished, state.deliverable
        if begun is not None:
            entries = [state.entries[one] for one in begun.entries if one in state.entries]
        done = FeedbackDelivery(problems=state.problems)
        if not entries:
            return done
        with fresh_clone(environment, rev, {}) as clone:
            config = load_config(clone / PARAMS)
            reference = DvcDataset(clone, config, environment).reference()
            parcel = _Parcel(clone / _FOLDER, reference, config)
            delivered = parcel.pack(entries, done)
            left_out = {one.entry.id: one.reason for one in done.left_out}
            if done.rows:
                done.name = begun.name if begun is not None else _new_name()
                record = DeliveryRecord(
                    name=done.name, entries=delivered, left_out=left_out, complete=False
                )
                journal.note(record)
                parcel.send(incoming, f"{done.name}", done.videos)
            if delivered or left_out:
                record = DeliveryRecord(
                    name=done.name, entries=delivered, left_out=left_out, complete=True
                )
                journal.note(record)
    return done


def deliver_here(journal: Journal, rev: str = "HEAD") -> FeedbackDelivery:
    """Deliver into the store, and for the repository, that the environment names; see `deliver`.

    Raises:
        ConfigError: it names none. Otherwise as `deliver`.
    """
    environment = RuntimeEnvironment.from_environment()
    return deliver(journal, open_incoming(environment), environment, rev)


class _Parcel:
    """A delivery on this machine, before it is sent.

    Args:
        folder: does not exist yet.
        reference: the data of the repository.
        config: its parameters.
    """

    def __init__(self, folder: Path, reference: Reference, config: Config) -> None:
        self._folder, self._reference, self._config = folder, reference, config
        self._videos = folder / VIDEOS
        self._videos.mkdir(parents=True)
        self._test = reference.frozen.removesuffix(".jsonl")
        # SHA-256 of a video -> its id in the rows; or why there is none, and whether for good.
        self._vids: dict[str, str] = {}
        self._unusable: dict[str, tuple[str, bool]] = {}
        self._n_bytes = 0

    def pack(self, entries: Iterable[FeedbackEntry], done: FeedbackDelivery) -> tuple[str, ...]:
        """Write rows and link videos; `done` records what the delivery holds and what not.

        Returns:
            Ids of the entries that are in it, or in the data already.
        """
        groups: dict[tuple[str, str], list[FeedbackEntry]] = defaultdict(list)
        for entry in entries:
            vid = self._vid_of(entry)
            if vid is None:
                reason, for_good = self._unusable[entry.sha256]
                kept = done.left_out if for_good else done.waiting
                kept.append(UndeliveredEntry(entry, reason))
            else:
                groups[vid, normalise_query(entry.query).casefold()].append(entry)
        rows = {f"feedback-{of[0].id}": (vid, of) for (vid, _), of in groups.items()}
        table = self._folder / _TABLE
        write_jsonl(table, [_row(qid, vid, of) for qid, (vid, of) in rows.items()])
        if not rows:
            return ()
        clip_len_s = self._config.features.clip_len_s
        videos = DeliveredVideos(self._videos, self._reference, clip_len_s, ())
        checked = check_records(self._folder, self._reference, videos, self._config)
        for bad in checked.bad:
            of = rows.pop(str(bad.qid))[1]
            done.left_out += [UndeliveredEntry(entry, bad.rule) for entry in of]
        table.write_bytes(b"".join(row.raw + b"\n" for row in checked.good))
        used = {videos.name_of(row.vid) for row in checked.good}
        done.rows = len(checked.good)
        done.videos = [videos.files[stem].name for stem in sorted(used) if videos.is_new(stem)]
        return tuple(entry.id for _, of in rows.values() for entry in of)

    def send(self, incoming: Store, name: str, videos: Iterable[str]) -> None:
        """Upload it, the marker last."""
        for video in videos:
            incoming.upload(f"{name}/{VIDEOS}/{video}", self._videos / video)
        incoming.upload(f"{name}/{_TABLE}", self._folder / _TABLE)
        incoming.put(f"{name}/{MARKER}", b"")

    def _vid_of(self, entry: FeedbackEntry) -> str | None:
        """The id of the entry's video; None if it cannot be used."""
        content = entry.sha256
        if content not in self._vids and content not in self._unusable:
            try:
                self._vids[content] = self._add(entry)
            except _Unusable as why:
                self._unusable[content] = why.reason, why.for_good
        return self._vids.get(content)

    def _add(self, entry: FeedbackEntry) -> str:
        """Link the video into the delivery if it is new; its id.

        Raises:
            _Unusable: says why not.
        """
        path, stem = Path(entry.path), Path(entry.name).stem
        if {composed(stem), composed(base_video(stem))} & self._reference.protected:
            rule = f"{stem!r} is a video of the {self._test} split, on which models are compared"
            raise _Unusable(rule, for_good=True)
        try:
            md5, size = md5_of(path), path.stat().st_size
            if sha256_of(path) != entry.sha256:
                raise _Unusable("its file holds another video now", for_good=False)
        except OSError as error:
            raise _Unusable(f"its file: {error.strerror}", for_good=False) from None
        known = self._reference.contents.get(md5)
        if known is not None:
            copied = self._reference.protected_contents().get(md5)
            if copied is not None:
                rule = f"its video is {copied} of the {self._test} split, on which models are"
                raise _Unusable(f"{rule} compared", for_good=True)
            return Path(known).stem
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            rule = f"{path.suffix} is of no kind that deliveries may hold ({KNOWN_KINDS})"
            raise _Unusable(rule, for_good=True)
        limits, count = self._config.retrain, len(list(self._videos.iterdir()))
        if self._n_bytes + size > limits.max_gb * 1e9 or count + 1 >= limits.max_files:
            rule = "the delivery would exceed retrain.max_gb or retrain.max_files"
            raise _Unusable(f"{rule}; deliver once more", for_good=False)
        # The digest tells it from every other video, also of deliveries that are not ingested yet.
        vid = f"{stem}-{md5[:12]}"
        if problem_of_part(vid + path.suffix) is not None:
            vid = f"video-{md5[:12]}"
        link_or_copy(path, self._videos / f"{vid}{path.suffix}")
        self._n_bytes += size
        return vid


class _Unusable(Exception):
    """A video that no delivery can hold: never, or not this one."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.reason, self.for_good = reason, for_good


def _row(qid: str, vid: str, entries: list[FeedbackEntry]) -> dict[str, object]:
    duration_s = min(entry.duration_s for entry in entries)
    windows = _joined((start, min(end, duration_s)) for start, end in (e.window for e in entries))
    return {
        "qid": qid,
        "query": entries[0].query,
        "vid": vid,
        "duration": duration_s,
        "relevant_windows": windows,
    }


def _joined(windows: Iterable[Window]) -> list[Window]:
    """The windows in order; those that overlap or touch as one."""
    found: list[Window] = []
    for start, end in sorted(windows):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _new_name() -> str:
    """A name that no delivery has; deliveries are ingested in the order of their names."""
    return f"feedback-{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(4)}"
