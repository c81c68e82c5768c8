"""Maps parameter names of published checkpoints to ours.

The rules of a model are applied in sequence to a published name. Modules that the published code
builds but never uses (the video head of the alignment loss, the second norm of VideoLights' fusion;
the text positions, alignment heads and training-only branches where they are switched off) have no
counterpart and are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mrmodel.errors import UnknownNameError

NameRules = tuple[tuple[str, str], ...]

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

UNUSED = re.compile(
    r"projections\.text_positions\.|(?:detr\.)?heads\.contrastive\.|window_saliency\.|fusion\.\d+\.norm_video\."
)


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
    for name, tensor in published.items():
        ours = our_name(model_name, name)
        if ours in expected and tuple(tensor.shape) == (*expected[ours], 1):
            tensor = tensor.squeeze(-1)  # a convolution of kernel size 1 is a linear layer
        shape = tuple(tensor.shape)
        if ours in expected and shape == expected[ours]:
            state[ours] = tensor
        elif ours not in expected and UNUSED.match(ours):
            unused.append(name)
        else:
            mismatches.append(Mismatch(name, shape, expected.get(ours)))
        expected.pop(ours, None)
    mismatches += [Mismatch(name, None, shape) for name, shape in expected.items()]
    return MatchResult(
        state, tuple(unused), tuple(sorted(mismatches, key=lambda mismatch: mismatch.name))
    )
