"""Maps parameter names of published checkpoints to ours.

The rules of a model are applied in sequence to a published name. Modules that the published code
builds but never uses (the video head of the alignment loss, the second norm of VideoLights' fusion;
the text positions, alignment heads and training-only branches where they are switched off) have no
counterpart and are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mrmodel.errors import UnknownNameError

NameRules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

_SHARED: NameRules = (
    (r"^module\.", ""),
    (r"^input_vid_proj\.", "projections.video."),
    (r"^input_txt_proj\.", "projections.text."),
    (r"^txt_position_embed\.position_embeddings\.", "projections.text_positions.table."),
    (r"^txt_position_embed\.", "projections.text_positions."),
    (r"\.LayerNorm\.", ".norm."),
    (r"\.net\.1\.", ".linear."),
    (r"^class_embed\.", "heads.class_head."),
    (r"^span_embed\.", "heads.span_head."),
    (r"^contrastive_align_projection_", "heads.contrastive."),
    (r"^heads\.contrastive\.txt\.", "heads.contrastive.text."),
    (r"^transformer\.encoder\.layers\.", "encoder."),
    (r"^transformer\.", ""),
    (r"\.linear1\.", ".ffn.expand."),
    (r"\.linear2\.", ".ffn.contract."),
    (r"\.activation\.", ".ffn.activation."),
    (r"^(encoder\.\d+)\.self_attn\.", r"\1.attention."),
    # Published MLPs number only their Linear layers, ours also the ReLUs between them.
    (r"^([\w.]*(?:head|scale|embed))\.layers\.0\.", r"\1.0."),
    (r"^([\w.]*(?:head|scale|embed))\.layers\.1\.", r"\1.2."),
    (r"^([\w.]*(?:head|scale|embed))\.layers\.2\.", r"\1.4."),
)

_DAB: NameRules = (
    (r"^query_embed\.weight$", "anchors"),
    (r"^global_rep_token$", "token.state"),
    (r"^global_rep_pos$", "token.position"),
    (r"^saliency_proj1\.", "saliency_head.clip."),
    (r"^saliency_proj2\.", "saliency_head.token."),
    (r"^encoder\.(\d+)\.", r"encoder.layers.\1."),
    (r"^decoder\.ref_point_head\.", "decoder.query_position."),
    (r"^decoder\.ref_anchor_head\.", "decoder.width_scale."),
    (r"^decoder\.bbox_embed\.", "decoder.refinement."),
    (r"\.self_attn\.out_proj\.", ".self_output."),
    (r"\.cross_attn\.out_proj\.", ".cross_output."),
    (r"\.sa_", ".self_"),
    (r"\.ca_", ".cross_"),
    (r"_qpos_sine_proj\.", "_query_span."),
    (r"_qcontent_proj\.", "_query_content."),
    (r"_kcontent_proj\.", "_key_content."),
    (r"_qpos_proj\.", "_query_position."),
    (r"_kpos_proj\.", "_key_position."),
    (r"_v_proj\.", "_value."),
    (r"^(?=(?:token|encoder|decoder|heads|saliency_head)\.|anchors$)", "detr."),
)

RULES: dict[str, NameRules] = {
    "moment_detr": (
        *_SHARED,
        (r"^query_embed\.weight$", "queries"),
        (r"^saliency_proj\.", "saliency_head."),
        (r"^encoder\.norm\.", "encoder_norm."),
        (r"^decoder\.norm\.", "decoder_norm."),
        (r"^decoder\.layers\.", "decoder."),
        (r"\.self_attn\.", ".self_attention."),
        (r"\.multihead_attn\.", ".cross_attention."),
    ),
    "qd_detr": (
        *_SHARED,
        (r"^t2v_encoder\.layers\.(\d+)\.self_attn\.", r"text_to_video.\1.attention."),
        (r"^t2v_encoder\.layers\.", "text_to_video."),
        *_DAB,
    ),
    "video_lights": (
        (r"^module\.", ""),
        (r"\.conv1d\.", "."),
        (r"^transformer\.t2v_encoder\.layers\.", "fusion."),
        (r"^(fusion\.\d+\.)cross_attn_1\.", r"\1read_text."),
        (r"^(fusion\.\d+\.)cross_attn_2\.", r"\1read_video."),
        (r"^(fusion\.\d+\.)cross_attn_3\.", r"\1read_fused."),
        (r"^(fusion\.\d+\.)linear1\.", r"\1linear_text."),
        (r"^(fusion\.\d+\.)linear2\.", r"\1linear_video."),
        (r"^(fusion\.\d+\.)linear3\.", r"\1linear_fused."),
        (r"^(fusion\.\d+\.)linear4\.", r"\1ffn.expand."),
        (r"^(fusion\.\d+\.)linear5\.", r"\1ffn.contract."),
        (r"^(fusion\.\d+\.)norm1\.", r"\1norm_text."),
        (r"^(fusion\.\d+\.)norm2\.", r"\1norm_video."),
        (r"^(fusion\.\d+\.)norm3\.", r"\1norm_fused."),
        (r"^(fusion\.\d+\.)norm4\.", r"\1norm_ffn."),
        (r"^feature_refinement\.sim_w$", "refinement.similarity"),
        (r"^feature_refinement\.cor_v_w$", "refinement.correspondence"),
        (r"^feature_refinement\.cor_q_w$", "refinement.correspondence_scale"),
        (r"^feature_refinement\.word_to_sentence_pool\.weight$", "refinement.pooling"),
        (r"^feature_refinement\.", "refinement."),
        (r"^gru_extractor\.", "window_saliency."),
        (r"^saliency_proj_mr\.", "window_saliency.score."),
        *_SHARED,
        *_DAB,
    ),
}

_SG_DECODER = r"^detector\.decoder\."
_SG_CLASS, _SG_SPAN = r"^aux_det_head\.classification_head\.", r"^aux_det_head\.regression_head\."
RULES["sg_detr"] = (
    (r"^model\.", ""),
    (r"\.linear_mapper\.(\d+)\.mapper\.0\.", r".\1.norm."),
    (r"\.linear_mapper\.(\d+)\.mapper\.2\.", r".\1.linear."),
    (r"^input_vid_proj\.", "projections.video."),
    (r"^input_txt_proj\.", "projections.text."),
    (r"^modality_embeddings\.", "modality."),
    (r"\.linear_mapper\.", "."),
    (r"\.ffn\.mapping\.0\.", ".ffn.expand."),
    (r"\.ffn\.mapping\.1\.", ".ffn.activation."),
    (r"\.ffn\.mapping\.3\.", ".ffn.contract."),
    (r"^local_saliency_head\.temp$", "local_saliency.log_scale"),
    (r"^local_saliency_head\.a_param$", "local_saliency.shift"),
    (r"^local_saliency_head\.sentence_pooling\.cls_q$", "pooling.query"),
    (r"^local_saliency_head\.sentence_pooling\.", "pooling."),
    (r"^(pooling\.layers\.\d+)\.attn\.out_proj\.", r"\1.output."),
    (r"^(pooling\.layers\.\d+)\.attn_norm\.", r"\1.token_norm."),
    (r"^txt2vis_sal_encoder\.t2v_encoder\.", "text_to_video."),
    (r"^(text_to_video\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.output."),
    (r"^sent_encoder\.sent_rep_token$", "sentence_encoder.token"),
    (r"^sent_encoder\.sent_rep_pos$", "sentence_encoder.token_position"),
    (r"^sent_encoder\.sent_cls_encoder\.layers\.0\.", "sentence_encoder.layer."),
    (r"^moment_encoder\.moment_rep_token$", "moment_encoder.token"),
    (r"^moment_encoder\.moment_rep_pos$", "moment_encoder.token_position"),
    (r"^moment_encoder\.mcls_encoder\.layers\.0\.", "moment_encoder.layer."),
    (r"^det_encoder\.encoder\.layers\.", "encoder."),
    (r"^global_saliency_head\.", "global_saliency.head."),
    (r"^fpn\.upscale\.", "fpn.0."),
    (r"^fpn\.level(\d)\.", lambda found: f"fpn.{int(found[1]) + 1}."),
    # The finest level begins with an upsampling, the coarsest with a GELU.
    (r"^fpn\.([03])\.(\d)\.", lambda found: f"fpn.{found[1]}.{int(found[2]) - 1}."),
    (r"^fpn\.(\d)\.0\.(\w+)\.weight$", r"detector.pyramid.levels.\1.convs.0.\2_weight"),
    (r"^fpn\.(\d)\.3\.(\w+)\.weight$", r"detector.pyramid.levels.\1.convs.1.\2_weight"),
    (r"^fpn\.(\d)\.1\.norm\.", r"detector.pyramid.levels.\1.norms.0."),
    (r"^fpn\.(\d)\.4\.norm\.", r"detector.pyramid.levels.\1.norms.1."),
    (r"^query_selector\.enc_output\.", "detector.start.output."),
    (r"^query_selector\.enc_output_norm\.", "detector.start.norm."),
    (r"^query_selector\.enc_out_class_embed\.", "detector.start.class_head."),
    (r"^query_selector\.enc_out_iou_embed\.", "detector.start.iou_head."),
    (r"^query_selector\.enc_out_span_embed\.", "detector.start.span_head."),
    (r"^main_det_head\.label_enc\.weight$", "detector.start.content"),
    (r"^main_det_head\.refpoint_embed\.center\.weight$", "detector.start.centre"),
    (r"^main_det_head\.refpoint_embed\.width\.weight$", "detector.start.width"),
    (r"^main_det_head\.co_mapper\.", "detector.auxiliary_content."),
    (r"^main_det_head\.class_embed\.", "detector.decoder.class_head."),
    (r"^main_det_head\.span_embed\.", "detector.decoder.span_head."),
    (r"^main_det_head\.", "detector."),
    (_SG_DECODER + r"span_embed\.", "detector.decoder.refinement."),
    (_SG_DECODER + r"quality_score_embed\.", "detector.decoder.iou_head."),
    (_SG_DECODER + r"ref_point_head\.", "detector.decoder.query_position."),
    (_SG_DECODER + r"ref_anchor_head\.", "detector.decoder.width_scale."),
    (r"\.self_attention\.norm1\.", ".norm1."),
    (r"\.self_attention\.self_attn\.out_proj\.", ".self_output."),
    (r"\.self_attention\.query_content_proj\.", ".self_query_content."),
    (r"\.self_attention\.query_pos_proj\.", ".self_query_position."),
    (r"\.self_attention\.key_content_proj\.", ".self_key_content."),
    (r"\.self_attention\.key_pos_proj\.", ".self_key_position."),
    (r"\.self_attention\.value_proj\.", ".self_value."),
    (r"\.ca_qcontent_proj\.", ".cross_query_content."),
    (r"\.ca_qpos_sine_proj\.", ".cross_query_span."),
    (r"\.ca_kcontent_proj\.", ".cross_key_content."),
    (r"\.ca_kpos_proj\.", ".cross_key_position."),
    (r"\.ca_value_proj\.", ".cross_value."),
    (r"\.cross_attn\.out_proj\.", ".cross_output."),
    (r"\.self_attn\.", ".attention."),
    (_SG_CLASS + r"stem\.", "detector.anchor_head.class_tower."),
    (_SG_SPAN + r"stem\.", "detector.anchor_head.span_tower."),
    (r"_tower\.layers\.(1|5|9)\.weight$", lambda found: f"_tower.{int(found[1]) // 4}.weight"),
    (r"_tower\.layers\.(2|6|10)\.norm\.", lambda found: f"_tower.{int(found[1]) // 4}.norm."),
    (
        r"^aux_det_head\.classification_head\.cls_logits\.layers\.1\.",
        "detector.anchor_head.classify.",
    ),
    (_SG_SPAN + r"bbox_reg\.layers\.1\.", "detector.anchor_head.regress."),
    (
        r"^aux_det_head\.regression_head\.bbox_ctrness\.layers\.1\.",
        "detector.anchor_head.centerness.",
    ),
    (_SG_SPAN + r"scales\.(\d+)\.scale$", r"detector.anchor_head.scales.\1"),
)

UNUSED = re.compile(
    r"txt_position_embed\.|aux_det_head\.anchor_generator\.|projections\.text_positions\."
    r"|(?:detr\.)?heads\.contrastive\.|window_saliency\.|fusion\.\d+\.norm_video\."
)


def _is_of_windows(name: str) -> bool:
    """A parameter of SG-DETR's detector, which a model of highlights alone does not have."""
    return name.startswith("detector.")


