"""Caption tables like InternVid's, of any size, for `benchmarks.intervid`.

Run ``python -m benchmarks.caption_tables ROWS FILE``. The file is JSON lines. Columns, lengths of
captions (7 to about 1,100 characters, most of 30 to 110, lower case), of intervals (0.6 to 69 s,
most of 2 to 10 s) and the ranges of the two scores are those published with InternVid-10M-FLT; two
to three rows a video, in random order. Some rows are what the rules look for: captions about the
medium, captions of many videos, repeated ones, other scripts, links, copies. One in 500 is
malformed. The same rows for the same number of rows, on any machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHUNK = 100_000
ROWS_OF_A_VIDEO = 2.6
ALPHABET = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", dtype=np.uint8
)
WORDS = {
    "adjective": "young, old, tall, small, large, red, blue, green, yellow, black, white, wooden, "
    "crowded, empty, bright, dark, wet, dry, shiny, broken, colorful, quiet, busy, rusty, modern",
    "noun": "man, woman, child, boy, girl, dog, cat, horse, bird, car, truck, bus, bike, boat, "
    "train, plane, tree, flower, river, lake, beach, street, road, bridge, kitchen, table, chair, "
    "window, door, wall, house, shop, stage, guitar, piano, drum, ball, field, forest, mountain, "
    "crowd, camera, phone, laptop, plate, bowl, cake, bread, pan, knife, glass, bottle, shirt, hat",
    "verb": "walks, runs, sits, stands, jumps, talks, sings, dances, plays, holds a cup, opens a "
    "box, cuts vegetables, drives, rides, waits, reads a book, looks around, points, waves, falls",
    "place": "on, near, behind, beside, in front of, next to, across from, under, above, around",
}
LISTS = {name: words.split(", ") for name, words in WORDS.items()}
COMMON = [
    f"a {one} is {how} to the camera" for one in LISTS["noun"][:6] for how in ("talking", "looking")
]
MEDIUM = [
    "a website that shows an image of a",
    "the text on the screen of a",
    "a screenshot of a video game with a",
    "an image showing the logo of a",
]
FOREIGN = [
    "красная машина едет по улице",
    "一只棕色的狗在海滩上跑步",
    "une voiture près d'un café à Paris — été",
]


def main() -> None:
    """Write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    write_table(options.file, options.rows)


def write_table(path: Path, rows: int) -> None:
    """Write a table of `rows` rows."""
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, rows, CHUNK):
            rng = np.random.default_rng([rows, first])
            file.writelines(_lines(rng, min(CHUNK, rows - first), rows))


def _lines(rng: np.random.Generator, count: int, rows: int) -> Iterator[str]:
    videos = _video_ids(rng.integers(0, max(1, round(rows / ROWS_OF_A_VIDEO)), count))
    starts = rng.integers(0, 900_000, count)
    lengths = np.clip(rng.lognormal(np.log(5200), 0.75, count), 600, 69_000).astype(np.int64)
    umt = np.clip(rng.normal(0.38, 0.07, count), 0.09, 0.60)
    beauty = np.clip(rng.normal(4.3, 1.0, count), -0.89, 9.02)
    captions = _captions(rng, count)
    kinds = rng.integers(0, 1000, count).tolist()
    spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    columns = zip(videos, spans, captions, umt.tolist(), beauty.tolist(), kinds, strict=True)
    last = ""
    for video, (start, end), caption, score, nice, kind in columns:
        if kind < 2:
            yield _malformed(kind, video, start, caption)
        elif kind == 2 and last:
            yield last  # the same row again
        else:
            text = json.dumps(caption, allow_nan=False)
            last = (
                f'{{"YoutubeID": "{video}", "Start_timestamp": "{_timestamp(start)}", '
                f'"End_timestamp": "{_timestamp(end)}", "Caption": {text}, '
                f'"UMT_Score": {score:.7f}, "Aesthetic_Score": {nice:.6f}}}\n'
            )
            yield last


def _video_ids(numbers: np.ndarray) -> list[str]:
    """Eleven characters of YouTube's alphabet for each number."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    shifts = np.arange(0, 66, 6, dtype=np.uint64)
    letters = ALPHABET[(mixed[:, None] >> shifts) & np.uint64(63)]
    return [bytes(row).decode() for row in letters]


def _captions(rng: np.random.Generator, count: int) -> list[str]:
    def drawn(words: list[str]) -> list[str]:
        return [words[index] for index in rng.integers(0, len(words), count).tolist()]

    slots = [LISTS[name] for name in ("adjective", "noun", "verb", "place", "adjective", "noun")]
    clauses = [
        [
            f"a {a} {b} {c} {d} a {e} {f}"
            for a, b, c, d, e, f in zip(*map(drawn, slots), strict=True)
        ]
        for _ in range(2)
    ]
    common, medium, foreign = drawn(COMMON), drawn(MEDIUM), drawn(FOREIGN)
    kinds = rng.integers(0, 1000, count).tolist()
    return [
        _caption(kind, *parts)
        for kind, *parts in zip(kinds, *clauses, common, medium, foreign, strict=True)
    ]


def _caption(kind: int, one: str, two: str, common: str, medium: str, foreign: str) -> str:
    """One caption; `kind`, of 1,000, says what it is like."""
    if kind < 20:
        return common
    if kind < 110:
        return f"{medium} {one[2:]}"
    if kind < 120:
        return foreign
    if kind < 130:
        return f"{one} www.{two.split()[1]}.com"
    if kind < 160:
        return f"{one} and {one}"
    if kind < 200:
        return one[:14]
    if kind < 203:
        return " and ".join([one, two] * 8)
    if kind < 500:
        return f"{one} and {two}"
    if kind < 505:
        return f' "{one}" '
    return one


def _malformed(kind: int, video: str, start: int, caption: str) -> str:
    """A row that ends before it starts, or is no JSON."""
    if kind:
        return f'{{"YoutubeID": "{video}", "Caption": "{caption[:20]}\n'
    ends = f'"Start_timestamp": "{_timestamp(start)}", "End_timestamp": "{_timestamp(start)}"'
    scores = '"UMT_Score": 0.4, "Aesthetic_Score": 4.0'
    text = json.dumps(caption, allow_nan=False)
    return f'{{"YoutubeID": "{video}", {ends}, "Caption": {text}, {scores}}}\n'


def _timestamp(millis: int) -> str:
    """Milliseconds as HH:MM:SS.mmm."""
    seconds, rest = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


if __name__ == "__main__":
    main()
