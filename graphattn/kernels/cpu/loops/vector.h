// Vectors of the widest registers of a level, by the vector extensions of GCC and Clang.
//
// S is how a number is stored (float, double, bfloat16, float16), Real<S> how it is computed with.
#pragma once

using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned;
using i64 = long long;
using u64 = unsigned long long;

#define INLINE inline __attribute__((always_inline))
#define SHARED __attribute__((noinline))  // compiled once for all callers

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

struct bfloat16 {
  u16 bits;
};
struct float16 {
  u16 bits;
};

template <class S> struct Arithmetic {
  using Real = float;
};
template <> struct Arithmetic<double> {
  using Real = double;
};
template <class S> using Real = typename Arithmetic<S>::Real;

template <class T, int N> struct VectorOf {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int N> using Vector = typename VectorOf<T, N>::Type;

// Numbers in a register; integers of the same width.
template <class A> constexpr int LANES = VECTOR_BYTES / (int)sizeof(A);
template <class A> struct IntegerOf {
  using Type = i32;
};
template <> struct IntegerOf<double> {
  using Type = i64;
};
template <class A> using Integer = typename IntegerOf<A>::Type;

constexpr float INF = __builtin_inff();

template <class T> constexpr INLINE T smaller(T a, T b) { return b < a ? b : a; }
template <class T> constexpr INLINE T larger(T a, T b) { return a < b ? b : a; }

template <int N, class A> INLINE Vector<A, N> all(A x) {
  return x - Vector<A, N>{};  // -0 stays -0
}

// --- loads and stores, which convert -------------------------------------------------------------

template <int N> INLINE Vector<float, N> load(const float* x) {
  return *(const typename VectorOf<float, N>::Unaligned*)x;
}
template <int N> INLINE Vector<double, N> load(const double* x) {
  return *(const typename VectorOf<double, N>::Unaligned*)x;
}
template <int N> INLINE Vector<float, N> load(const bfloat16* x) {
  auto bits = *(const typename VectorOf<u16, N>::Unaligned*)x;
  return (Vector<float, N>)(__builtin_convertvector(bits, Vector<u32, N>) << 16);
}

// The exponent of a float16 is moved by a product; its infinities and NaN get the largest one.
template <int N> INLINE Vector<float, N> load(const float16* x) {
  auto bits = *(const typename VectorOf<u16, N>::Unaligned*)x;
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    Vector<float, N> result;
    asm("vcvtph2ps %1, %0" : "=v"(result) : "v"((Vector<u16, N>)bits));
    return result;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    Vector<float, N> result;
    asm("vcvtph2ps %1, %0" : "=x"(result) : "x"((Vector<u16, N>)bits));
    return result;
  }
#endif
#if defined(__aarch64__)
  if constexpr (N == 4) {
    Vector<float, N> result;
    asm("fcvtl %0.4s, %1.4h" : "=w"(result) : "w"((Vector<u16, N>)bits));
    return result;
  }
#endif
  auto wide = __builtin_convertvector(bits, Vector<u32, N>);
  auto size = (wide & 0x7fff) << 13, sign = (wide & 0x8000) << 16;
  auto number = (Vector<u32, N>)((Vector<float, N>)size * 0x1p112f);
  auto special = size >= (0x7c00u << 13) ? size | 0x7f800000u : number;
  return (Vector<float, N>)(special | sign);
}

template <int N> INLINE void store(float* to, Vector<float, N> x) {
  *(typename VectorOf<float, N>::Unaligned*)to = x;
}
template <int N> INLINE void store(double* to, Vector<double, N> x) {
  *(typename VectorOf<double, N>::Unaligned*)to = x;
}

// The first `count` numbers, zeros behind; and to store no more than these.
template <int N, class S> INLINE Vector<Real<S>, N> load_some(const S* x, i64 count) {
  if (count >= N) return load<N>(x);
  S some[N] = {};
  for (i64 d = 0; d < count; ++d) some[d] = x[d];
  return load<N>(some);
}
template <int N, class A> INLINE void store_some(A* to, Vector<A, N> x, i64 count) {
  if (count >= N) return store<N>(to, x);
  for (i64 d = 0; d < count; ++d) to[d] = x[d];
}

// N of DIM numbers, or of `dim` where DIM is 0: then with zeros behind.
template <int N, int DIM, class S> INLINE Vector<Real<S>, N> part(const S* x, i64 d, i64 dim) {
  if constexpr (DIM) return load<N>(x + d);
  else return load_some<N>(x + d, dim - d);
}

INLINE float number(float x) { return x; }
INLINE double number(double x) { return x; }
INLINE float number(bfloat16 x) {
  u32 bits = (u32)x.bits << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
INLINE float number(float16 x) {
  u16 four[4] = {x.bits, 0, 0, 0};
  return load<4>((const float16*)four)[0];
}

// Rounded to the nearest, ties to even, as torch does.
INLINE void put(float* to, float x) { *to = x; }
INLINE void put(double* to, double x) { *to = x; }
INLINE void put(bfloat16* to, float x) {
  u32 bits;
  __builtin_memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fc0 : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INLINE void put(float16* to, float x) {
  u32 bits;
  __builtin_memcpy(&bits, &x, 4);
  u32 sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 0x47800000) {  // too large, infinite or NaN
    to->bits = (u16)(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00));
  } else if (size < 0x38800000) {  // denormal: adding 0.5 rounds where a float16 ends
    float shifted;
    __builtin_memcpy(&shifted, &size, 4);
    shifted += 0.5f;
    __builtin_memcpy(&size, &shifted, 4);
    to->bits = (u16)(sign | (size - 0x3f000000));
  } else {
    size += 0xc8000fff + (size >> 13 & 1);
    to->bits = (u16)(sign | size >> 13);
  }
}

