"""Initial weights (baselines.md, section 2)."""

from __future__ import annotations

from torch import nn


def xavier_matrices(*modules: nn.Module) -> None:
    """Xavier-uniform for every parameter of `modules` with more than one axis.

    As published this includes the last layer of the span refinement, which DAB-DETR sets to zero.
    Biases, norms and slopes keep what their constructors gave them.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