def our_name(model_name: str, published: str) -> str:
    """Our name of a published parameter of the model `model_name`.

    Raises:
        UnknownNameError: no published checkpoints of that model are supported.
    """
    if model_name not in RULES:
        raise UnknownNameError("published checkpoint layout", model_name, RULES)
    name = published
    for pattern, replacement in RULES[model_name]:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that only the file has, only the model has, or both in different shapes.

    `name` is the published one; ours if the file has no such tensor.
    """

    name: str
    found: tuple[int, ...] | None
    expected: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} is missing"
        if self.expected is None:
            return f"{self.name} has no counterpart"
        return f"{self.name} is {self.found}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class MatchResult:
    """Comparison of a published state dict with one of our models.

    Attributes:
        state: the matching tensors, under our names.
        unused: published names of tensors that the model does not use.
        mismatches: all other differences; empty if `state` is complete.
    """

    state: dict[str, Tensor]
    unused: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]


def match_state(model_name: str, published: Mapping[str, Tensor], model: nn.Module) -> MatchResult:
    """Match a published state dict to `model` by name and shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state, unused, mismatches = {}, [], []
    no_detector = not any(_is_of_windows(name) for name in expected)
    for name, tensor in published.items():
        ours = our_name(model_name, name)
        if ours in expected and tuple(tensor.shape) == (*expected[ours], 1):
            tensor = tensor.squeeze(-1)  # a convolution of kernel size 1 is a linear layer
        shape = tuple(tensor.shape)
        if ours in expected and shape == expected[ours]:
            state[ours] = tensor
        elif ours not in expected and (
            UNUSED.match(ours) or (no_detector and _is_of_windows(ours))
        ):
            unused.append(name)
        else:
            mismatches.append(Mismatch(name, shape, expected.get(ours)))
        expected.pop(ours, None)
    mismatches += [Mismatch(name, None, shape) for name, shape in expected.items()]
    return MatchResult(
        state, tuple(unused), tuple(sorted(mismatches, key=lambda mismatch: mismatch.name))
    )
