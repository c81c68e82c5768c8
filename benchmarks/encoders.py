"""The embedded encoders: how fast, and how well pictures find their sentences without training.

Run ``python -m benchmarks.encoders [--videos N] [--pixels 160,192] [--frames 1,2] [--json]``.
Videos are rendered like the sample corpus, from a seed that no stage of the pipeline uses. For each
picture size and number of frames a clip: clips a CPU second with decoding, AUC and HIT@1 of clips
inside their video for its queries, and the retrieval of 150 sprites on a grey wall by their phrase.
For motion: the accuracy of a linear probe that names the action (8 of them), cross-validated over
videos. It is a toy domain: these numbers compare settings, they do not measure video understanding.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from mrmodel.encoders.base import VideoEncoder
from mrmodel.encoders.builtin import AlignedTextEncoder, AlignedVideoEncoder
from mrmodel.encoders.motion import MotionEncoder
from mrmodel.synthetic.annotations import draw_queries
from mrmodel.synthetic.script import VideoPlan, plan_video
from mrmodel.synthetic.sprites import sprite, subjects
from mrmodel.synthetic.video_writer import PictureFormat, render_video
from mrmodel.synthetic.vocabulary import ACTIONS
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling

SEED, DURATION_S, CLIP_LEN_S = 999, 60.0, 2.0
QUERIES_PER_VIDEO, FOLDS, PROBE_STEPS = 5, 4, 250
PICTURE = PictureFormat(256, 192, 5, 26)
TEXT_ENCODER = AlignedTextEncoder()


def main() -> None:
    """Render, measure, print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=44)
    parser.add_argument("--pixels", default="192")
    parser.add_argument("--frames", default="1")
    parser.add_argument("--json", action="store_true", help="one JSON line a setting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plans = [
            plan_video(f"bench{index:03d}", "train", SEED, DURATION_S)
            for index in range(options.videos)
        ]
        videos = {plan: Path(folder) / f"{plan.vid}.mp4" for plan in plans}
        for plan, path in videos.items():
            render_video(plan, PICTURE, path)
        show(measure_text(plans), options.json)
        show(measure_motion(videos), options.json)
        for pixels in map(int, options.pixels.split(",")):
            for frames in map(int, options.frames.split(",")):
                show(measure_aligned(videos, pixels, frames), options.json)


def show(figures: dict[str, Any], as_json: bool) -> None:
    """Print one line."""
    rounded = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in figures.items()
    }
    print(
        json.dumps(rounded, allow_nan=False)
        if as_json
        else ", ".join(f"{k} {v}" for k, v in rounded.items())
    )


def measure_text(plans: list[VideoPlan]) -> dict[str, Any]:
    """Texts a CPU second, all queries of the videos at once."""
    encoder = TEXT_ENCODER
    encoder.encode_texts(["warm up"])
    texts = [query.row["query"] for plan in plans for query in queries_of(plan)]
    start = time.process_time()
    encoder.encode_texts(texts)
    return {
        "stream": encoder.name,
        "texts": len(texts),
        "texts_per_s": len(texts) / (time.process_time() - start),
    }


def measure_motion(videos: dict[VideoPlan, Path]) -> dict[str, Any]:
    """Speed of the motion stream and the accuracy of the action probe."""
    encoder = MotionEncoder()
    rows, speed = encode(encoder, videos)
    labels = [[action_in(plan, clip) for clip in range(len(rows[plan]))] for plan in videos]
    return {"stream": encoder.name, **speed, "action_accuracy": probe(list(rows.values()), labels)}


def measure_aligned(videos: dict[VideoPlan, Path], pixels: int, frames: int) -> dict[str, Any]:
    """Speed of the aligned stream and its zero-shot retrieval."""
    encoder = AlignedVideoEncoder()
    encoder.sampling = FrameSampling(frames, (pixels, pixels), "middle", "bicubic")
    encoder.encode_clips(np.zeros((1, frames, pixels, pixels, 3), np.uint8))
    rows, speed = encode(encoder, videos)
    return {
        "stream": encoder.name,
        "pixels": pixels,
        "frames": frames,
        **speed,
        **query_figures(rows),
        **sprite_figures(encoder),
    }


def encode(
    encoder: VideoEncoder, videos: dict[VideoPlan, Path]
) -> tuple[dict[VideoPlan, np.ndarray], dict[str, float]]:
    """Rows by video, and clips a CPU second of decoding, encoding and both."""
    rows, decoding, encoding = {}, 0.0, 0.0
    for plan, path in videos.items():
        start = time.process_time()
        clips = [clip.frames for clip in FrameSource(path).clips(CLIP_LEN_S, encoder.sampling)]
        middle = time.process_time()
        rows[plan] = encoder.encode_clips(np.stack(clips))
        decoding += middle - start
        encoding += time.process_time() - middle
    count = sum(map(len, rows.values()))
    return rows, {
        "decode_clips_per_s": count / decoding,
        "encode_clips_per_s": count / encoding,
        "clips_per_s": count / (decoding + encoding),
    }


