"""Triton's interpreter, as the tests of kernels need it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=os.environ.get("TRITON_INTERPRET") == "1")
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiplies the numbers of bfloat16, where it takes their bits; and in a third of the time."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        numbers = (x.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(numbers, tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest),
    )
    in_less_time(monkeypatch)
    with np.errstate(over="ignore", divide="ignore"):  # of what is masked
        yield


def in_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of the interpreter's time is done once.

    It patches Triton's language at every call of a function in another, where once for each module
    is enough; asks integers at every sum whether they overflow; and builds the type and the shape
    of every tensor anew.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patched = set()

    def call(self, *args, **given):
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **given)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)

    make_type, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    number_of = interpreter._get_np_dtype
    types, shapes, numbers = {}, {}, {}

    def type_once(self, element_ty, shape):
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = dict(vars(self))
        vars(self).update(types[key])

    def tensor_of_known_shape(self, handle, type):
        key = type.name if type.is_block() else ""
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = self.numel, self.shape
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[key]

    def number_once(type):
        if type.name not in numbers:
            numbers[type.name] = number_of(type)
        return numbers[type.name]

    monkeypatch.setattr(tl.block_type, "__init__", type_once)
    monkeypatch.setattr(tl.tensor, "__init__", tensor_of_known_shape)
    monkeypatch.setattr(interpreter, "_get_np_dtype", number_once)
