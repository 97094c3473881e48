"""Vector arithmetic for the CPU kernels: what LLVM does not find by itself in loops over arrays.

Numba's own loops over a head's 32 numbers check for overlapping arrays at every call and are not
unrolled; these functions write the vector instructions outright. Arrays are one-dimensional and
contiguous, places and lengths are int64 and unchecked. A length that is a constant where it is
used is unrolled; lengths that are no multiple of 8 end in a scalar loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT32, INT64 = ir.IntType(32), ir.IntType(64)
VECTOR_BITS = 512
PADDING = 16  # numbers that fill whole vectors of every type
BYTES = ir.IntType(8).as_pointer()
CACHE_LINE = 64  # bytes
STRAIGHT = 4  # vectors before the loop, and vectors that stay in registers over all edges
SUMS_AT_ONCE = 4  # dot products whose last additions are shared
AHEAD = 16  # edges between the prefetch of a row and its use
PREFETCHED_LINES = 4  # of a row; the hardware foresees the rest

# Sums may be taken in any order; NaN and infinities keep their meaning.
FAST = ("contract", "reassoc", "nsz")


class Vectors:
    """Emits LLVM instructions on vectors of one floating type; a vector of width 1 is a scalar."""

    def __init__(self, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.builder = builder
        self.bits = dtype.bitwidth
        self.type = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.widest = VECTOR_BITS // self.bits

    def vector_type(self, width: int, of: ir.Type | None = None) -> ir.Type:
        of = of or self.type
        return of if width == 1 else ir.VectorType(of, width)

    def constant(self, number: float, width: int, of: ir.Type | None = None) -> ir.Constant:
        kind = self.vector_type(width, of)
        return ir.Constant(kind, number if width == 1 else [number] * width)

    def splat(self, number: ir.Value, width: int) -> ir.Value:
        if width == 1:
            return number
        empty = ir.Constant(ir.VectorType(number.type, width), ir.Undefined)
        first = self.builder.insert_element(empty, number, INT32(0))
        return self.builder.shuffle_vector(first, empty, self.constant(0, width, INT32))

    def load(self, pointer: ir.Value, place: ir.Value, width: int) -> ir.Value:
        return self.builder.load(self._at(pointer, place, width), align=self.bits // 8)

    def store(self, value: ir.Value, pointer: ir.Value, place: ir.Value, width: int) -> None:
        self.builder.store(value, self._at(pointer, place, width), align=self.bits // 8)

    def _at(self, pointer: ir.Value, place: ir.Value, width: int) -> ir.Value:
        address = self.builder.gep(pointer, [place])
        return self.builder.bitcast(address, self.vector_type(width).as_pointer())

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b, flags=FAST)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b, flags=FAST)

    def sum(self, vector: ir.Value, width: int) -> ir.Value:
        if width == 1:
            return vector
        kind = ir.FunctionType(self.type, [self.type, vector.type])
        name = f"llvm.vector.reduce.fadd.v{width}f{self.bits}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [self.constant(-0.0, 1), vector], fastmath=FAST)

    def over(self, length: ir.Value, body: Callable[..., None]) -> None:
        """`body(place, width)` for vectors of full width, then one of half, then scalars.

        The first vectors are not in a loop, and told their number: where the length is a constant,
        no branch is left.
        """
        builder, half = self.builder, self.widest // 2

        def loop(start: ir.Value, stop: ir.Value, width: int) -> None:
            step = INT64(width)
            with cgutils.for_range_slice(builder, start, stop, step, intp=INT64) as (place, _):
                body(place, width)

        full = builder.and_(length, INT64(-self.widest))
        for start in range(0, STRAIGHT * self.widest, self.widest):
            with builder.if_then(builder.icmp_signed("<", INT64(start), full), likely=True):
                body(INT64(start), self.widest, start // self.widest)
        loop(INT64(STRAIGHT * self.widest), full, self.widest)
        with builder.if_then(
            builder.icmp_signed("!=", builder.and_(length, INT64(half)), INT64(0))
        ):
            body(full, half)
        loop(builder.and_(length, INT64(-half)), length, 1)

    def over_blocks(self, length: ir.Value, block: Callable[[ir.Value, int, int], None]) -> None:
        """`block(place, width, count)` for as many vectors as stay in registers, then for fewer."""
        builder, size = self.builder, STRAIGHT * self.widest
        done = builder.and_(length, INT64(-size))
        with cgutils.for_range_slice(builder, INT64(0), done, INT64(size), intp=INT64) as (at, _):
            block(at, self.widest, STRAIGHT)
        while size > 8:
            size //= 2
            width = min(size, self.widest)
            some = builder.icmp_signed("!=", builder.and_(length, INT64(size)), INT64(0))
            with builder.if_then(some):
                block(builder.and_(length, INT64(-2 * size)), width, size // width)
        rest = builder.and_(length, INT64(-size))
        with cgutils.for_range_slice(builder, rest, length, INT64(1), intp=INT64) as (at, _):
            block(at, 1, 1)

    def full(self, length: ir.Value) -> Any:
        """A loop over vectors of full width."""
        step = INT64(self.widest)
        return cgutils.for_range_slice(self.builder, INT64(0), length, step, intp=INT64)

    def partial_sums(
        self, length: ir.Value, term: Callable[[ir.Value, int, int | None], ir.Value]
    ) -> tuple[ir.Value, ir.Value]:
        """A vector and a scalar whose sum is that of all `term(place, width, number)`.

        The number is that of the vector if it is one of the first STRAIGHT, else None.
        """
        vectors = cgutils.alloca_once_value(self.builder, self.constant(0.0, self.widest))
        rest = cgutils.alloca_once_value(self.builder, self.constant(0.0, 1))
        self.builder.store(self.constant(0.0, self.widest), vectors)
        self.builder.store(self.constant(0.0, 1), rest)

        def body(place: ir.Value, width: int, number: int | None = None) -> None:
            value, so_far = term(place, width, number), rest if width == 1 else vectors
            if 1 < width < self.widest:  # zeros behind
                lanes = [min(lane, width) for lane in range(self.widest)]
                zero = self.constant(0.0, width)
                value = self.builder.shuffle_vector(value, zero, self._lanes(lanes))
            self.builder.store(self.add(self.builder.load(so_far), value), so_far)

        self.over(length, body)
        return self.builder.load(vectors), self.builder.load(rest)

    def total(
        self, length: ir.Value, term: Callable[[ir.Value, int, int | None], ir.Value]
    ) -> ir.Value:
        """Sum over all places of `term(place, width, number)`."""
        vector, rest = self.partial_sums(length, term)
        return self.add(rest, self.sum(vector, self.widest))

    def sums(self, vectors: list[ir.Value]) -> ir.Value:
        """The sum of each vector; as many vectors as is a power of two."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2])
            vectors = [self._neighbors_added(a, b, self.widest) for a, b in pairs]
        (vector,), width = vectors, self.widest
        while width > SUMS_AT_ONCE:
            width //= 2
            vector = self._neighbors_added(vector, vector, width)
        return vector

    def _neighbors_added(self, a: ir.Value, b: ir.Value, width: int) -> ir.Value:
        """`a0 + a1, a2 + a3, ..., b0 + b1, ...`, the first of them."""
        first, second = (
            self.builder.shuffle_vector(
                a, b, self._lanes([2 * lane + odd for lane in range(width)])
            )
            for odd in (0, 1)
        )
        return self.add(first, second)

    def _lanes(self, lanes: list[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(INT32, len(lanes)), lanes)

    def exp(self, x: ir.Value, width: int) -> ir.Value:
        """`exp(x)`, as Cephes' expf has it; 0 where the result would be denormal, NaN for NaN.

        x = n log 2 + r; n is rounded by adding a number so large that no fraction is left, and
        becomes the exponent of the result; a polynomial gives exp(r).
        """
        builder = self.builder
        single = self.bits == 32
        integer, mantissa, bias = (INT32, 23, 127) if single else (INT64, 52, 1023)

        def real(number: float) -> ir.Constant:
            return self.constant(number, width)

        def whole(number: int) -> ir.Constant:
            return self.constant(number, width, integer)

        def multiply_add(a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
            flags = ("contract",)
            return builder.fadd(builder.fmul(a, b, flags=flags), c, flags=flags)

        lowest = real(-87.3 if single else -708.0)
        tiny = builder.fcmp_ordered("<", x, lowest)
        x = builder.select(tiny, lowest, x)
        large = real(1.5 * 2.0**mantissa)
        shifted = multiply_add(x, real(1 / math.log(2)), large)
        n = builder.fsub(shifted, large)
        high = 0.693359375 if single else 0.693145751953125  # few bits: n * high is exact
        r = multiply_add(n, real(-high), x)
        r = multiply_add(n, real(high - math.log(2) if not single else 2.12194440e-4), r)
        result = real(0.0)
        for coefficient in CEPHES_EXPF if single else TAYLOR_EXP:
            result = multiply_add(result, r, real(coefficient))
        kind = self.vector_type(width, integer)
        exponent = builder.add(builder.bitcast(shifted, kind), whole(bias))
        power = builder.bitcast(builder.shl(exponent, whole(mantissa)), self.vector_type(width))
        return builder.select(tiny, real(0.0), builder.fmul(result, power))

    def tanh(self, x: ir.Value, width: int) -> ir.Value:
        """`1 - 2 / (exp(2x) + 1)`, to about one rounding of 1."""
        builder = self.builder
        limit = self.constant(20.0, width)  # 1 to the last bit from here on
        x = builder.select(builder.fcmp_ordered(">", x, limit), limit, x)
        more = builder.fadd(self.exp(builder.fadd(x, x), width), self.constant(1.0, width))
        half = builder.fdiv(self.constant(2.0, width), more)
        return builder.fsub(self.constant(1.0, width), half)


CEPHES_EXPF = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1),
    *(5.0000001201e-1, 1.0, 1.0),
)
TAYLOR_EXP = tuple(1 / math.factorial(power) for power in range(13, -1, -1))


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, place: Any) -> ir.Value:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


