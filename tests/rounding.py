"""How far two ways of computing one float32 number may lie apart.

The order in which a sum is added up belongs to the processor: to the width of its vectors, to the
kernel that a library chose for a shape, to the elements of a row that fill no whole vector. So a
batch and its samples, a padded row and a short one, a fused layer and a plain one agree up to
rounding, and bits are compared only where the same operation ran on the same shapes.
"""

import math

EPS = 2.0**-23  # of float32: the distance from 1 to the next number


def rounding(terms: int, magnitude: float = 1.0, stages: int = 1) -> float:
    """The absolute tolerance of a value that two computations round differently.

    An addition is off by at most half an EPS of its sum, up or down, so that a sum of n terms is
    off by about sqrt(n) of these. There are two sums, and a factor of two is left.

    Args:
        terms: the terms of the longest sum, such as the width of a layer.
        magnitude: the largest value that is compared, or that it is summed up from.
        stages: how many such sums depend on each other, such as the layers of a model; each adds
            an error of its own.
    """
    return 2.0 * EPS * math.sqrt(terms) * magnitude * stages
