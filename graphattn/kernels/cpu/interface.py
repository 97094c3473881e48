"""The functions of the library, and their arguments as `loops/interface.h` has them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from torch import Tensor

from graphattn.kernels.cpu import library

Integer, Address, Real, Unsigned = ctypes.c_int64, ctypes.c_int64, ctypes.c_double, ctypes.c_uint64


class Numbers(ctypes.Structure):
    """Struct `Numbers`: the address, and the strides of the batch and of nodes."""

    __slots__ = ()
    _fields_ = [("data", Address), ("batch", Integer), ("node", Integer)]


class Rows(ctypes.Structure):
    """Struct `Rows`: the addresses of `kernel.Edges`, and how many rows there are."""

    __slots__ = ()
    _fields_ = [
        *((x, Address) for x in ("ptr", "index", "edge", "window", "source", "attends", "row")),
        ("count", Integer),
    ]


class Arguments(ctypes.Structure):
    """Struct `Call`; a field that is not set is 0, which is no address."""

    __slots__ = ()
    _fields_ = [
        *((x, Integer) for x in ("dtype", "score", "normalizer", "listed", "wide")),
        *((x, Integer) for x in ("batch", "num_dst", "num_src", "heads", "kv_heads", "group")),
        *((x, Integer) for x in ("head_dim", "value_dim", "edge_dim", "num_edges")),
        *((x, Numbers) for x in ("query", "key", "value", "bias")),
        *((x, Numbers) for x in ("edge_key", "edge_value", "edge")),
        *((x, Address) for x in ("weight", "sink")),
        *((x, Real) for x in ("slope", "scale", "softcap", "keep")),
        *((x, Unsigned) for x in ("seed", "drop")),
        *((x, Rows) for x in ("rows", "columns")),
        *((x, Address) for x in ("out", "out_parts", "stats", "stats_parts", "weights")),
        *((x, Address) for x in ("grad_out", "grad_weights", "known", "handed")),
        *((x, Address) for x in ("grad_query", "grad_key", "grad_value")),
        *((x, Address) for x in ("query_parts", "key_parts", "value_parts")),
        *((x, Address) for x in ("grad_bias", "grad_edge_key", "grad_edge_value", "grad_edge")),
        ("grad_weight", Address),
    ]


CALL_BYTES = ctypes.sizeof(Arguments)


def call(name: str, *arguments: Tensor | int) -> int:
    """Call a function of the library with integers and the addresses of tensors."""
    given = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    return entry(name)(*map(ctypes.c_int64, given))


def entry(name: str) -> Callable[..., int]:
    """Return a function of the library, which gives the GIL back while it runs."""
    return _entry(library.load(), name)


@cache
def _entry(loaded: ctypes.CDLL, name: str) -> Callable[..., int]:
    function = getattr(loaded, f"graphattn_{name}")
    function.restype = ctypes.c_int64
    return function
