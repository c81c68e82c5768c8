"""InternVideo2's own grounding recipe: VideoCLIP-6B clips and LLaMA tokens, ``.pt`` files."""

from mrmodel.features.layouts.base import ImportedStream, Layout


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


QVHIGHLIGHTS = _layout(
    "QVHighlights, InternVideo2 VideoCLIP-6B (CG-DETR recipe)",
    "qvhighlights",
    2.0,
    "qvhighlight_internvideo2_videoclip_6b_w2s",
    "qvhighlight_internvideo2_llama_text_feature",
)
CHARADES = _layout(
    "Charades-STA, InternVideo2 VideoCLIP-6B (CG-DETR recipe)",
    "charades",
    1.0,
    "charade_sta_internvideo2_videoclip_6b_w1s",
    "charade_sta_internvideo2_llama_text_feature",
)
