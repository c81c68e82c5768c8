"""Does training know the test set? Videos in both, by their id or by their content."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mrmodel.generate.leak import base_video
from mrmodel.pipeline.frozen import FrozenSet

# Tags of a registered version; the gate refuses one that has any.
TAG = "leakage."


def find_leaks(
    test: FrozenSet, others: Mapping[str, Collection[str]], contents: Mapping[str, str]
) -> dict[str, list[str]]:
    """Test videos that other sets hold too.

    A segment counts as its whole video. A copy under another id is found by its bytes.

    Args:
        test: the set that figures are reported on.
        others: video ids of each set that training or the choice of weights may see.
        contents: SHA-256 of the file by video id; empty or absent where it is not known.

    Returns:
        The sets that leak, each with the ids of the test videos in it.
    """
    names = {base_video(str(row["vid"])) for row in test.rows} | set(test.videos)
    known = {digest: vid for vid, digest in test.videos.items() if digest}
    leaks = {}
    for name, vids in others.items():
        found = set()
        for vid in {base_video(vid) for vid in vids} | set(vids):
            if vid in names:
                found.add(vid)
            elif contents.get(vid) in known:
                found.add(known[contents[vid]])
        if found:
            leaks[name] = sorted(found)
    return leaks