@intrinsic
def dot(typing, a, i, b, j, length):
    """`sum(a[i + d] * b[j + d] for d in range(length))`."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        a = _pointer(context, builder, signature.args[0], args[0], args[1])
        b = _pointer(context, builder, signature.args[2], args[2], args[3])

        def term(place, width, _):
            return vectors.mul(vectors.load(a, place, width), vectors.load(b, place, width))

        return vectors.total(args[4], term)

    return a.dtype(a, types.int64, b, types.int64, types.int64), emit


@intrinsic
def add_scaled(typing, y, i, factor, x, j, length):
    """`y[i + d] += factor * x[j + d] for d in range(length)`."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        y = _pointer(context, builder, signature.args[0], args[0], args[1])
        x = _pointer(context, builder, signature.args[3], args[3], args[4])

        def body(place, width, _=None):
            more = vectors.mul(vectors.splat(args[2], width), vectors.load(x, place, width))
            vectors.store(vectors.add(vectors.load(y, place, width), more), y, place, width)

        vectors.over(args[5], body)
        return context.get_dummy_value()

    return types.void(y, types.int64, y.dtype, x, types.int64, types.int64), emit


@intrinsic
def get(typing, x, i):
    """`x[i]` for `i` from 0 on; Numba would look whether it is negative."""

    def emit(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]))

    return x.dtype(x, types.int64), emit


