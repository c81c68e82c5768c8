"""Drift of new data from the training data: metrics compared with limits of params.yaml.

Even a small sample of the same distribution lies at some distance from it. Each limit is therefore
raised by what chance explains for the number of values (docs/explanation/drift.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp, norm

from mrmodel.config.schema import Config
from mrmodel.encoders.base import VideoEncoder, build_encoder
from mrmodel.errors import DeliveryError, FeatureMismatch, VideoError
from mrmodel.features.extraction.encode import encode_video
from mrmodel.features.extraction.job_runner import describe_stream
from mrmodel.features.manifest import require_fingerprint
from mrmodel.files import derive_seed
from mrmodel.retrain.report import DriftMetric
from mrmodel.stages.profile import (
    Profile,
    Sample,
    StreamProfile,
    mean_vector,
    profile_of,
    stream_profile,
    words_of,
)
from mrmodel.types import Annotation
from mrmodel.video.decoder import VideoLimits

# Floor of the std: a channel that hardly varies between training videos must not decide alone.
_LEAST_SD = 0.1


@dataclass(frozen=True, slots=True)
class Drift:
    """Compares new data with one profile.

    Attributes:
        profile: of the training split.
        config: limits, and feature settings.
    """

    profile: Profile
    config: Config

    def require_streams(self) -> None:
        """Check that features are comparable.

        Raises:
            DeliveryError: the profile lacks a stream, or its features were made differently.
        """
        features = self.config.features
        for name in features.video_streams:
            found = self.profile.streams.get(name)
            if found is None:
                raise DeliveryError(f"the profile lacks the stream {name}: `dvc repro profile`")
            expected = describe_stream(name, "video", features.clip_len_s).fingerprint
            try:
                require_fingerprint("the profile's features", found.fingerprint, expected)
            except FeatureMismatch as error:
                raise DeliveryError(f"{error}: `dvc repro profile`") from None

    def compare(self, rows: Sequence[Annotation], videos: Sequence[Path]) -> list[DriftMetric]:
        """All drift metrics of annotated records and new video files; empty if there are none."""
        found = self._of_rows(rows) if rows else []
        return found + self._of_videos(sorted(videos, key=lambda path: path.name))

    def _of_rows(self, rows: Sequence[Annotation]) -> list[DriftMetric]:
        new, old, limits = profile_of(rows, {}), self.profile, self.config.retrain.drift
        samples = [
            ("seconds of a video", new.duration_s, old.duration_s, limits.duration_s),
            ("seconds of a window", new.window_s, old.window_s, limits.window_s),
            (
                "windows a query",
                new.windows_per_query,
                old.windows_per_query,
                limits.windows_per_query,
            ),
            ("words a query", new.words_per_query, old.words_per_query, limits.words_per_query),
        ]
        # Rows with ratings alone have no window to compare.
        found = [self._distance(*one) for one in samples if one[1].count and one[2].count]
        return [*found, self._unknown_words(rows)]

    def _distance(self, name: str, new: Sample, old: Sample, limit: float | None) -> DriftMetric:
        value = float(ks_2samp(new.values, old.values, method="asymp").statistic)
        return DriftMetric(name, value, self._allowed(limit, new.count, old.count), new.count)

    def _unknown_words(self, rows: Sequence[Annotation]) -> DriftMetric:
        known = set(self.profile.words)
        words = [word for row in rows for word in words_of(row.query)]
        unknown = sum(word not in known for word in words)
        limit = self._allowed(self.config.retrain.drift.unknown_words, len(rows), self.profile.rows)
        limit = None if limit is None else limit + self.profile.unknown_words
        return DriftMetric("share of unknown words", unknown / max(len(words), 1), limit, len(rows))

    def _of_videos(self, videos: Sequence[Path]) -> list[DriftMetric]:
        count = self.config.retrain.drift.videos
        # A pseudo-random but reproducible subset.
        chosen = sorted(videos, key=lambda path: derive_seed("drift", path.name))[:count]
        found = []
        for name in self.config.features.video_streams:
            new = self._encode(name, chosen)
            if new is not None:
                found.append(self._shift(name, new))
        return found

    def _encode(self, name: str, videos: Sequence[Path]) -> StreamProfile | None:
        features, encoder = self.config.features, build_encoder(name)
        assert isinstance(encoder, VideoEncoder)  # require_streams has rejected others
        limits, means = VideoLimits(max_duration_s=features.max_duration_s), []
        for path in videos:
            try:
                rows = encode_video(path, encoder, features.clip_len_s, limits).rows
            except VideoError:
                continue  # Its first frame is readable; the stage `extract` checks the rest.
            means.append(mean_vector(rows))
        return stream_profile(means, {}) if means else None

    def _shift(self, name: str, new: StreamProfile) -> DriftMetric:
        old, limits = self.profile.streams[name], self.config.retrain.drift
        sd = np.array(old.sd)
        sd = np.maximum(sd, max(_LEAST_SD * math.sqrt(np.mean(sd**2)), 1e-12))
        shift = (np.array(new.mean) - np.array(old.mean)) / sd
        value = math.sqrt(np.mean(shift**2))
        limit = limits.features if old.videos > 1 else None
        if limit is not None:
            # As if there were one channel: they are correlated to an unknown degree.
            chance = float(norm.isf(limits.significance_level / 2))
            limit += chance * math.sqrt(1 / new.videos + 1 / old.videos)
        return DriftMetric(f"features {name}, shift in sd", value, limit, new.videos)

    def _allowed(self, limit: float | None, new: int, old: int) -> float | None:
        """`limit` plus the critical value of a two-sample Kolmogorov-Smirnov test."""
        if limit is None:
            return None
        chance = self.config.retrain.drift.significance_level
        return limit + math.sqrt(-math.log(chance / 2) / 2 * (1 / new + 1 / old))
