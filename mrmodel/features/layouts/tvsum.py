"""TVSum: I3D as UMT released it, or SlowFast and CLIP (and BLIP-2); queries are video titles."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, slowfast

I3D = Layout(
    title="TVSum, I3D of frames and flow (UMT, QD-DETR, CG-DETR)",
    clip_len_s=2.0,
    datasets=("tvsum",),
    streams=(
        ImportedStream("i3d.video2048", "video", 2048, ("video_features",), parts=("_rgb", "_opt")),
        clip_text("query_features"),
    ),
)
SLOWFAST_CLIP = Layout(
    title="TVSum, SlowFast, CLIP and BLIP-2 (VideoLights)",
    clip_len_s=2.0,
    datasets=("tvsum",),
    streams=(
        slowfast("sf_features", "slowfast_features"),
        clip("clip_features"),
        ImportedStream("blip2.video768", "video", 768, ("blip_video_features", "blip_features")),
        clip_text("clip_text_features", "query_features"),
        ImportedStream("blip2.text768", "text", 768, ("blip_text_features",)),
    ),
)
