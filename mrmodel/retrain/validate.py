"""Validates a delivered folder: its valid records, and whether it is accepted at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import ANNOTATIONS, CAPTIONS, TEST, VIDEOS, Delivery
from mrmodel.retrain.drift import Drift
from mrmodel.retrain.report import DeliveryReport, some
from mrmodel.retrain.row_checks import CheckedRecords, DeliveredRecord, check_records
from mrmodel.retrain.videos import DeliveredVideos


@dataclass(frozen=True, slots=True)
class ValidatedDelivery:
    """A delivery that was checked.

    Attributes:
        report: human-readable; its state tells whether the delivery may be accepted.
        rows: valid records, in order.
        videos: file of each new video -> MD5.
    """

    report: DeliveryReport
    rows: list[DeliveredRecord]
    videos: dict[Path, str]

    def lines(self) -> dict[str, list[bytes]]:
        """Table -> valid lines, unchanged."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for row in self.rows:
            found[row.table].append(row.raw)
        return dict(found)

    def extend(self, reference: Reference) -> None:
        """Add the accepted data to the reference, for deliveries that are checked later."""
        for path, md5 in self.videos.items():
            reference.add_video(path.name, md5)
        for row in self.rows:
            if row.annotation is None:
                reference.add_captions([row.raw])
            else:
                reference.add_annotations(row.table, [row.annotation])


def check_folder(
    folder: Path, delivery: Delivery, reference: Reference, config: Config
) -> ValidatedDelivery:
    """Validate a delivered folder; nothing is changed.

    Args:
        folder: holds its ``videos/`` and tables, in the formats of docs/howto/your_own_videos.md.
        delivery: as listed.
        reference: the existing data.
        config: limits, and how tables and features are read.

    Raises:
        DeliveryError: the reference's features were made differently than new ones would be.
    """
    drift = Drift(reference.profile, config)
    drift.require_streams()
    report = DeliveryReport(delivery.name, delivery.digest, "taken")
    frozen = _frozen_table(folder, reference)
    if frozen is not None:
        report.reasons.append(frozen)
    clip_len_s = config.features.clip_len_s
    videos = DeliveredVideos(folder / VIDEOS, reference, clip_len_s, delivery.ignored)
    judged = check_records(folder, reference, videos, config)
    used = {videos.name_of(row.vid) for row in judged.good}
    new = {videos.files[stem]: videos.md5s[stem] for stem in sorted(used) if videos.is_new(stem)}
    _tell(report, judged, new, config.retrain.max_bad_share)
    unused = sorted(path.name for stem, path in videos.files.items() if stem not in used)
    if unused:
        report.notes.append(f"{len(unused)} videos that no new good row is about: {some(unused)}")
    if delivery.ignored:
        rule = f"{len(delivery.ignored)} files that mean nothing here"
        report.notes.append(f"{rule}: {some(delivery.ignored)}")
    if not report.reasons:
        rows = [row.annotation for row in judged.good if row.annotation is not None]
        report.figures = drift.compare(rows, list(new))
        report.reasons += [str(one) for one in report.figures if one.passed is False]
    if report.reasons:
        report.state = "quarantined"
    return ValidatedDelivery(report, judged.good, new)


def _frozen_table(folder: Path, reference: Reference) -> str | None:
    """Why the delivery would change the test set; None: it does not."""
    change = "change it in the repository, which starts a new comparison line"
    if (folder / TEST).exists():
        return f"{TEST}: the test set is frozen; {change}"
    if reference.frozen != TEST and (folder / reference.frozen).exists():
        return f"{reference.frozen}: without {TEST} it is what models are compared on; {change}"
    return None


def _tell(
    report: DeliveryReport, judged: CheckedRecords, new: Iterable[Path], max_bad_share: float
) -> None:
    report.rows, report.known, report.bad = judged.counts(), judged.known, judged.bad
    report.videos = [path.name for path in new]
    if judged.bad_share > max_bad_share:
        total = len(judged.good) + judged.known + len(judged.bad)
        share = f"{judged.bad_share:.3g}, limit {max_bad_share:.3g}"
        first = f"the first: {judged.bad[0]}"
        report.reasons.append(
            f"bad rows: {len(judged.bad)} of {total}, a share of {share}; {first}"
        )
    elif not judged.good and not report.reasons:
        tables = ", ".join((*ANNOTATIONS, CAPTIONS))
        known = f"; {judged.known} rows are in the data already" if judged.known else ""
        report.reasons.append(f"brings no new row in {tables}{known}")
