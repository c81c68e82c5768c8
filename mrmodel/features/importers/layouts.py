"""Layouts of published feature archives: the folder of each stream, and the ids of its files.

The rules for ids are the same in all layouts (`mrmodel.features.importers.archive`); a layout only
declares what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

VIDEO_ARRAYS = ("features",)
# States of all tokens if present, else the single sentence vector; SG-DETR has `features`.
TEXT_ARRAYS = ("last_hidden_state", "token", "pooler_output", "text", "features")


@dataclass(frozen=True, slots=True)
class ImportedStream:
    """One feature stream of an archive.

    Attributes:
        name: of the stream, as in models and in `mrmodel weights import`.
        modality: whether ids are those of videos or of queries; audio counts as video.
        dim: channels of a row.
        folders: alternative paths below the archive's root; the first that exists is read. A
            ``.hdf5`` path is a file with one data set per id, which UniVTG wrote normalised.
        more: further folders whose files are read as well.
        parts: name endings of the files of one id, whose channels are concatenated in this order.
        words: rows are looked up in a file of word vectors; the archive has none.
        by_video: the file of a text may have the id of its video, if that has no other text.
    """

    name: str
    modality: Literal["video", "text"]
    dim: int
    folders: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)
    words: bool = False
    by_video: bool = False

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the array within a file; the first that exists is read."""
        return VIDEO_ARRAYS if self.modality == "video" else TEXT_ARRAYS


@dataclass(frozen=True, slots=True)
class Layout:
    """A published archive.

    Attributes:
        title: readable description.
        clip_len_s: seconds of a row; None where archives of several data sets look like this.
        streams: what it holds, in the order in which the published systems concatenate them.
        datasets: names of its data sets; empty where the layout fits any data set.
    """

    title: str
    clip_len_s: float | None
    streams: tuple[ImportedStream, ...]
    datasets: tuple[str, ...] = ()


def slowfast(*folders: str) -> ImportedStream:
    """SlowFast R50 8x8 of the HERO extractor."""
    return ImportedStream("slowfast.video2304", "video", 2304, folders)


def clip(*folders: str) -> ImportedStream:
    """CLIP ViT-B/32 image vectors."""
    return ImportedStream("clip_b32.video512", "video", 512, folders)


def clip_text(*folders: str, more: tuple[str, ...] = ()) -> ImportedStream:
    """CLIP ViT-B/32 states of all tokens, before the text projection."""
    return ImportedStream("clip_b32.text512", "text", 512, folders, more)


def glove() -> ImportedStream:
    """GloVe 6B vectors of the words, looked up in a file that the user names."""
    return ImportedStream("glove.text300", "text", 300, words=True)


# QVHighlights as Moment-DETR released it (``moment_detr_features.tar.gz``, 8 GB).
# Queries from ASR captions (pre-training) are in one folder per video.
MOMENT_DETR = Layout(
    title="QVHighlights, SlowFast and CLIP (Moment-DETR, QD-DETR, CG-DETR)",
    clip_len_s=2.0,
    datasets=("qvhighlights",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        clip_text("clip_text_features", more=("clip_sub_features",)),
    ),
)


# QVHighlights with audio, as UMT released it and QD-DETR uses it.
MOMENT_DETR_AUDIO = Layout(
    title="QVHighlights, SlowFast, CLIP and PANN audio (UMT, QD-DETR)",
    clip_len_s=2.0,
    datasets=("qvhighlights",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        ImportedStream(
            "pann.audio2048", "video", 2048, ("pann_features", "umt_pann_features", "pann")
        ),
        clip_text("umt_clip_text_features", "clip_text_features"),
    ),
)


# QVHighlights as VideoLights released it (11 GB): Moment-DETR's archive, and BLIP-2.
# Paraphrased queries are separate files, read where the annotations have their ids. The captions of
# its archive for pre-training (27.5 GB) are in folders of their own.
VIDEO_LIGHTS = Layout(
    title="QVHighlights, SlowFast, CLIP and BLIP-2 (VideoLights)",
    clip_len_s=2.0,
    datasets=("qvhighlights",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        ImportedStream("blip2.video768", "video", 768, ("blip_video_features",)),
        clip_text("clip_text_features", more=("clip_query_features",)),
        ImportedStream(
            "blip2.text768",
            "text",
            768,
            ("blip_aug_text_features_openai", "blip_text_features"),
            more=("blip_query_features",),
        ),
    ),
)


# Its archive of Charades-STA has the same folders, with a row for each second.
CHARADES_VIDEO_LIGHTS = replace(
    VIDEO_LIGHTS,
    title="Charades-STA, SlowFast, CLIP and BLIP-2 (VideoLights)",
    clip_len_s=1.0,
    datasets=("charades",),
)


def _layout(title: str, dataset: str, clip_len_s: float, video: str, text: str) -> Layout:
    return Layout(
        title=title,
        clip_len_s=clip_len_s,
        datasets=(dataset,),
        streams=(
            ImportedStream("iv2clip_6b.video768", "video", 768, (video,)),
            ImportedStream("iv2clip_llama.text4096", "text", 4096, (text,)),
        ),
    )


# InternVideo2's own grounding recipe: VideoCLIP-6B clips and LLaMA tokens, ``.pt`` files.
INTERNVIDEO2_QVHIGHLIGHTS = _layout(
    "QVHighlights, InternVideo2 VideoCLIP-6B (CG-DETR recipe)",
    "qvhighlights",
    2.0,
    "qvhighlight_internvideo2_videoclip_6b_w2s",
    "qvhighlight_internvideo2_llama_text_feature",
)
INTERNVIDEO2_CHARADES = _layout(
    "Charades-STA, InternVideo2 VideoCLIP-6B (CG-DETR recipe)",
    "charades",
    1.0,
    "charade_sta_internvideo2_videoclip_6b_w1s",
    "charade_sta_internvideo2_llama_text_feature",
)


