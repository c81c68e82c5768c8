"""A data set's folder of lighthouse's ``features``: one folder a stream, the same for all sets."""

from mrmodel.features.layouts.base import ImportedStream, Layout, clip, clip_text, glove, slowfast

# lighthouse concatenates CLIP before SlowFast.
LAYOUT = Layout(
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
