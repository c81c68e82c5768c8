"""QVHighlights as Moment-DETR released it (``moment_detr_features.tar.gz``, 8 GB)."""

from mrmodel.features.layouts.base import Layout, clip, clip_text, slowfast

# Queries of the speech captions of its pre-training lie in a folder for each video.
LAYOUT = Layout(
    title="QVHighlights, SlowFast and CLIP (Moment-DETR, QD-DETR, CG-DETR)",
    clip_len_s=2.0,
    datasets=("qvhighlights",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        clip_text("clip_text_features", more=("clip_sub_features",)),
    ),
)