def query_figures(rows: dict[VideoPlan, np.ndarray]) -> dict[str, float]:
    """Zero-shot ranking of a video's clips by its queries, mean over queries."""
    areas, hits = [], []
    for plan, clips in rows.items():
        for query in queries_of(plan):
            (text,) = TEXT_ENCODER.encode_texts([query.row["query"]])
            scores = clips @ text[0]
            relevant = np.isin(np.arange(len(clips)), query.row["relevant_clip_ids"])
            areas.append(area_under_curve(scores[relevant], scores[~relevant]))
            hits.append(relevant[scores.argmax()])
    return {
        "queries": len(areas),
        "clip_auc": float(np.mean(areas)),
        "clip_auc_se": float(np.std(areas) / len(areas) ** 0.5),
        "hit1": float(np.mean(hits)),
    }


def sprite_figures(encoder: AlignedVideoEncoder) -> dict[str, float]:
    """Retrieval among all sprites, each before a grey wall, by its phrase."""
    names = subjects()
    size = encoder.sampling.size or (0, 0)
    clips = [
        np.stack([wall_with(subject.name, size)] * encoder.sampling.frames_per_clip)
        for subject in names
    ]
    rows = encoder.encode_clips(np.stack(clips))
    texts = TEXT_ENCODER.encode_texts([subject.phrase for subject in names])
    scores = np.stack([text[0] for text in texts]) @ rows.T
    same = np.eye(len(names), dtype=bool)
    rank = (scores > scores.diagonal()[:, None]).sum(axis=1)
    return {
        "sprites": len(names),
        "sprite_auc": area_under_curve(scores[same], scores[~same]),
        "sprite_r1": float((rank == 0).mean()),
        "sprite_r5": float((rank < 5).mean()),
    }


def wall_with(name: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: the sprite, 0.73 of the picture, before grey."""
    picture = sprite(name)
    scale = 0.73 * min(size) / max(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size])
    wall = Image.new("RGB", size, (140, 150, 160))
    corner = (size[0] - picture.width) // 2, (size[1] - picture.height) // 2
    wall.paste(picture, corner, picture)
    return np.asarray(wall)


def probe(rows: list[np.ndarray], labels: list[list[str | None]]) -> float:
    """Accuracy of a linear classifier of the labelled clips, folds split by video."""
    names = list(ACTIONS)
    inputs = torch.tensor(np.concatenate(rows))
    inputs = inputs / (inputs.norm(dim=1, keepdim=True) + 1e-5)
    wanted = torch.tensor([names.index(a) if a else -1 for video in labels for a in video])
    fold = torch.cat([torch.full((len(video),), i % FOLDS) for i, video in enumerate(labels)])
    right = 0
    for index in range(FOLDS):
        seen, unseen = (fold != index) & (wanted >= 0), (fold == index) & (wanted >= 0)
        mean, spread = inputs[seen].mean(0), inputs[seen].std(0) + 1e-4
        torch.manual_seed(0)
        layer = torch.nn.Linear(inputs.shape[1], len(names))
        optimiser = torch.optim.AdamW(layer.parameters(), 0.03, weight_decay=0.03)
        for _ in range(PROBE_STEPS):
            optimiser.zero_grad()
            logits = layer((inputs[seen] - mean) / spread)
            torch.nn.functional.cross_entropy(logits, wanted[seen]).backward()
            optimiser.step()
        found = layer((inputs[unseen] - mean) / spread).argmax(dim=1)
        right += int((found == wanted[unseen]).sum())
    return right / int((wanted >= 0).sum())


def action_in(plan: VideoPlan, clip: int) -> str | None:
    """The action of a clip that lies within one shot, its subject there all the time."""
    start, end = clip * CLIP_LEN_S, (clip + 1) * CLIP_LEN_S
    for shot in plan.shots:
        first, last = shot.visible_s
        first = max(first, shot.start_s + shot.crossfade_s / 2) + 0.4
        if shot.topic is not None and first <= start and end <= min(last - 0.4, shot.end_s):
            return shot.topic.action
    return None


def queries_of(plan: VideoPlan) -> list[Any]:
    """The queries that the corpus would ask about a video."""
    return draw_queries(plan, QUERIES_PER_VIDEO, CLIP_LEN_S, set())


def area_under_curve(matching: np.ndarray, other: np.ndarray) -> float:
    """Chance that a matching pair scores above another one; ties count half."""
    first, second = matching[:, None], other[None]
    return float((first > second).mean() + 0.5 * (first == second).mean())


if __name__ == "__main__":
    main()
