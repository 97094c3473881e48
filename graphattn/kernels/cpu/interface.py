"""The functions of the library, and their arguments as `loops/interface.h` has them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from functools import cache

from torch import Tensor

from graphattn.kernels.cpu import library

_NUMBERS = ("query", "key", "value", "bias", "edge_key", "edge_value", "edge")
_ROWS = ("ptr", "index", "edge", "window", "source", "attends", "row", "count")

# Every field takes 8 bytes. By name the type in `struct`: q is an integer
# or the address of a tensor, d a double, Q unsigned.
FIELDS: tuple[tuple[str, str], ...] = (
    *((name, "q") for name in ("dtype", "score", "normalizer", "listed", "wide")),
    *((name, "q") for name in ("batch", "num_dst", "num_src", "heads", "kv_heads", "group")),
    *((name, "q") for name in ("head_dim", "value_dim", "edge_dim", "num_edges")),
    *((f"{name}_{part}", "q") for name in _NUMBERS for part in ("data", "batch", "node")),
    *((name, "q") for name in ("weight", "sink")),
    *((name, "d") for name in ("slope", "scale", "softcap", "keep")),
    *((name, "Q") for name in ("seed", "drop")),
    *((f"{side}_{part}", "q") for side in ("rows", "columns") for part in _ROWS),
    *((name, "q") for name in ("out", "out_parts", "stats", "stats_parts", "weights")),
    *((name, "q") for name in ("grad_out", "grad_weights", "known", "handed")),
    *((name, "q") for name in ("grad_query", "grad_key", "grad_value")),
    *((name, "q") for name in ("query_parts", "key_parts", "value_parts")),
    *((name, "q") for name in ("grad_bias", "grad_edge_key", "grad_edge_value", "grad_edge")),
    ("grad_weight", "q"),
)

_NAMES = tuple(name for name, _ in FIELDS)
_STRUCT = struct.Struct("=" + "".join(kind for _, kind in FIELDS))
CALL_BYTES = _STRUCT.size


def packed(values: Mapping[str, int | float]) -> bytes:
    """Return the struct `Call`; fields without a value are 0, which is no address."""
    get = values.get
    return _STRUCT.pack(*[get(name, 0) for name in _NAMES])


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
