"""Zero-shot retrieval: clips whose embeddings are close to that of the sentence.

Needs encoders with a joint space of clips and sentences. It is the baseline for training, and
answers about videos that no model was trained for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrmodel.features.keys import text_key
from mrmodel.features.store import Half, RowTable
from mrmodel.predict.postprocess import Decoded, in_video_time
from mrmodel.types import Annotation, Prediction

Vector = NDArray[np.float64]

# What takes the place of a model folder.
ZERO_SHOT_MODEL = "zero-shot"
# Of `evaluate.zero_shot_std` in the presets.
THRESHOLD_STD = 0.25


def predict_zero_shot(
    annotations: list[Annotation], video: RowTable, text: RowTable, threshold_std: float
) -> list[Prediction]:
    """Predictions from cosine similarity alone.

    Args:
        annotations: the queries; their ground truth is ignored.
        video: clip vectors by video id.
        text: rows by text key; row 0 is the sentence vector, in the space of the clip vectors.
        threshold_std: a window is a run of clips above mean + this many standard deviations.

    Raises:
        ValueError: the two stores have different widths, so there is no joint space.
    """
    if video.dim != text.dim:
        raise ValueError(f"{video.name} has {video.dim} channels, {text.name} has {text.dim}")
    predictions = []
    for annotation in annotations:
        clips = video.gather([annotation.vid])[0][0]
        sentence = text.gather([text_key(annotation.query)], max_rows=1)[0][0, 0]
        clip_len_s = video.clip_len_s or annotation.duration / len(clips)
        answer = answer_by_similarity(clips, sentence, clip_len_s, threshold_std)
        start_s = video.resolve([annotation.vid]).start_s.tolist()
        (answer,) = in_video_time([answer], start_s, clip_len_s)
        predictions.append(Prediction(annotation.qid, annotation.query, annotation.vid, *answer))
    return predictions


def answer_by_similarity(
    clips: Half, sentence: Half, clip_len_s: float, threshold_std: float
) -> Decoded:
    """Windows and clip scores of one query, from the first clip on.

    Args:
        clips: (L, D) clip vectors.
        sentence: (D,) sentence vector.
        clip_len_s: see `similarity_windows`.
        threshold_std: see there.
    """
    similarity = _unit(clips) @ _unit(sentence)
    windows = similarity_windows(similarity, clip_len_s, threshold_std)
    return Decoded(windows, tuple(similarity.tolist()))


def similarity_windows(
    similarity: Vector, clip_len_s: float, threshold_std: float
) -> tuple[tuple[float, float, float], ...]:
    """Runs of clips above mean + `threshold_std` standard deviations, in seconds, best first.

    Args:
        similarity: (L,) similarity per clip.
        clip_len_s: seconds of a clip.
        threshold_std: see above. The most similar clip is always included, so there is a window.

    Returns:
        (start, end, mean similarity of the run), by descending score.
    """
    above = similarity > similarity.mean() + threshold_std * similarity.std()
    above[similarity.argmax()] = True
    edges = np.flatnonzero(np.diff(above.astype(np.int8), prepend=0, append=0))
    runs = edges.reshape(-1, 2)
    scores = np.array([similarity[start:end].mean() for start, end in runs])
    order = np.argsort(-scores, kind="stable")
    return tuple(
        (float(runs[i, 0] * clip_len_s), float(runs[i, 1] * clip_len_s), float(scores[i]))
        for i in order
    )


def _unit(rows: Half) -> Vector:
    values = rows.astype(np.float64)
    unit: Vector = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-8)
    return unit
