"""Arithmetic in Triton that several kernels need."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def number(x, ACC: tl.constexpr):
    """A number that was passed as float64, in the type of sums."""
    return (tl.full((), 0.0, tl.float64) + x).to(ACC)


@triton.jit
def tanh_of(x):
    """Cephes' tanh: a quotient of polynomials near 0, where the other way is rounded as 1 is."""
    shrink = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - shrink) / (1.0 + shrink)
    z = x * x
    above = (z * -9.64399179425052238628e-1 - 9.92877231001918586564e1) * z
    above -= 1.61468768441708447952e3
    below = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z
    below += 4.84406305325125486048e3
    near = x + x * z * (above / below)
    return tl.where(z < 0.390625, near, tl.where(x < 0, -far, far))