# Charades-STA as CG-DETR released it (33 GB): SlowFast and CLIP, or VGG and GloVe.
CHARADES_SLOWFAST_CLIP = Layout(
    title="Charades-STA, SlowFast and CLIP (CG-DETR)",
    clip_len_s=1.0,
    datasets=("charades",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        clip_text("clip_text_features"),
    ),
)
# A row is four frames at 24 fps.
CHARADES_VGG = Layout(
    title="Charades-STA, VGG (CG-DETR), with optical flow (UMT) and GloVe",
    clip_len_s=1 / 6,
    datasets=("charades",),
    streams=(
        ImportedStream(
            "vgg.video4096", "video", 4096, ("vgg_features/rgb_features", "rgb_features")
        ),
        ImportedStream(
            "vgg_flow.video4096", "video", 4096, ("vgg_features/opt_features", "opt_features")
        ),
        glove(),
    ),
)


# TACoS as CG-DETR and UniVTG released it; query files have no ``qid`` in front.
TACOS = Layout(
    title="TACoS, SlowFast and CLIP (CG-DETR, UniVTG)",
    clip_len_s=2.0,
    datasets=("tacos",),
    streams=(
        slowfast("slowfast_features", "vid_slowfast"),
        clip("clip_features", "vid_clip"),
        clip_text("clip_text_features", "txt_clip"),
    ),
)


# TVSum: I3D as UMT released it, or SlowFast and CLIP (and BLIP-2); queries are video titles.
TVSUM_I3D = Layout(
    title="TVSum, I3D of frames and flow (UMT, QD-DETR, CG-DETR)",
    clip_len_s=2.0,
    datasets=("tvsum",),
    streams=(
        ImportedStream("i3d.video2048", "video", 2048, ("video_features",), parts=("_rgb", "_opt")),
        clip_text("query_features"),
    ),
)
# VideoLights' scripts and its extractor name the folders with the network at the end.
BLIP2_TVSUM = ("blip_video_features", "blip_features", "video_features_blip")
TVSUM_SLOWFAST_CLIP = Layout(
    title="TVSum, SlowFast, CLIP and BLIP-2 (VideoLights)",
    clip_len_s=2.0,
    datasets=("tvsum",),
    streams=(
        slowfast("sf_features", "slowfast_features"),
        clip("clip_features"),
        ImportedStream("blip2.video768", "video", 768, BLIP2_TVSUM),
        clip_text("clip_text_features", "query_features"),
        ImportedStream("blip2.text768", "text", 768, ("blip_text_features", "query_features_blip")),
    ),
)


# YouTube Highlights: SlowFast and CLIP (CG-DETR's ``youtube_uni``), or I3D and audio of UMT.
YOUTUBE_HL_SLOWFAST_CLIP = Layout(
    title="YouTube Highlights, SlowFast and CLIP (CG-DETR, UniVTG)",
    clip_len_s=1.0,
    datasets=("youtube_hl",),
    streams=(slowfast("vid_slowfast"), clip("vid_clip"), clip_text("txt_clip")),
)
# One row for each labelled clip; UMT reads no query.
YOUTUBE_HL_I3D = Layout(
    title="YouTube Highlights, I3D of frames and flow, and audio (UMT)",
    clip_len_s=1.0,
    datasets=("youtube_hl",),
    streams=(
        ImportedStream("i3d.video2048", "video", 2048, ("video_features",), parts=("_rgb", "_opt")),
        ImportedStream("pann.audio2048", "video", 2048, ("audio_features",)),
    ),
)


# SG-DETR's archive of one data set; the authors' configurations name several folders. The texts of
# TVSum and YouTube Highlights are named by video.
SG_DETR = Layout(
    title="SG-DETR, features of one data set (InternVideo2 stage-2 1B)",
    clip_len_s=None,
    # Not YouTube Highlights: its archive has clips of 2 s, the converted data set those of 1 s.
    datasets=("qvhighlights", "charades", "tacos", "tvsum"),
    streams=(
        ImportedStream(
            "internvideo2_1b.video512",
            "video",
            512,
            ("video", "custom_features/video", "video_updated", "custom_features/video_updated"),
        ),
        ImportedStream(
            "internvideo2_1b.text512",
            "text",
            512,
            (
                "custom_text",
                "custom_features/custom_text",
                "custom_text_fixed",
                "custom_features/custom_text_fixed",
            ),
            by_video=True,
        ),
    ),
)


# A data set's folder of lighthouse's ``features``: one folder per stream, the same for all sets.
# lighthouse concatenates CLIP before SlowFast.
LIGHTHOUSE = Layout(
    title="lighthouse, features of one data set",
    clip_len_s=None,
    streams=(
        clip("clip"),
        slowfast("slowfast"),
        ImportedStream("resnet152.video2048", "video", 2048, ("resnet",)),
        ImportedStream("i3d.video2048", "video", 2048, ("i3d",), parts=("_rgb", "_opt")),
        ImportedStream("pann.audio2048", "video", 2048, ("pann",)),
        clip_text("clip_text", more=("clip_text_subs_train",)),
        glove(),
    ),
)


# A data set's folder of UniVTG's ``data``: files, or one HDF5 file per stream.
UNIVTG = Layout(
    title="UniVTG, features of one data set",
    clip_len_s=None,
    streams=(
        slowfast("vid_slowfast", "h5py/vid_slowfast.hdf5"),
        clip("vid_clip", "h5py/vid_clip.hdf5"),
        clip_text("txt_clip", "h5py/txt_clip.hdf5"),
    ),
)