@intrinsic
def put(typing, x, i, value):
    """`x[i] = value` for `i` from 0 on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(x, types.int64, x.dtype), emit


@intrinsic
def fill(typing, x, i, value):
    """A vector of one value from `x[i]` on."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        x = _pointer(context, builder, signature.args[0], args[0], args[1])
        for place in range(0, PADDING, vectors.widest):
            value = vectors.splat(args[2], vectors.widest)
            vectors.store(value, x, INT64(place), vectors.widest)
        return context.get_dummy_value()

    return types.void(x, types.int64, x.dtype), emit


@intrinsic
def maximum(typing, x, length):
    """The largest of `x[:length]` that is not NaN; the length a multiple of PADDING."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        width = vectors.widest
        x = _pointer(context, builder, signature.args[0], args[0], INT64(0))
        low = vectors.constant(-math.inf, width)
        largest = cgutils.alloca_once_value(builder, low)
        builder.store(low, largest)
        with vectors.full(args[1]) as (place, _):
            value, so_far = vectors.load(x, place, width), builder.load(largest)
            more = builder.fcmp_ordered(">", value, so_far)
            builder.store(builder.select(more, value, so_far), largest)
        kind = ir.FunctionType(vectors.type, [low.type])
        name = f"llvm.vector.reduce.fmax.v{width}f{vectors.bits}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [builder.load(largest)])

    return x.dtype(x, types.int64), emit


@intrinsic
def exp_sum(typing, x, length, shift):
    """The sum of `x[:length] = exp(x[:length] - shift)`; the length a multiple of PADDING."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        width = vectors.widest
        x = _pointer(context, builder, signature.args[0], args[0], INT64(0))
        zero = vectors.constant(0.0, width)
        total = cgutils.alloca_once_value(builder, zero)
        builder.store(zero, total)
        shift = vectors.splat(args[2], width)
        with vectors.full(args[1]) as (place, _):
            value = builder.fsub(vectors.load(x, place, width), shift)
            value = vectors.exp(value, width)
            vectors.store(value, x, place, width)
            builder.store(vectors.add(builder.load(total), value), total)
        return vectors.sum(builder.load(total), width)

    return x.dtype(x, types.int64, x.dtype), emit


