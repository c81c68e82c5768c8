"""Caption rules across rows: generic, dedupe, cap, leak.

They work on the compact columns of `captions.ParsedChunk` and mark a row with the first rule that
it fails, like the row-local rules. The result does not depend on the order of the table's rows.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrmodel.config.intervid import CaptionSettings
from mrmodel.pretraining.intervid.caption_rules import PASSED, RULES, rule_index
from mrmodel.pretraining.intervid.captions import hash64

Bools = NDArray[np.bool_]


def apply_group_rules(
    rows: pd.DataFrame, settings: CaptionSettings, leak_videos: AbstractSet[str]
) -> NDArray[np.int8]:
    """The first rule, of all rules, that each row fails.

    Args:
        rows: the columns of `captions.ParsedChunk`, of the whole table.
        settings: enabled rules and limits.
        leak_videos: ids of evaluation videos.

    Returns:
        (n,) index in `RULES`, or `PASSED`.
    """
    failed = rows["failed"].to_numpy(dtype=np.int8).copy()
    rules = settings.rules
    if rules.generic:
        # This rule ranks among the row-local ones, so it overrides those after it.
        later = (failed == PASSED) | (failed > rule_index("generic"))
        failed[later & _generic(rows, settings.generic_videos)] = rule_index("generic")
    if rules.dedupe:
        failed[_duplicates(rows[failed == PASSED])] = rule_index("dedupe")
    if rules.cap:
        failed[_over_cap(rows[failed == PASSED], settings.max_per_video)] = rule_index("cap")
    if rules.leak:
        hashes = np.array([hash64(video) for video in sorted(leak_videos)], dtype=np.uint64)
        leaked = np.isin(rows["video"].to_numpy(), hashes)
        failed[(failed == PASSED) & leaked] = rule_index("leak")
    return failed


def count_rules(failed: NDArray[np.int8]) -> dict[str, int]:
    """Number of rows that each rule removed, in the order of the rules."""
    counts = np.bincount(failed[failed != PASSED], minlength=len(RULES))
    return dict(zip(RULES, counts.tolist(), strict=True))


def _generic(rows: pd.DataFrame, videos: int) -> Bools:
    pairs = rows[["caption", "video"]].drop_duplicates()
    counts = pairs.groupby("caption", sort=False).size()
    return np.asarray(rows["caption"].isin(counts.index[counts >= videos]))


def _best_first(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Rows sorted by `keys`, best UMT score first; ties by content, not by position."""
    order = [*keys, "umt", "start_ms", "end_ms", "caption", "line"]
    return rows.sort_values(order, ascending=[name != "umt" for name in order])


def _duplicates(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Index labels of rows that overlap a better row with the same caption and video."""
    repeated = rows[rows.duplicated(["video", "caption"], keep=False)]
    dropped: list[int] = []
    kept: list[tuple[int, int]] = []
    group: tuple[int, int] | None = None
    columns = ["video", "caption", "start_ms", "end_ms"]
    for label, *key, start, end in _best_first(repeated, columns[:2])[columns].itertuples():
        if (key[0], key[1]) != group:
            group, kept = (key[0], key[1]), []
        if any(start < other_end and other_start < end for other_start, other_end in kept):
            dropped.append(label)
        else:
            kept.append((start, end))
    return np.array(dropped, dtype=np.int64)


def _over_cap(rows: pd.DataFrame, most: int) -> NDArray[np.int64]:
    """Index labels of the rows beyond the best `most` of their video."""
    ordered = _best_first(rows, ["video"])
    return ordered.index[ordered.groupby("video", sort=False).cumcount() >= most].to_numpy()
