"""QVHighlights with audio, as UMT released it and QD-DETR uses it."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, slowfast

LAYOUT = Layout(
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