@intrinsic
def scale(typing, x, length, factor):
    """`x[:length] *= factor`; the length a multiple of PADDING."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        width = vectors.widest
        x = _pointer(context, builder, signature.args[0], args[0], INT64(0))
        factor = vectors.splat(args[2], width)
        with vectors.full(args[1]) as (place, _):
            value = builder.fmul(vectors.load(x, place, width), factor)
            vectors.store(value, x, place, width)
        return context.get_dummy_value()

    return types.void(x, types.int64, x.dtype), emit


def _over_runs(function: Callable[..., tuple[ir.Value | None, ir.Value | None]]) -> Any:
    """An intrinsic (x, y, length, number) that changes two runs of numbers; or one, given twice.

    `function(vectors, x, y, number, width)` makes the new ones, None for one that stays. The length
    is a multiple of PADDING. y is written first.
    """

    @intrinsic
    def over(typing, x, y, length, number):
        def emit(context, builder, signature, args):
            vectors = Vectors(builder, signature.args[0].dtype)
            width = vectors.widest
            kinds, number = signature.args, vectors.splat(args[3], vectors.widest)
            runs = [_pointer(context, builder, kinds[i], args[i], INT64(0)) for i in (0, 1)]
            with vectors.full(args[2]) as (place, _):
                values = [vectors.load(run, place, width) for run in runs]
                new = function(vectors, *values, number, width)
                for value, run in zip(reversed(new), reversed(runs)):
                    if value is not None:
                        vectors.store(value, run, place, width)
            return context.get_dummy_value()

        return types.void(x, y, types.int64, x.dtype), emit

    return over


def _softmax_gradient(vectors, p, dp, delta, width):
    return None, vectors.builder.fmul(p, vectors.builder.fsub(dp, delta))


def _multiply(vectors, x, y, _, width):
    return vectors.builder.fmul(x, y), None


def _sigmoid(vectors, x, _, __, width):
    builder, one = vectors.builder, vectors.constant(1.0, width)
    negative = builder.fcmp_ordered("<", x, vectors.constant(0.0, width))
    opposite = builder.fsub(vectors.constant(0.0, width), x)
    small = vectors.exp(builder.select(negative, x, opposite), width)  # of -|x|
    above = builder.select(negative, small, one)
    return builder.fdiv(above, builder.fadd(one, small)), None


def _sigmoid_gradient(vectors, p, dp, _, width):
    slope = vectors.builder.fmul(p, vectors.builder.fsub(vectors.constant(1.0, width), p))
    return None, vectors.builder.fmul(dp, slope)


def _identity_gradient(vectors, p, dp, _, width):
    zero = vectors.constant(0.0, width)
    off = _is_off(vectors, p, width)
    return vectors.builder.select(off, zero, p), vectors.builder.select(off, zero, dp)


def _soft_cap(vectors, x, _, cap, width):
    """Cephes' tanh: a quotient of polynomials near 0, where `tanh` is rounded as 1 is."""
    builder, one = vectors.builder, vectors.constant(1.0, width)
    ratio = builder.fdiv(x, cap)
    square = builder.fmul(ratio, ratio)
    above, below = (
        _polynomial(vectors, square, coefficients, width) for coefficients in CEPHES_TANH
    )
    near = builder.fdiv(builder.fmul(builder.fmul(ratio, square), above), below)
    is_near = builder.fcmp_ordered("<", square, vectors.constant(0.625**2, width))
    bent = builder.select(is_near, builder.fadd(ratio, near), vectors.tanh(ratio, width))
    slope = builder.fsub(one, builder.fmul(bent, bent))
    return builder.select(_is_off(vectors, x, width), x, builder.fmul(bent, cap)), slope


