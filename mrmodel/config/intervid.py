"""The section `intervid` of params.yaml: how InterVid-MR is generated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import Count, CountOrZero, NonNegative, Positive, Section, Seed, Share


class CaptionRuleSwitches(Section):
    """Switches of the caption rules, which run in this order.

    The first rule, `normalise`, has no switch, because text features are keyed by its result.
    """

    length: bool
    script: bool
    medium: bool
    repetition: bool
    generic: bool
    score: bool
    interval: bool
    dedupe: bool
    cap: bool
    leak: bool


class CaptionSettings(Section):
    """Limits of the caption rules: a row is kept only if it passes all enabled rules."""

    rules: CaptionRuleSwitches
    benchmarks: list[str]
    video_id_length: Count | None
    max_bad_row_share: Share
    min_words: Count
    max_words: Count
    min_characters: Count
    max_characters: Count
    min_ascii_share: Share
    max_digit_share: Share
    max_word_repeats: Count
    max_bigram_repeats: Count
    min_distinct_share: Share
    generic_videos: Count
    min_umt_score: float | None
    min_aesthetic_score: float | None
    min_interval_s: NonNegative
    max_per_video: Count

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> CaptionSettings:
        if self.min_words > self.max_words or self.min_characters > self.max_characters:
            raise ValueError("a minimum of words or characters is above its maximum")
        return self


class SegmentSettings(Section):
    """The segment of video around a caption's interval."""

    length_s: Positive
    offset: Literal["random", "center"]
    min_clips: Count


class LabelSettings(Section):
    """From similarities to positive clips, windows and grades (SG-DETR eq. 16-18)."""

    max_invalid_share: Share
    threshold_std: Annotated[float, Field(ge=-3.0, le=6.0)]
    sd_floor_quantile: Share | None
    keep_original: bool
    grade_stats: Literal["original", "new"]
    gap_merge: CountOrZero
    min_run: Count
    max_windows: Count | None
    min_coverage: Share
    max_coverage: Share
    annotators: Count

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> LabelSettings:
        if self.min_coverage > self.max_coverage:
            raise ValueError("min_coverage is above max_coverage")
        return self


class SourceSettings(Section):
    """What the data card says of the caption table."""

    name: str | None
    licence: str | None


class IntervidSettings(Section):
    """InterVid-MR generation (SG-DETR section 4.3.2).

    All values are in the file. `preset` asserts that the eleven values of `INTERVID_PRESETS` are
    those of the preset; `parse_config` rejects a file that breaks this. ``custom`` asserts nothing.
    """

    preset: Literal["paper", "robust", "custom"]
    seed: Seed
    val_share: Annotated[float, Field(ge=0.0, lt=1.0)]
    max_captions: Count | None
    max_samples: Count | None
    source: SourceSettings
    workers: CountOrZero
    chunk_rows: Count
    captions: CaptionSettings
    segment: SegmentSettings
    labels: LabelSettings

    def broken_promises(self) -> list[tuple[str, object, object]]:
        """(dotted path, actual value, preset's value) of each deviation from the preset."""
        promised = INTERVID_PRESETS.get(self.preset, {})
        found = {path: getattr(getattr(self, path[0]), path[1]) for path in promised}
        return [(".".join(p), found[p], promised[p]) for p in promised if found[p] != promised[p]]


# The paper's values, and values that give more useful labels.
INTERVID_PRESETS: dict[str, dict[tuple[str, str], object]] = {
    "paper": {
        ("captions", "min_umt_score"): None,
        ("captions", "min_interval_s"): 4.0,
        ("labels", "threshold_std"): 3.0,
        ("labels", "sd_floor_quantile"): None,
        ("labels", "keep_original"): False,
        ("labels", "grade_stats"): "original",
        ("labels", "gap_merge"): 0,
        ("labels", "min_run"): 1,
        ("labels", "max_windows"): None,
        ("labels", "min_coverage"): 0.0,
        ("labels", "max_coverage"): 1.0,
    },
    "robust": {
        ("captions", "min_umt_score"): 0.4,
        ("captions", "min_interval_s"): 8.0,
        ("labels", "threshold_std"): 3.0,
        ("labels", "sd_floor_quantile"): 0.1,
        ("labels", "keep_original"): False,
        ("labels", "grade_stats"): "new",
        ("labels", "gap_merge"): 1,
        ("labels", "min_run"): 2,
        ("labels", "max_windows"): 10,
        ("labels", "min_coverage"): 0.02,
        ("labels", "max_coverage"): 0.8,
    },
}
