"""Miniatures of published feature archives, made by us: two videos, three queries.

Paths, names of arrays and types are those of section 3 of the design of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrmodel.types import Annotation

Array = NDArray[Any]
# Stream -> id -> the rows that its files hold.
Expected = dict[str, dict[str, Array]]

VIDEOS = ("s13-d21", "RoripwjYFp8_60.0_210.0")
QUERIES = {"7": "a man walks", "8": "the dog  barks", "9": "a woman sings"}
ROWS = [
    Annotation(int(qid), query, VIDEOS[int(qid) % 2], 150.0, ((2.0, 4.0),))
    for qid, query in QUERIES.items()
]


def values(name: str, dim: int, count: int = 4, dtype: Any = np.float16) -> Array:
    """(count, dim) rows that depend on the name."""
    seed = sum(ord(letter) * place for place, letter in enumerate(name, start=1))
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def npz(path: Path, compressed: bool = False, **arrays: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, allow_pickle=False, **arrays)


def npy(path: Path, array: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=False)


def videos(
    folder: Path, dim: int, dtype: Any = np.float16, compressed: bool = False
) -> dict[str, Array]:
    """``{vid}.npz`` with the array `features`."""
    rows = {vid: values(f"{folder.name}{vid}", dim, dtype=dtype) for vid in VIDEOS}
    for vid, array in rows.items():
        npz(folder / f"{vid}.npz", compressed, features=array)
    return rows


def video_arrays(folder: Path, dim: int) -> dict[str, Array]:
    """``{vid}.npy``."""
    rows = {vid: values(f"{folder.name}{vid}", dim, dtype=np.float32) for vid in VIDEOS}
    for vid, array in rows.items():
        npy(folder / f"{vid}.npy", array)
    return rows


def two_halves(folder: Path) -> dict[str, Array]:
    """``{vid}_rgb.npy`` and ``{vid}_opt.npy``, of which the latter is a row shorter."""
    rows = {}
    for vid in VIDEOS:
        rgb, flow = values(f"r{vid}", 1024, 5, np.float32), values(f"o{vid}", 1024, 4, np.float32)
        npy(folder / f"{vid}_rgb.npy", rgb)
        npy(folder / f"{vid}_opt.npy", flow)
        rows[vid] = np.concatenate([rgb[:4], flow], axis=1)
    return rows


def texts(
    folder: Path, dim: int, prefix: str = "qid", token: str = "last_hidden_state"
) -> dict[str, Array]:
    """``{prefix}{qid}.npz`` with token states and the vector of the sentence."""
    rows = {qid: values(f"{folder.name}{qid}", dim, 3 + int(qid) % 3) for qid in QUERIES}
    for qid, array in rows.items():
        pooled = {"last_hidden_state": "pooler_output", "token": "text"}[token]
        npz(folder / f"{prefix}{qid}.npz", **{token: array, pooled: array[0]})
    return rows


def moment_detr(root: Path) -> Expected:
    written = {
        "slowfast.video2304": videos(root / "slowfast_features", 2304),
        "clip_b32.video512": videos(root / "clip_features", 512),
        "clip_b32.text512": texts(root / "clip_text_features", 512),
    }
    # A speech caption of the pre-training set, which the annotations do not have.
    npz(root / f"clip_sub_features/{VIDEOS[1]}/12.npz", last_hidden_state=values("sub", 512))
    return written


def moment_detr_audio(root: Path) -> Expected:
    return {
        "slowfast.video2304": videos(root / "slowfast_features", 2304),
        "clip_b32.video512": videos(root / "clip_features", 512),
        "pann.audio2048": video_arrays(root / "pann_features", 2048),
        "clip_b32.text512": texts(root / "umt_clip_text_features", 512),
    }


def internvideo2(root: Path, video: str, text: str) -> Expected:
    """One tensor a file, bare or in a dict; bfloat16 occurs."""
    clips = {vid: values(vid, 768, dtype=np.float32) for vid in VIDEOS}
    tokens = {qid: values(qid, 4096) for qid in QUERIES}
    (root / video).mkdir(parents=True)
    (root / text).mkdir(parents=True)
    first, second = VIDEOS
    torch.save(torch.from_numpy(clips[first]), root / video / f"{first}.pt")
    torch.save({"features": torch.from_numpy(clips[second])}, root / video / f"{second}.pt")
    for qid, array in tokens.items():
        tensor = torch.from_numpy(array)
        if qid == "7":
            tensor = tensor.bfloat16()
            tokens[qid] = tensor.float().numpy()
        torch.save(tensor, root / text / f"qid{qid}.pt")
    return {"iv2clip_6b.video768": clips, "iv2clip_llama.text4096": tokens}


def internvideo2_qvhighlights(root: Path) -> Expected:
    return internvideo2(
        root,
        "qvhighlight_internvideo2_videoclip_6b_w2s",
        "qvhighlight_internvideo2_llama_text_feature",
    )


def internvideo2_charades(root: Path) -> Expected:
    return internvideo2(
        root,
        "charade_sta_internvideo2_videoclip_6b_w1s",
        "charade_sta_internvideo2_llama_text_feature",
    )


def unit(rows: Array) -> Array:
    """float32 rows of length 1."""
    scaled: Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def sg_detr(root: Path) -> Expected:
    """Tensors that require gradients; texts of 40 rows with and without an axis of the batch."""
    folder = root / "custom_features/video"
    folder.mkdir(parents=True)
    clips = {vid: unit(values(vid, 512, 75, np.float32)) for vid in VIDEOS}
    for vid, rows in clips.items():
        torch.save(torch.from_numpy(rows).requires_grad_(), folder / f"{vid}.pt")
    texts = {qid: unit(values(qid, 512, 40, np.float32)) for qid in QUERIES}
    for qid, rows in texts.items():
        stored = rows[None] if qid == "8" else rows
        npz(root / f"custom_features/custom_text/{qid}.npz", features=stored)
    return {"internvideo2_1b.video512": clips, "internvideo2_1b.text512": texts}


def video_lights(root: Path) -> Expected:
    written = moment_detr(root)
    blip = root / "blip_aug_text_features_openai"
    written["blip2.video768"] = videos(root / "blip_video_features", 768, np.float32, True)
    written["blip2.text768"] = texts(blip, 768)
    npz(blip / "qid7_1.npz", last_hidden_state=values("paraphrase", 768))
    # The archive for pre-training has its captions, and those of val, in a folder of another name.
    moved = min(blip.glob("qid8*.npz"))
    (root / "blip_query_features").mkdir()
    moved.rename(root / "blip_query_features" / moved.name)
    return written


def charades_video_lights(root: Path) -> Expected:
    return video_lights(root)


def charades_slowfast_clip(root: Path) -> Expected:
    return {
        "slowfast.video2304": videos(root / "slowfast_features", 2304),
        "clip_b32.video512": videos(root / "clip_features", 512),
        "clip_b32.text512": texts(root / "clip_text_features", 512),
    }


def charades_vgg(root: Path) -> Expected:
    return {
        "vgg.video4096": video_arrays(root / "vgg_features/rgb_features", 4096),
        "vgg_flow.video4096": video_arrays(root / "opt_features", 4096),
        "glove.text300": glove(root / "glove.6B.300d.txt"),
    }


def glove(path: Path) -> dict[str, Array]:
    """Vectors of some words; ``barks`` and ``sings`` are unknown."""
    words = ("a", "the", "man", "woman", "walks", "dog", "unused")
    vectors = {word: values(word, 300, 1, np.float32)[0].round(4) for word in words}
    path.write_text(
        "".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())
    )
    nothing = np.zeros(300, np.float32)
    return {
        qid: np.stack([vectors.get(word, nothing) for word in query.split()])
        for qid, query in QUERIES.items()
    }


def tacos(root: Path) -> Expected:
    """Query files without ``qid``; one video under the name of its camera."""
    written = {
        "slowfast.video2304": videos(root / "slowfast_features", 2304),
        "clip_b32.video512": videos(root / "vid_clip", 512),
        "clip_b32.text512": texts(root / "clip_text_features", 512, prefix=""),
    }
    folder = root / "slowfast_features"
    (folder / "s13-d21.npz").rename(folder / "s13-d21-cam-002.npz")
    return written


def tvsum_i3d(root: Path) -> Expected:
    return {
        "i3d.video2048": two_halves(root / "video_features"),
        "clip_b32.text512": texts(root / "query_features", 512, "", "token"),
    }


def tvsum_slowfast_clip(root: Path) -> Expected:
    return {
        "slowfast.video2304": videos(root / "sf_features", 2304),
        "clip_b32.video512": videos(root / "clip_features", 512),
        "blip2.video768": videos(root / "blip_features", 768),
        "clip_b32.text512": texts(root / "query_features", 512, "", "token"),
    }


def youtube_hl_slowfast_clip(root: Path) -> Expected:
    return {
        "slowfast.video2304": videos(root / "vid_slowfast", 2304),
        "clip_b32.video512": video_arrays(root / "vid_clip", 512),
        "clip_b32.text512": texts(root / "txt_clip", 512, prefix=""),
    }


def youtube_hl_i3d(root: Path) -> Expected:
    return {
        "i3d.video2048": two_halves(root / "video_features"),
        "pann.audio2048": video_arrays(root / "audio_features", 2048),
    }


def lighthouse(root: Path) -> Expected:
    return {
        "clip_b32.video512": videos(root / "clip", 512),
        "slowfast.video2304": videos(root / "slowfast", 2304),
        "resnet152.video2048": videos(root / "resnet", 2048, np.float32),
        "i3d.video2048": two_halves(root / "i3d"),
        "pann.audio2048": video_arrays(root / "pann", 2048),
        "clip_b32.text512": texts(root / "clip_text", 512),
    }


def univtg(root: Path) -> Expected:
    """SlowFast as files, the others as HDF5 of float32 rows that are normalised."""
    written = {"slowfast.video2304": videos(root / "vid_slowfast", 2304)}
    for file, stream, ids in (
        ("vid_clip", "clip_b32.video512", VIDEOS),
        ("txt_clip", "clip_b32.text512", [f"qid{qid}" for qid in QUERIES]),
    ):
        path = root / "h5py" / f"{file}.hdf5"
        path.parent.mkdir(exist_ok=True)
        rows = {name: values(name, 512, dtype=np.float32) for name in ids}
        rows = {n: v / np.linalg.norm(v, axis=1, keepdims=True) for n, v in rows.items()}
        with h5py.File(path, "w") as archive:
            for name, array in rows.items():
                archive.create_dataset(name, data=array)
        written[stream] = {name.removeprefix("qid"): array for name, array in rows.items()}
    return written


ARCHIVES: dict[str, Callable[[Path], Expected]] = {
    builder.__name__: builder
    for builder in (
        moment_detr,
        moment_detr_audio,
        video_lights,
        internvideo2_qvhighlights,
        internvideo2_charades,
        charades_slowfast_clip,
        charades_video_lights,
        charades_vgg,
        tacos,
        tvsum_i3d,
        tvsum_slowfast_clip,
        youtube_hl_slowfast_clip,
        youtube_hl_i3d,
        sg_detr,
        lighthouse,
        univtg,
    )
}