def _is_off(vectors, x, width):
    return vectors.builder.fcmp_ordered("==", x, vectors.constant(-math.inf, width))


def _polynomial(vectors, x, coefficients, width):
    result = vectors.constant(coefficients[0], width)
    for coefficient in coefficients[1:]:
        result = vectors.add(vectors.mul(result, x), vectors.constant(coefficient, width))
    return result


CEPHES_TANH = (
    (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3),
    (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3),
)

# (p, dp, length, delta): `dp = p * (dp - delta)`.
softmax_gradient = _over_runs(_softmax_gradient)
# (x, y, length, _): `x = x * y`.
multiply = _over_runs(_multiply)
# (x, x, length, _): `x = 1 / (1 + exp(-x))`.
sigmoid = _over_runs(_sigmoid)
# (p, dp, length, _): `dp = dp * p * (1 - p)`.
sigmoid_gradient = _over_runs(_sigmoid_gradient)
# (p, dp, length, _): both 0 where p is -inf.
identity_gradient = _over_runs(_identity_gradient)
# (x, slopes, length, cap): `x = cap * tanh(x / cap)`, -inf as it is, and the slope there.
soft_cap = _over_runs(_soft_cap)


def _activated(vectors: Vectors, pair: ir.Value, slope: ir.Value, tanh: bool, width: int) -> Any:
    """The activation of a pair and its derivative there."""
    one = vectors.constant(1.0, width)
    if tanh:
        value = vectors.tanh(pair, width)
        return value, vectors.builder.fsub(one, vectors.mul(value, value))
    positive = vectors.builder.fcmp_ordered(">", pair, vectors.constant(0.0, width))
    derivative = vectors.builder.select(positive, one, vectors.splat(slope, width))
    return vectors.mul(pair, derivative), derivative


def _pair(vectors: Vectors, parts: list[ir.Value], place: ir.Value, width: int) -> ir.Value:
    first, *others = (vectors.load(part, place, width) for part in parts)
    for other in others:
        first = vectors.add(first, other)
    return first


def _additive_intrinsics(tanh: bool) -> tuple[Any, Any]:
    @intrinsic
    def score(typing, a, i, slope, q, j, k, m, e, n, length):
        """`sum(a * act(q + k + e))`; `e` is left out where its place `n` is negative."""

        def emit(context, builder, signature, args):
            vectors = Vectors(builder, signature.args[0].dtype)
            a, q, k, e = (
                _pointer(context, builder, signature.args[at], args[at], args[at + 1])
                for at in (0, 3, 5, 7)
            )
            result = cgutils.alloca_once_value(builder, vectors.constant(0.0, 1))

            def total(parts):
                def term(place, width, _):
                    pair = _pair(vectors, parts, place, width)
                    value, _ = _activated(vectors, pair, args[2], tanh, width)
                    return vectors.mul(vectors.load(a, place, width), value)

                builder.store(vectors.total(args[9], term), result)

            with builder.if_else(builder.icmp_signed("<", args[8], INT64(0))) as (absent, present):
                with absent:
                    total([q, k])
                with present:
                    total([q, k, e])
            return builder.load(result)

        at = types.int64
        return a.dtype(a, at, a.dtype, q, at, k, at, e, at, at), emit

    @intrinsic
    def gradient(typing, grad, a, i, slope, q, j, k, m, e, n, dpair, o, da, p, length):
        """`dpair += grad * a * act'(q + k + e)`, and `da += grad * act(q + k + e)`.

        `e` is left out where its place `n` is negative, `da` where its place `p` is.
        """

        def emit(context, builder, signature, args):
            vectors = Vectors(builder, signature.args[1].dtype)
            a, q, k, e, dpair, da = (
                _pointer(context, builder, signature.args[at], args[at], args[at + 1])
                for at in (1, 4, 6, 8, 10, 12)
            )

            def add(parts, with_da):
                def body(place, width, _=None):
                    grad = vectors.splat(args[0], width)
                    pair = _pair(vectors, parts, place, width)
                    value, derivative = _activated(vectors, pair, args[3], tanh, width)
                    more = vectors.mul(vectors.mul(grad, vectors.load(a, place, width)), derivative)
                    more = vectors.add(vectors.load(dpair, place, width), more)
                    vectors.store(more, dpair, place, width)
                    if with_da:
                        more = vectors.mul(grad, value)
                        more = vectors.add(vectors.load(da, place, width), more)
                        vectors.store(more, da, place, width)

                vectors.over(args[14], body)

            def either(parts):
                without = builder.icmp_signed("<", args[13], INT64(0))
                with builder.if_else(without) as (absent, present):
                    with absent:
                        add(parts, with_da=False)
                    with present:
                        add(parts, with_da=True)

            with builder.if_else(builder.icmp_signed("<", args[9], INT64(0))) as (absent, present):
                with absent:
                    either([q, k])
                with present:
                    either([q, k, e])
            return context.get_dummy_value()

        at, number = types.int64, a.dtype
        kind = types.void(number, a, at, number, q, at, k, at, e, at, dpair, at, da, at, at)
        return kind, emit

    return score, gradient


