"""What memories store: parameters and buffers, and checks of what is asked of them."""

from __future__ import annotations

from torch import Tensor, nn

CHUNK = 2**24
"""Numbers in the largest matrix that a search makes: 64 MiB of float32."""


def floating(name: str, x: object) -> Tensor:
    """The value, if it is a floating tensor; else a TypeError."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating tensor, got {kind}; use torch.as_tensor")
    return x


def one_dtype(name: str, x: Tensor, of: str, like: Tensor) -> None:
    """Raise TypeError unless both have the same dtype."""
    if x.dtype != like.dtype:
        raise TypeError(
            f"{name} and {of} must have one dtype, got {x.dtype} and {like.dtype}; use "
            f"{name}.to({like.dtype})"
        )


def store(module: nn.Module, **tensors: Tensor) -> None:
    """Parameters stay parameters, and other tensors become buffers."""
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)


def check_items(keys: Tensor, values: Tensor, key: str = "keys", value: str = "values") -> None:
    """Raise unless they are floating tensors (n, dim) and (n, value_dim)."""
    for name, x in ((key, keys), (value, values)):
        if floating(name, x).ndim != 2:
            raise ValueError(f"{name} must have shape (n, width), got {tuple(x.shape)}")
    if len(keys) != len(values) or keys.shape[1] == 0:
        raise ValueError(
            f"{key} and {value} must be (n, dim) and (n, value_dim) with one n, and dim positive; "
            f"got {tuple(keys.shape)} and {tuple(values.shape)}"
        )


def flat(query: Tensor, keys: Tensor, name: str = "query", key: str = "keys") -> Tensor:
    """(*batch, dim) to (num_queries, dim), if it is as wide as the keys."""
    if floating(name, query).ndim == 0 or query.shape[-1] != keys.shape[1]:
        raise ValueError(
            f"{name} must be as wide as {key}, (..., {keys.shape[1]}), got {tuple(query.shape)}"
        )
    return query.reshape(-1, query.shape[-1])
