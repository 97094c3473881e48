"""Triton's interpreter, as the tests of kernels need it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=os.environ.get("TRITON_INTERPRET") == "1")
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiplies the numbers of bfloat16, where it takes their bits; and in half of the time.

    It patches Triton's language at every call of a function in another, where once for each module
    is enough; and it asks integers at every sum whether they overflow.
    """
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
    patched = set()

    def call(self, *args, **given):
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **given)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    with np.errstate(over="ignore", divide="ignore"):  # of what is masked
        yield
