"""QVHighlights as VideoLights released it (11 GB): Moment-DETR's archive, and BLIP-2."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, slowfast

# Paraphrased queries are files of their own; they are read where the annotations have their ids.
LAYOUT = Layout(
    title="QVHighlights, SlowFast, CLIP and BLIP-2 (VideoLights)",
    clip_len_s=2.0,
    datasets=("qvhighlights",),
    streams=(
        slowfast("slowfast_features"),
        clip("clip_features"),
        ImportedStream("blip2.video768", "video", 768, ("blip_video_features",)),
        clip_text("clip_text_features"),
        ImportedStream(
            "blip2.text768", "text", 768, ("blip_aug_text_features_openai", "blip_text_features")
        ),
    ),
)
