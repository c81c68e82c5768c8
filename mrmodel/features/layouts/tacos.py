"""TACoS as CG-DETR and UniVTG released it; query files have no ``qid`` in front."""

from mrmodel.features.layouts.base import Layout, clip, clip_text, slowfast

LAYOUT = Layout(
    title="TACoS, SlowFast and CLIP (CG-DETR, UniVTG)",
    clip_len_s=2.0,
    datasets=("tacos",),
    streams=(
        slowfast("slowfast_features", "vid_slowfast"),
        clip("clip_features", "vid_clip"),
        clip_text("clip_text_features", "txt_clip"),
    ),
)
