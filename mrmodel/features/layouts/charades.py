"""Charades-STA as CG-DETR released it (33 GB): SlowFast and CLIP, or VGG and GloVe."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, glove, slowfast

SLOWFAST_CLIP = Layout(
    title="Charades-STA, SlowFast and CLIP (CG-DETR)",
    clip_len_s=1.0,
    datasets=("charades",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        clip_text("clip_text_features"),
    ),
)
# Four frames of 24 a second make a row.
VGG = Layout(
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
