"""The shape of arrows: cubic Bézier curves from node to node, and their heads."""

from __future__ import annotations

import numpy

Array = numpy.ndarray


def curves(start: Array, end: Array, gap: float, shape: str) -> Array:
    """Control points of the arrows, (E, 4, 2), cut off `gap` before the centers of their nodes.

    Args:
        start, end: Where the nodes are, (E, 2).
        gap: Distance that is left free at both ends.
        shape: "arc" for half ellipses, above where they go right and below where they go left, the
            tallest of them a sixteenth of the width or more; "bent" for curves that leave room for
            the edge back; "straight".
    """
    along = end - start
    left = numpy.stack([-along[:, 1], along[:, 0]], 1)  # a quarter turn, as long as the edge
    if shape == "arc":
        span = numpy.maximum(numpy.abs(along[:, :1]), 1e-9)
        tall = 0.75 * span**0.65
        least = numpy.ptp(numpy.concatenate([start, end])[:, 0]) / 16 if len(start) else 0.0
        up = left / span * tall * min(12.0, max(1.0, least / tall.max(initial=1.0)))
        middle = numpy.stack([start + up, end + up], 1)
    else:
        bend = {"bent": -0.14, "straight": 0.0}[shape]
        middle = start[:, None] + along[:, None] * [[1 / 3], [2 / 3]] + bend * left[:, None]
    ends = numpy.stack([start, end], 1)
    away = unit(middle - ends)
    ends = ends + gap * away
    return numpy.concatenate([ends[:, :1], middle, ends[:, 1:]], 1)


def heads(curve: Array, length: Array) -> Array:
    """The triangle at the end of each curve, (E, 3, 2); `length` is (E,)."""
    tip = curve[:, 3]
    forward = unit(tip - curve[:, 2]) * length[:, None]
    aside = 0.4 * numpy.stack([-forward[:, 1], forward[:, 0]], 1)
    return numpy.stack([tip, tip - forward + aside, tip - forward - aside], 1)


def middles(curve: Array) -> Array:
    """The point at half of each curve, (E, 2)."""
    return (curve * [[0.125], [0.375], [0.375], [0.125]]).sum(1)


def unit(vectors: Array) -> Array:
    """Vectors of length 1; 0 where there is no direction."""
    length = numpy.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / numpy.where(length == 0, 1, length)
