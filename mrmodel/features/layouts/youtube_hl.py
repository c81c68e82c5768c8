"""YouTube Highlights: SlowFast and CLIP (CG-DETR's ``youtube_uni``), or I3D and audio of UMT."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, slowfast

SLOWFAST_CLIP = Layout(
    title="YouTube Highlights, SlowFast and CLIP (CG-DETR, UniVTG)",
    clip_len_s=1.0,
    datasets=("youtube_hl",),
    streams=(slowfast("vid_slowfast"), clip("vid_clip"), clip_text("txt_clip")),
)
# One row for each labelled clip; UMT reads no query.
I3D = Layout(
    title="YouTube Highlights, I3D of frames and flow, and audio (UMT)",
    clip_len_s=1.0,
    datasets=("youtube_hl",),
    streams=(
        ImportedStream("i3d.video2048", "video", 2048, ("video_features",), parts=("_rgb", "_opt")),
        ImportedStream("pann.audio2048", "video", 2048, ("audio_features",)),
    ),
)