template <int N> INLINE void store(bfloat16* to, Vector<float, N> x) {
  const auto bits = (Vector<u32, N>)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const auto kept = x != x ? all<N>(0x7fc0u) : rounded;
  *(typename VectorOf<u16, N>::Unaligned*)to = __builtin_convertvector(kept, Vector<u16, N>);
}
template <int N> INLINE void store(float16* to, Vector<float, N> x) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    Vector<u16, N> bits;
    asm("vcvtps2ph $0, %1, %0" : "=v"(bits) : "v"(x));
    *(typename VectorOf<u16, N>::Unaligned*)to = bits;
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    Vector<u16, N> bits;
    asm("vcvtps2ph $0, %1, %0" : "=x"(bits) : "x"(x));
    *(typename VectorOf<u16, N>::Unaligned*)to = bits;
    return;
  }
#endif
  for (int lane = 0; lane < N; ++lane) put(to + lane, x[lane]);
}

// `to[:length] = factor * x[:length]`, converted.
template <class T, class S> INLINE void copy(T* to, const S* x, i64 length, Real<S> factor = 1) {
  constexpr int N = LANES<Real<S>>;
  i64 d = 0;
  for (; d + N <= length; d += N) store<N>(to + d, load<N>(x + d) * factor);
  for (; d < length; ++d) put(to + d, number(x[d]) * factor);
}

template <class A> INLINE void fill(A* to, i64 length, A value) {
  for (i64 d = 0; d < length; ++d) to[d] = value;
}

// --- arithmetic ----------------------------------------------------------------------------------

template <class A, int N> INLINE A sum(Vector<A, N> x) {
  if constexpr (N == 1) return x[0];
  else {
    auto both = (const A*)&x;
    return sum<A, N / 2>(load<N / 2>(both) + load<N / 2>(both + N / 2));
  }
}

template <class A, int N> INLINE A maximum(Vector<A, N> x) {
  A largest = x[0];
  for (int lane = 1; lane < N; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
}

template <class A, int N> INLINE Vector<A, N> greater(Vector<A, N> a, Vector<A, N> b) {
  return a > b ? a : b;  // b where a is NaN
}

// exp(x) as Cephes' expf has it; 0 where the result would be denormal, NaN for NaN.
//
// x = n log 2 + r. n is rounded by adding a number so large that no fraction is left, and becomes
// the exponent of the result; a polynomial gives exp(r).
template <class A, int N> INLINE Vector<A, N> exponential(Vector<A, N> x) {
  using V = Vector<A, N>;
  using I = Vector<Integer<A>, N>;
  constexpr bool single = sizeof(A) == 4;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  const A lowest = single ? -87.3 : -708.0, large = single ? 0x1.8p23 : 0x1.8p52;
  const A high = single ? 0.693359375 : 0.693145751953125;  // few bits: n * high is exact
  const A low = single ? -2.12194440e-4 : 1.42860682030941723212e-6;
  V bounded = x < lowest ? all<N>(lowest) : x;
  V shifted = bounded * A(1.4426950408889634074) + large;
  V n = shifted - large, r = bounded - n * high - n * low;
  constexpr double SINGLE[] = {1.9875691500e-4,
                               1.3981999507e-3,
                               8.3334519073e-3,
                               4.1665795894e-2,
                               1.6666665459e-1,
                               5.0000001201e-1,
                               1,
                               1};
  constexpr double DOUBLE[] = {1 / 6227020800.,
                               1 / 479001600.,
                               1 / 39916800.,
                               1 / 3628800.,
                               1 / 362880.,
                               1 / 40320.,
                               1 / 5040.,
                               1 / 720.,
                               1 / 120.,
                               1 / 24.,
                               1 / 6.,
                               1 / 2.,
                               1,
                               1};
  V result = {};
  if constexpr (single)
    for (double term : SINGLE) result = result * r + (A)term;
  else
    for (double term : DOUBLE) result = result * r + (A)term;
  V power = (V)(((I)shifted + (Integer<A>)bias) << mantissa);
  return x < lowest ? V{} : result * power;
}

// 1 - 2 / (exp(2 x) + 1), to about one rounding of 1.
template <class A, int N> INLINE Vector<A, N> hyperbolic_tangent(Vector<A, N> x) {
  Vector<A, N> bounded = x > 20 ? all<N>(A(20)) : x;  // 1 to the last bit from here on
  return 1 - 2 / (exponential<A, N>(bounded + bounded) + 1);
}

template <class A> INLINE A exponential(A x) {
  return exponential<A, LANES<A>>(all<LANES<A>>(x))[0];
}
