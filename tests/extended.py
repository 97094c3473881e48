"""Tensors in extended precision: torch's formulas and gradients with more bits than float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

aten = torch.ops.aten


class Extended(Tensor):
    """float64 tensor to torch and its autograd, computed in `np.longdouble` (64 bits on x86).

    Every number is stored as an unevaluated sum of two float64 (Dekker 1971), the parts of a
    complex number. An operation that only moves numbers runs on the complex tensor; an arithmetic
    one runs in numpy; any other raises NotImplementedError.

    Args:
        pair: `high + low * 1j`, complex128, on the CPU.

    Example:
        >>> x = extended(torch.tensor(1.0)) + 2**-60
        >>> float(x), float(x - 1) == 2**-60
        (1.0, True)
    """

    pair: Tensor

    @staticmethod
    def __new__(cls, pair: Tensor) -> Extended:
        layout = {"strides": pair.stride(), "storage_offset": pair.storage_offset()}
        new = Tensor._make_wrapper_subclass(cls, pair.shape, dtype=torch.float64, **layout)
        new.pair = pair
        return new

    def __repr__(self) -> str:
        return f"Extended({self.pair.real})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket
        if name in ARITHMETIC:
            with np.errstate(all="ignore"):
                found = ARITHMETIC[name](*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
            return tree_map(_tensor, found)
        if name not in MOVES:
            raise NotImplementedError(f"{func} of an Extended tensor; add it to tests/extended.py")
        found = func(*tree_map(_pair, args), **tree_map(_pair, kwargs))
        return args[0] if func._schema.is_mutable else tree_map(_wrapped, found)


def extended(x: Tensor) -> Extended:
    """Return an Extended tensor of the same numbers, without gradient."""
    return Extended(x.detach().to(torch.complex128))


def rounded(x: Tensor) -> Tensor:
    """Return the float64 tensor nearest to an Extended one; any other tensor as it is."""
    return x.pair.real if isinstance(x, Extended) else x


def _pair(x: Any) -> Any:
    if isinstance(x, Extended):
        return x.pair
    return torch.complex128 if x is torch.float64 else x  # `dtype` of a new tensor


def _wrapped(x: Any) -> Any:
    return Extended(x) if isinstance(x, Tensor) and x.is_complex() else x


# --- from and to numpy ----------------------------------------------------------------------------

# Where longdouble has no more bits than float64 (Windows, macOS on ARM), numbers are objects of
# mpmath, which are slower.
LONG = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
PRECISION = mpmath.mp.clone()
PRECISION.prec = 106


def _function(name: str) -> Callable[[Any], Any]:
    exact = np.frompyfunc(getattr(PRECISION, name), 1, 1)
    return lambda x: getattr(np, name)(x) if LONG else exact(x)


exp, log, sqrt, tanh = (_function(name) for name in ("exp", "log", "sqrt", "tanh"))


def _numbers(x: Any) -> Any:
    if not isinstance(x, Extended):
        return x.numpy() if isinstance(x, Tensor) else x
    high, low = x.pair.real.numpy(), x.pair.imag.numpy()
    if LONG:
        return high.astype(np.longdouble) + low
    return np.frompyfunc(PRECISION.mpf, 1, 1)(high) + low


def _tensor(x: Any) -> Any:
    if not isinstance(x, np.ndarray | np.generic | PRECISION.mpf):
        return x
    x = np.asarray(x)
    if x.dtype.kind in "biu":
        return torch.from_numpy(x)
    pair = np.zeros(x.shape, np.complex128)
    pair.real = x
    finite = np.isfinite(pair.real)
    pair.imag[finite] = x[finite] - pair.real[finite]
    return Extended(torch.from_numpy(pair))


# --- operations -----------------------------------------------------------------------------------


# The arguments are those of torch's operation, with arrays for tensors.


def _sum(x, dim=None, keepdim=False):
    return np.sum(x, None if dim is None else tuple(dim), keepdims=keepdim)


def _softmax(x, dim, _):
    w = exp(x - _top(x, dim))
    return w / w.sum(dim, keepdims=True)


def _softmax_backward(grad, w, dim, _):
    return w * (grad - (grad * w).sum(dim, keepdims=True))


def _logsumexp(x, dims, keepdim=False):
    top = _top(x, *dims)
    return _sum(log(exp(x - top).sum(*dims, keepdims=True)) + top, dims, keepdim)


def _top(x, dim):
    """The maximum, 0 where all is -inf."""
    top = x.max(dim, keepdims=True, initial=-np.inf)
    return np.where(top == -np.inf, 0.0, top)


def _sort(x, dim=-1, descending=False, stable=True):
    order = np.argsort(-x if descending else x, dim, kind="stable")
    return np.take_along_axis(x, order, dim), order


def _index_put(x, index, values, accumulate=False):
    x = x.astype(np.result_type(x, values))
    index = tuple(slice(None) if i is None else i for i in index)
    if accumulate:
        np.add.at(x, index, values)
    else:
        x[index] = values
    return x


def _scatter_add(x, dim, index, values):
    places = list(np.indices(index.shape, sparse=True))
    places[dim] = index
    return _index_put(x, places, values, accumulate=True)


ARITHMETIC: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense: float,
    aten._softmax: _softmax,
    aten._softmax_backward_data: _softmax_backward,
    aten.abs: np.abs,
    aten.add: np.add,
    aten.amax: lambda x, dim, keepdim=False: x.max(tuple(dim), keepdims=keepdim),
    aten.argmax: lambda x, dim, keepdim=False: x.argmax(dim, keepdims=keepdim),
    aten.bmm: np.matmul,
    aten.clamp: lambda x, min=None, max=None: np.clip(x, min, max),
    aten.cumsum: np.cumsum,
    aten.div: np.divide,
    aten.eq: np.equal,
    aten.equal: np.array_equal,
    aten.exp: exp,
    aten.ge: np.greater_equal,
    aten.gt: np.greater,
    aten.index_put: _index_put,
    aten.le: np.less_equal,
    aten.logsumexp: _logsumexp,
    aten.max: np.max,
    aten.mean: lambda x, dim, keepdim=False: x.mean(tuple(dim), keepdims=keepdim),
    aten.mul: np.multiply,
    aten.nan_to_num: lambda x, nan: np.where(x == x, x, nan),
    aten.ne: np.not_equal,
    aten.neg: np.negative,
    aten.pow: np.power,
    aten.reciprocal: lambda x: 1 / x,
    aten.rsub: lambda x, y: y - x,
    aten.scatter_add: _scatter_add,
    aten.sort: _sort,
    aten.sqrt: sqrt,
    aten.sub: np.subtract,
    aten.sum: _sum,
    aten.tanh: tanh,
    aten.tanh_backward: lambda grad, y: grad * (1 - y * y),
}

MOVES = {
    aten._unsafe_view,
    aten.cat,
    aten.clone,
    aten.detach,
    aten.expand,
    aten.flip,
    aten.gather,
    aten.index,
    aten.index_put_,
    aten.masked_fill,
    aten.new_full,
    aten.new_zeros,
    aten.permute,
    aten.scatter,
    aten.scatter_,
    aten.slice,
    aten.slice_backward,
    aten.squeeze,
    aten.stack,
    aten.transpose,
    aten.unbind,
    aten.unsqueeze,
    aten.view,
    aten.where,
    aten.zeros_like,
}
