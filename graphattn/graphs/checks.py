"""Checks of what users pass to a graph; each error says what was expected and what came."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from graphattn.graphs.memory import MAX_NODES


def integer(name: str, value: object, *, low: int = 0, high: int = MAX_NODES) -> int:
    """An integer within bounds, as a Python int."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low:,} and {high:,}, got {number:,}")
    return number


def tensor(name: str, value: object) -> Tensor:
    """A dense tensor made of a tensor, an array or nested lists."""
    if isinstance(value, numpy.ndarray):
        value = value.copy()  # torch has no negative strides
    try:
        made = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a tensor, an array or nested lists of numbers, got "
            f"{type(value).__name__} {value!r:.60} ({error})"
        ) from None
    if made.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got {made.layout}; call to_dense() on it")
    return made


def integers(name: str, value: object) -> Tensor:
    """A new int64 tensor of integers; what is empty may have any dtype."""
    made = tensor(name, value)
    inexact = made.is_floating_point() or made.is_complex() or made.dtype == torch.bool
    if inexact and made.numel():
        raise TypeError(f"{name} must hold integers, got {made.dtype}")
    return made.detach().to(torch.int64, copy=True).contiguous()


def axes(name: str, value: object, num_axes: int, *, low: int = 0) -> tuple[int, ...]:
    """An integer for every axis, or one that serves all of them."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (integer(name, value, low=low),) * num_axes
    if len(value) != num_axes:
        raise ValueError(
            f"{name} must be one integer or {num_axes}, one for each axis, got {value!r}"
        )
    return tuple(integer(f"{name}[{axis}]", size, low=low) for axis, size in enumerate(value))


def grid(value: object) -> tuple[int, ...]:
    """The shape of a grid of 1 to 3 axes."""
    shape = tuple(value) if isinstance(value, Sequence) else (value,)
    if isinstance(value, str) or not 1 <= len(shape) <= 3:
        raise ValueError(f"shape must be 1 to 3 positive integers, got {value!r}")
    shape = tuple(integer(f"shape[{axis}]", size, low=1) for axis, size in enumerate(shape))
    cells = 1
    for size in shape:
        cells *= size
    integer("the number of cells", cells)
    return shape


def items(name: str, values: object) -> list[Any]:
    """The items of whatever can be iterated over, but for a string."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be several, as a list, got {type(values).__name__}")
    return list(values)