tanh_score, tanh_gradient = _additive_intrinsics(tanh=True)
leaky_relu_score, leaky_relu_gradient = _additive_intrinsics(tanh=False)


class Gather:
    """Emits a loop over the rows that a run of edges reads from an array.

    The row of edge e begins at `base + node * step`, where node is `index[e]` if `listed`, else
    `e + first`. Rows are prefetched AHEAD edges before they are read.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, kinds: Any, args: Any) -> None:
        x, self.base, self.step, listed, index, self.last, self.first, self.low, self.high = args
        self.builder, self.listed = builder, listed
        self.array = _pointer(context, builder, kinds[0], x, INT64(0))
        self.index = _pointer(context, builder, kinds[4], index, INT64(0))
        self.slot = cgutils.alloca_once(builder, INT64)
        self.bytes = kinds[0].dtype.bitwidth // 8

    def row(self, edge: ir.Value) -> ir.Value:
        builder = self.builder
        with builder.if_else(self.listed) as (listed, interval):
            with listed:
                node = builder.sext(builder.load(builder.gep(self.index, [edge])), INT64)
                builder.store(node, self.slot)
            with interval:
                builder.store(builder.add(edge, self.first), self.slot)
        place = builder.add(self.base, builder.mul(builder.load(self.slot), self.step))
        return builder.gep(self.array, [place])

    def prefetch(self, edge: ir.Value, length: ir.Value) -> None:
        builder = self.builder
        with builder.if_then(self.listed):
            ahead = builder.add(edge, INT64(AHEAD))
            beyond = builder.icmp_signed(">", ahead, self.last)
            row = self.row(builder.select(beyond, self.last, ahead))
            row = builder.bitcast(row, BYTES)
            stop = builder.mul(length, INT64(self.bytes))
            for line in range(0, PREFETCHED_LINES * CACHE_LINE, CACHE_LINE):
                with builder.if_then(builder.icmp_signed("<", INT64(line), stop)):
                    _prefetch(builder, builder.gep(row, [INT64(line)]))

    def edges(self, low: ir.Value, high: ir.Value, step: int) -> Any:
        return cgutils.for_range_slice(self.builder, low, high, INT64(step), intp=INT64)


def _gather_types(x: Any, index: Any) -> tuple[Any, ...]:
    at = types.int64
    return x, at, at, types.boolean, index, at, at, at, at


@intrinsic
def dots(
    typing, out, factor, a, i, length, x, base, step, listed, index, last, first, low, high, adds
):  # fmt: skip
    """`out[e - low] = factor * sum(a[i + d] * row(e)[d] for d in range(length))`; see Gather.

    Where `adds`, they are added to what is there.
    """

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        out = _pointer(context, builder, signature.args[0], args[0], INT64(0))
        a = _pointer(context, builder, signature.args[2], args[2], args[3])
        gather = Gather(context, builder, signature.args[5:-1], args[5:-1])
        full = builder.and_(args[4], INT64(-vectors.widest))
        kept = []  # the first vectors of a, as far as there are any
        for number in range(STRAIGHT):
            slot = cgutils.alloca_once_value(builder, vectors.constant(0.0, vectors.widest))
            place = INT64(number * vectors.widest)
            with builder.if_then(builder.icmp_signed("<", place, full)):
                builder.store(vectors.load(a, place, vectors.widest), slot)
            kept.append(builder.load(slot))

        def store(total, edge, width):
            place = builder.sub(edge, gather.low)
            more = vectors.add(vectors.load(out, place, width), total)
            vectors.store(builder.select(args[-1], more, total), out, place, width)

        def sums(edge):
            gather.prefetch(edge, args[4])
            row = gather.row(edge)

            def term(place, width, number):
                own = vectors.load(a, place, width) if number is None else kept[number]
                return vectors.mul(own, vectors.load(row, place, width))

            return vectors.partial_sums(args[4], term)

        some = builder.and_(builder.sub(gather.high, gather.low), INT64(-SUMS_AT_ONCE))
        last = builder.add(gather.low, some)
        with gather.edges(gather.low, last, SUMS_AT_ONCE) as (edge, _):
            several = [sums(builder.add(edge, INT64(number))) for number in range(SUMS_AT_ONCE)]
            total = vectors.sums([vector for vector, _ in several])
            for number, (_, rest) in enumerate(several):
                whole = builder.extract_element(total, INT32(number))
                total = builder.insert_element(total, vectors.add(whole, rest), INT32(number))
            store(vectors.mul(vectors.splat(args[1], SUMS_AT_ONCE), total), edge, SUMS_AT_ONCE)
        with gather.edges(last, gather.high, 1) as (edge, _):
            vector, rest = sums(edge)
            total = vectors.add(rest, vectors.sum(vector, vectors.widest))
            store(vectors.mul(args[1], total), edge, 1)
        return context.get_dummy_value()

    at = types.int64
    kinds = (out, out.dtype, a, at, at, *_gather_types(x, index), types.boolean)
    return types.void(*kinds), emit


@intrinsic
def add_weighted(
    typing, out, o, factor, w, length, x, base, step, listed, index, last, first, low, high
):  # fmt: skip
    """`out[o + d] += factor * sum(w[e - low] * row(e)[d] for e)`; see Gather."""

    def emit(context, builder, signature, args):
        vectors = Vectors(builder, signature.args[0].dtype)
        out = _pointer(context, builder, signature.args[0], args[0], args[1])
        w = _pointer(context, builder, signature.args[3], args[3], INT64(0))
        gather = Gather(context, builder, signature.args[5:], args[5:])

        def block(place, width, count):
            """`count` vectors of the output stay in registers while the edges go by."""
            places = [builder.add(place, INT64(width * number)) for number in range(count)]
            zero = vectors.constant(0.0, width)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in places]
            for so_far in sums:
                builder.store(zero, so_far)
            with gather.edges(gather.low, gather.high, 1) as (edge, _):
                gather.prefetch(edge, args[4])
                row = gather.row(edge)
                weight = vectors.load(w, builder.sub(edge, gather.low), 1)
                weight = vectors.splat(weight, width)
                for so_far, at in zip(sums, places):
                    more = vectors.mul(weight, vectors.load(row, at, width))
                    builder.store(vectors.add(builder.load(so_far), more), so_far)
            factor = vectors.splat(args[2], width)
            for so_far, at in zip(sums, places):
                more = vectors.mul(factor, builder.load(so_far))
                vectors.store(vectors.add(vectors.load(out, at, width), more), out, at, width)

        vectors.over_blocks(args[4], block)
        return context.get_dummy_value()

    at = types.int64
    return types.void(out, at, out.dtype, w, at, *_gather_types(x, index)), emit


def _prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [BYTES, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # for reading, to be kept in all levels, data
    builder.call(function, [address, INT32(0), INT32(3), INT32(1)])


@intrinsic
def prefetch(typing, x, i):
    """Bring `x[i]` and its neighbors into the cache, without waiting for them."""

    def emit(context, builder, signature, args):
        address = _pointer(context, builder, signature.args[0], args[0], args[1])
        _prefetch(builder, builder.bitcast(address, BYTES))
        return context.get_dummy_value()

    return types.void(x, types.int64), emit


@intrinsic
def fetch_add(typing, x):
    """`x[0]` before 1 was added to it, atomically."""

    def emit(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], INT64(0))
        return builder.atomic_rmw("add", pointer, INT64(1), "monotonic")

    return types.int64(x), emit
