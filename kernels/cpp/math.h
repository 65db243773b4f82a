// Elementwise functions, one name for scalars and vectors: the `cpp` column of the prim table calls these.
//
// float32 vectors: exp, exp2, log, sin, cos, tanh, erf are polynomials below, at most 2 units in the last
// place (tanh 2.5; erf 6, 0.6 on average) over all inputs (tests measure it against float64); the rest, and
// all of float64, are Sleef's functions inside libtorch, at most 1 unit (erfc 1.5), bound once per library by
// mc_bind. Scalars use the C library. NaN, infinities, signed zeros and denormals come out as in eager mode.
#pragma once
#include "vec.h"

namespace mc {

// ---- instructions that GCC's vector types lack ------------------------------------------------------------

#define MC_EACH(V, expr) { V r; for (int l = 0; l < lanes_of<V>; ++l) r[l] = (expr); return r; }

template <class V> MC_INLINE V fma(V a, V b, V c) {
#ifdef __AVX2__
  if constexpr (same<V, vec<float, 8>>) return __builtin_ia32_vfmaddps256(a, b, c);
  else if constexpr (same<V, vec<float, 4>>) return __builtin_ia32_vfmaddps(a, b, c);
  else if constexpr (same<V, vec<double, 4>>) return __builtin_ia32_vfmaddpd256(a, b, c);
  else
#endif
#ifdef __AVX512F__
  if constexpr (same<V, vec<float, 16>>) return __builtin_ia32_vfmaddps512_mask(a, b, c, (u16)-1, 4);
  else if constexpr (same<V, vec<double, 8>>) return __builtin_ia32_vfmaddpd512_mask(a, b, c, (u8)-1, 4);
  else
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (is_vec<V> && sizeof(V) == 64 && is_float<lane<V>>) {  // two vectors: still one rounding
    typedef vec<lane<V>, lanes_of<V> / 2> Half;
    Half x[2], y[2], z[2];
    V r;
    __builtin_memcpy(x, &a, 64), __builtin_memcpy(y, &b, 64), __builtin_memcpy(z, &c, 64);
    const Half h[2] = {fma(x[0], y[0], z[0]), fma(x[1], y[1], z[1])};
    __builtin_memcpy(&r, h, 64);
    return r;
  } else
#endif
  return a * b + c;
}

// 0: to even, 1: floor, 2: ceil, 3: trunc
template <int Mode, class V> MC_INLINE V rounded(V x) {
#ifdef __AVX2__
  if constexpr (same<V, vec<float, 8>>) return __builtin_ia32_roundps256(x, Mode | 8);
  else if constexpr (same<V, vec<float, 4>>) return __builtin_ia32_roundps(x, Mode | 8);
  else if constexpr (same<V, vec<double, 4>>) return __builtin_ia32_roundpd256(x, Mode | 8);
  else
#endif
#ifdef __AVX512F__
  if constexpr (same<V, vec<float, 16>>) return __builtin_ia32_rndscaleps_mask(x, Mode | 8, x, (u16)-1, 4);
  else if constexpr (same<V, vec<double, 8>>) return __builtin_ia32_rndscalepd_mask(x, Mode | 8, x, (u8)-1,
      4);
  else
#endif
  if constexpr (is_vec<V>) MC_EACH(V, (rounded<Mode>(x[l])))
  else if constexpr (same<V, float>)
    return Mode == 0 ? __builtin_rintf(x) : Mode == 1 ? __builtin_floorf(x)
        : Mode == 2 ? __builtin_ceilf(x) : __builtin_truncf(x);
  else if constexpr (same<V, double>)
    return Mode == 0 ? __builtin_rint(x) : Mode == 1 ? __builtin_floor(x) : Mode == 2 ? __builtin_ceil(x)
        : __builtin_trunc(x);
  else return x;                                                           // integers are whole already
}
template <class V> MC_INLINE V round(V x) { return rounded<0>(x); }
template <class V> MC_INLINE V floor(V x) { return rounded<1>(x); }
template <class V> MC_INLINE V ceil(V x) { return rounded<2>(x); }
template <class V> MC_INLINE V trunc(V x) { return rounded<3>(x); }

template <class V> MC_INLINE V sqrt(V x) {
#ifdef __AVX2__
  if constexpr (same<V, vec<float, 8>>) return __builtin_ia32_sqrtps256(x);
  else if constexpr (same<V, vec<float, 4>>) return __builtin_ia32_sqrtps(x);
  else if constexpr (same<V, vec<double, 4>>) return __builtin_ia32_sqrtpd256(x);
  else
#endif
#ifdef __AVX512F__
  if constexpr (same<V, vec<float, 16>>) return __builtin_ia32_sqrtps512_mask(x, x, (u16)-1, 4);
  else if constexpr (same<V, vec<double, 8>>) return __builtin_ia32_sqrtpd512_mask(x, x, (u8)-1, 4);
  else
#endif
  if constexpr (is_vec<V>) MC_EACH(V, (sqrt(x[l])))
  else if constexpr (same<V, float>) return __builtin_sqrtf(x);
  else return __builtin_sqrt(x);
}
template <class V> MC_INLINE V rsqrt(V x) { return lane<V>(1) / sqrt(x); }
template <class V> MC_INLINE V reciprocal(V x) { return lane<V>(1) / x; }

// ---- signs, comparisons, selection ------------------------------------------------------------------------

template <class V> using ints_of = typename Pick<is_vec<V>, vec<int_of<lane<V>>, LaneOf<V>::n>,
    int_of<lane<V>>>::type;
template <class V> constexpr int_of<lane<V>> sign_bit() {
  return int_of<lane<V>>(1) << (sizeof(lane<V>) * 8 - 1);
}

template <class V> MC_INLINE V abs(V x) {
  if constexpr (is_float<lane<V>>) return bits_as<V>(bits_as<ints_of<V>>(x) & ~sign_bit<V>());
  else if constexpr (lane<V>(-1) > lane<V>(0)) return x;
  else return x < 0 ? V(-x) : x;
}
template <class V> MC_INLINE V neg(V x) { return -x; }
#define MC_OPERATOR(NAME, OP) template <class V> MC_INLINE V NAME(V a, V b) { return a OP b; }
MC_OPERATOR(add, +) MC_OPERATOR(sub, -) MC_OPERATOR(mul, *) MC_OPERATOR(div, /)
MC_OPERATOR(and_, &) MC_OPERATOR(or_, |) MC_OPERATOR(xor_, ^)
template <class V> MC_INLINE V not_(V a) { return ~a; }
#define MC_COMPARE(NAME, OP) template <class V> MC_INLINE auto NAME(V a, V b) { return a OP b; }
MC_COMPARE(eq, ==) MC_COMPARE(ne, !=) MC_COMPARE(lt, <)
MC_COMPARE(le, <=) MC_COMPARE(gt, >) MC_COMPARE(ge, >=)
template <class V> MC_INLINE auto signbit(V x) {
  if constexpr (is_float<lane<V>>) return bits_as<ints_of<V>>(x) < 0; else return x < 0;
}
template <class V> MC_INLINE V copysign(V x, V s) {
  return bits_as<V>((bits_as<ints_of<V>>(x) & ~sign_bit<V>()) | (bits_as<ints_of<V>>(s) & sign_bit<V>()));
}
// eager: NaN gives 0, as both comparisons fail
template <class V> MC_INLINE V sign(V x) {
  const V one = V{} + lane<V>(1), zero = V{};
  return where(x > zero, one, where(x < zero, V(zero - one), zero));
}
template <class V> MC_INLINE auto isnan(V x) { return x != x; }
template <class V> MC_INLINE auto isinf(V x) {
  if constexpr (is_float<lane<V>>) return abs(x) == lane<V>(__builtin_inff()); else return x != x;
}
// a > b ? a : b (or a < b), so b where one is NaN: one instruction, which GCC does not find.
template <bool Max, class V> MC_INLINE V extreme(V a, V b) {
#ifdef __AVX512F__
  if constexpr (same<V, vec<float, 16>>) {
    if constexpr (Max) return __builtin_ia32_maxps512_mask(a, b, a, (u16)-1, 4);
    else return __builtin_ia32_minps512_mask(a, b, a, (u16)-1, 4);
  } else
#endif
#ifdef __AVX2__
  if constexpr (same<V, vec<float, 8>>) {
    if constexpr (Max) return __builtin_ia32_maxps256(a, b);
    else return __builtin_ia32_minps256(a, b);
  } else
#endif
  if constexpr (Max) return a > b ? a : b;
  else return a < b ? a : b;
}
template <class V> MC_INLINE V larger(V a, V b) { return extreme<true>(a, b); }
template <class V> MC_INLINE V smaller(V a, V b) { return extreme<false>(a, b); }
// NaN wins. Branches that data decides cost much more than a comparison.
template <class V> MC_INLINE V maximum(V a, V b) {
  if constexpr (is_float<lane<V>>) return a != a ? a : larger(a, b); else return larger(a, b);
}
template <class V> MC_INLINE V minimum(V a, V b) {
  if constexpr (is_float<lane<V>>) return a != a ? a : smaller(a, b); else return smaller(a, b);
}

// ---- integers ---------------------------------------------------------------------------------------------

// Division by zero: eager raises for scalars' sake on some paths and traps on others; here it gives 0 and
// never traps.
template <class T> MC_INLINE T safe_div(T a, T b) { return b == 0 ? T(0) : b == T(-1) ? T(-a) : T(a / b); }
template <class T> MC_INLINE T safe_mod(T a, T b) { return b == 0 || b == T(-1) ? T(0) : T(a % b); }
template <class V> MC_INLINE V truncdiv(V a, V b) {
  if constexpr (is_float<lane<V>>) return trunc(a / b);
  else if constexpr (is_vec<V>) MC_EACH(V, (safe_div<lane<V>>(a[l], b[l])))
  else if constexpr (V(-1) > V(0)) return b == 0 ? 0 : a / b;
  else return safe_div<V>(a, b);
}
template <class V> MC_INLINE V remainder(V a, V b);
template <class V> MC_INLINE V fmod(V a, V b);
template <class V> MC_INLINE V floordiv(V a, V b) {
  if constexpr (is_vec<V>) MC_EACH(V, (floordiv<lane<V>>(a[l], b[l])))
  else if constexpr (V(-1) > V(0)) return b == 0 ? 0 : a / b;
  else {
    const V q = safe_div<V>(a, b), r = safe_mod<V>(a, b);
    return q - ((r != 0) & ((r < 0) != (b < 0)));
  }
}
// Shifts past the width: eager gives 0 to the left, all sign bits to the right.
template <class V> MC_INLINE V shl(V a, V b) {
  if constexpr (is_vec<V>) MC_EACH(V, (shl<lane<V>>(a[l], b[l])))
  else return (b < 0 || b >= V(sizeof(V) * 8)) ? V(0) : V(u64(a) << b);
}
template <class V> MC_INLINE V shr(V a, V b) {
  if constexpr (is_vec<V>) MC_EACH(V, (shr<lane<V>>(a[l], b[l])))
  else {
    constexpr int last = sizeof(V) * 8 - 1;
    if (b < 0 || b >= V(sizeof(V) * 8)) return V(-1) > V(0) ? V(V(a >> last) >> (V(-1) > V(0)))
        : V(a >> last);
    return a >> b;
  }
}

template <class V> MC_INLINE auto unsigned_of(V x) {
  if constexpr (is_vec<V>) return (vec<u32, lanes_of<V>>)x; else return u32(x);
}
// a * m, both without sign, as high and low words.
template <class V> MC_INLINE void long_product(V a, u32 m, V& high, V& low) {
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) {
    typedef vec<i32, 8> I;
    typedef vec<u64, 4> W;
    const auto even = (W)__builtin_ia32_pmuludq256((I)a, (I)splat<u32, 8>(m));
    const auto odd = (W)__builtin_ia32_pmuludq256((I)((W)a >> 32), (I)splat<u32, 8>(m));
    high = (V)((even >> 32) | (odd & ~W{} << 32)), low = (V)((even & ~W{} >> 32) | (odd << 32));
    return;
  }
#endif
  if constexpr (is_vec<V>) {
    const auto product = __builtin_convertvector(a, vec<u64, lanes_of<V>>) * u64(m);
    high = __builtin_convertvector(product >> 32, V), low = __builtin_convertvector(product, V);
  } else {
    const u64 product = u64(a) * m;
    high = V(product >> 32), low = V(product);
  }
}
// 32 random bits: Philox 2x32 with ten rounds (Salmon et al., 2011), the counter being (stream, index).
template <class V> MC_INLINE V philox(V key, V stream, V index) {
  auto k = unsigned_of(key), b = unsigned_of(stream), a = unsigned_of(index);
  for (int round = 0; round < 10; ++round, k += 0x9E3779B9u) {
    decltype(a) high, low;
    long_product(a, 0xD256D193u, high, low);
    a = high ^ k ^ b, b = low;
  }
  return (V)a;
}

// ---- Sleef and the C library ------------------------------------------------------------------------------

// MC_FN(name, args, Sleef suffix): the scalar overloads call the C library, vectors call Sleef where libtorch
// has the width, wider or narrower vectors go through the nearest width, and lane by lane through the C
// library where Sleef is absent.
typedef void* (*Lookup)(const char*);

// N lanes, the new ones repeat the first
template <int N, class V> MC_INLINE auto widen(V x) {
  vec<lane<V>, N> r = x[0] - vec<lane<V>, N>{};
  __builtin_memcpy(&r, &x, sizeof x);
  return r;
}
template <class R, class V> MC_INLINE R narrow(V x) { R r; __builtin_memcpy(&r, &x, sizeof r); return r; }

#if defined(__AVX512F__)
#define MC_SLEEF_WIDTHS(X, NAME, U) \
  X(NAME, float, 16, "f16_" U "avx512f") X(NAME, double, 8, "d8_" U "avx512f") \
  X(NAME, float, 8, "f8_" U "avx2") X(NAME, double, 4, "d4_" U "avx2")
#elif defined(__AVX2__)
#define MC_SLEEF_WIDTHS(X, NAME, U) X(NAME, float, 8, "f8_" U "avx2") X(NAME, double, 4, "d4_" U "avx2")
#else
#define MC_SLEEF_WIDTHS(X, NAME, U)
#endif

template <class V, class F, class S> MC_INLINE V call1(V x, F native, S scalar) {
  constexpr int full = 32 / sizeof(lane<V>);
  if constexpr (lanes_of<V> < full && is_float<lane<V>>) return narrow<V>(native(widen<full>(x)));
  else MC_EACH(V, (scalar(x[l])))
}
template <class V, class F, class S> MC_INLINE V call2(V x, V y, F native, S scalar) {
  constexpr int full = 32 / sizeof(lane<V>);
  if constexpr (lanes_of<V> < full && is_float<lane<V>>) return narrow<V>(native(widen<full>(x),
      widen<full>(y)));
  else MC_EACH(V, (scalar(x[l], y[l])))
}

// one slot for all units of a library
#define MC_SLOT(NAME, T, N, SUFFIX) inline void* NAME##_##T##N;
#define MC_VEC1(NAME, T, N, SUFFIX) MC_INLINE vec<T, N> NAME(vec<T, N> x) { typedef vec<T, N> Lanes_; \
  if (__builtin_expect(!NAME##_##T##N, 0)) MC_EACH(Lanes_, (mc::NAME(x[l]))) \
  return ((vec<T, N> (*)(vec<T, N>))NAME##_##T##N)(x); }
#define MC_VEC2(NAME, T, N, SUFFIX) MC_INLINE vec<T, N> NAME(vec<T, N> x, vec<T, N> y) { \
  typedef vec<T, N> Lanes_; \
  if (__builtin_expect(!NAME##_##T##N, 0)) MC_EACH(Lanes_, (mc::NAME(x[l], y[l]))) \
  return ((vec<T, N> (*)(vec<T, N>, vec<T, N>))NAME##_##T##N)(x, y); }
#define MC_BIND(NAME, T, N, SUFFIX) NAME##_##T##N = lookup("Sleef_" #NAME SUFFIX);

#define MC_FN1(NAME, U) MC_SLEEF_WIDTHS(MC_SLOT, NAME, U) \
  MC_INLINE float NAME(float x) { return __builtin_##NAME##f(x); } \
  MC_INLINE double NAME(double x) { return __builtin_##NAME(x); } \
  MC_SLEEF_WIDTHS(MC_VEC1, NAME, U) \
  template <class V> MC_INLINE V NAME(V x) { \
    return call1(x, [](auto v) { return NAME(v); }, [](auto s) { return NAME(s); }); }
#define MC_FN2(NAME, U) MC_SLEEF_WIDTHS(MC_SLOT, NAME, U) \
  MC_INLINE float NAME(float x, float y) { return __builtin_##NAME##f(x, y); } \
  MC_INLINE double NAME(double x, double y) { return __builtin_##NAME(x, y); } \
  MC_SLEEF_WIDTHS(MC_VEC2, NAME, U) \
  template <class V> MC_INLINE V NAME(V x, V y) { \
    return call2(x, y, [](auto v, auto w) { return NAME(v, w); }, \
                 [](auto s, auto t) { return NAME(s, t); }); \
  }

#define MC_ALL1(X) \
  X(expm1, "u10") X(log2, "u10") X(log10, "u10") X(log1p, "u10") X(tan, "u10") X(asin, "u10") X(acos, "u10") \
  X(atan, "u10") X(sinh, "u10") X(cosh, "u10") X(atanh, "u10") X(erfc, "u15") X(lgamma, "u10")
#define MC_OWN1(X) \
  X(exp, "u10") X(exp2, "u10") X(log, "u10") X(sin, "u10") X(cos, "u10") X(tanh, "u10") X(erf, "u10")
#define MC_ALL2(X) X(pow, "u10") X(atan2, "u10") X(hypot, "u05")
MC_ALL1(MC_FN1)
MC_ALL2(MC_FN2)

// Lane by lane through the C library: rare, or (asinh, acosh) infinite in Sleef for arguments near the
// largest.
#define MC_LIBM1(NAME) \
  MC_INLINE float NAME(float x) { return __builtin_##NAME##f(x); } \
  MC_INLINE double NAME(double x) { return __builtin_##NAME(x); } \
  template <class V> MC_INLINE V NAME(V x) MC_EACH(V, (NAME(x[l])))
MC_LIBM1(asinh)
MC_LIBM1(acosh)
#define MC_LIBM2(NAME, CNAME) \
  MC_INLINE float NAME##1(float x, float y) { return __builtin_##CNAME##f(x, y); } \
  MC_INLINE double NAME##1(double x, double y) { return __builtin_##CNAME(x, y); }
MC_LIBM2(fmod, fmod)
MC_LIBM2(nextafter, nextafter)
template <class V> MC_INLINE V nextafter(V x, V y) {
  if constexpr (is_vec<V>) MC_EACH(V, (nextafter1(x[l], y[l]))) else return nextafter1(x, y);
}
// Exactly, in double: a quotient below 2^28 and a float make a product of at most 53 bits. What rounding made
// one too large leaves a remainder of the other sign.
template <int N> MC_INLINE vec<float, N> fmod(vec<float, N> x, vec<float, N> y) {
  typedef vec<double, N / 2> D;
  vec<float, N> r;
  bool all = true;
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    vec<float, N / 2> low, high, part;
    __builtin_memcpy(&low, (const float*)&x + h * N / 2, sizeof low);
    __builtin_memcpy(&high, (const float*)&y + h * N / 2, sizeof high);
    const D a = __builtin_convertvector(low, D), b = abs(__builtin_convertvector(high, D));
    const D q = trunc(a / b), rest = a - q * b;
    const D fixed = ((rest < 0) ^ (a < 0)) & (rest != 0) ? rest + copysign(b, a) : rest;
    all = all && !any(~((abs(q) < 0x1p28) & (b < 0x1p200)));
    part = __builtin_convertvector(copysign(fixed, a), vec<float, N / 2>);
    __builtin_memcpy((float*)&r + h * N / 2, &part, sizeof part);
  }
  if (__builtin_expect(all, 1)) return r;
  for (int l = 0; l < N; ++l) r[l] = fmod1(x[l], y[l]);
  return r;
}
template <class V> MC_INLINE V fmod(V x, V y) {
  if constexpr (is_vec<V> && same<lane<V>, float> && lanes_of<V> >= 8) return fmod<lanes_of<V>>(x, y);
  else if constexpr (is_vec<V>) MC_EACH(V, (fmod<lane<V>>(x[l], y[l])))
  else if constexpr (is_float<V>) return fmod1(x, y);
  else if constexpr (V(-1) > V(0)) return y == 0 ? 0 : x % y;
  else return safe_mod<V>(x, y);
}
template <class V> MC_INLINE V remainder(V x, V y) {
  if constexpr (is_vec<V>) MC_EACH(V, (remainder<lane<V>>(x[l], y[l])))
  else {
    const V r = fmod(x, y);
    return r != 0 && (y < 0) != (r < 0) ? V(r + y) : r;
  }
}

// ---- float32 polynomials ----------------------------------------------------------------------------------

namespace detail {

template <class V> MC_INLINE V poly(V x, float c) { return V{} + c; }
template <class V, class... C> MC_INLINE V poly(V x, float c0, C... c) {
  return fma(poly(x, c...), x, V{} + c0);
}

// 2^n for whole |n| <= 252, as a product of two normal powers, so that results may be denormal or infinite.
template <class V> MC_INLINE V times_pow2(V y, V n) {
  auto i = __builtin_convertvector(n, ints_of<V>);
  auto half = i >> 1;
  return y * bits_as<V>((half + 127) << 23) * bits_as<V>((i - half + 127) << 23);
}

// x, but lo at least and hi at most; a NaN passes.
template <class V> MC_INLINE V clamped(V x, float lo, float hi) {
  return smaller(V(V{} + hi), larger(V(V{} + lo), x));
}

// x = n * ln(2) + r with |r| <= ln(2)/2, in two parts.
template <class V> MC_INLINE V reduce_ln2(V x, V& n) {
  n = round(x * 1.44269504f);
  V r = fma(n, V{} - 0.69314575f, x);
  return fma(n, V{} - 1.4286068e-06f, r);
}

// e^r - 1 for |r| <= ln(2)/2: r + r^2 * P(r), |error| < 2e-9 before rounding.
template <class V> MC_INLINE V expm1_reduced(V r) {
  V p = poly(r, 0.5f, 0.16666667f, 0.041666467f, 0.008333286f, 0.0013933643f, 0.0001990757f);
  return fma(p * r, r, r);
}
template <class V> MC_INLINE V exp_reduced(V r) { return expm1_reduced(r) + 1.0f; }

template <class V> static __attribute__((noinline)) V exp_anywhere(V x) {
  V c = clamped(x, -104.0f, 89.0f);
  V n, r = reduce_ln2(c, n);
  n = x != x ? V{} : n;
  return times_pow2(exp_reduced(r), n);
}
// Where no result is denormal, infinite or NaN, one multiplication is enough. Results that are 0 come
// without any that underflows, which would take some processors a hundred cycles: masked scores are such
// numbers. AVX-512 has an instruction that multiplies by 2^n whatever n is.
template <class V> MC_INLINE V exp(V x) {
#ifdef __AVX512F__
  if constexpr (same<V, vec<float, 16>>) {
    V c = clamped(x, -104.0f, 89.0f);
    V n, r = reduce_ln2(c, n);
    return __builtin_ia32_scalefps512_mask(exp_reduced(r), n, x, (u16)-1, 4);
  }
#endif
  if (any(~(((x > -87.0f) & (x < 88.0f)) | (x < -104.0f)))) return exp_anywhere(x);
  V c = x > -87.0f ? x : V{} - 87.0f;
  V n, r = reduce_ln2(c, n);
  V y = exp_reduced(r) * bits_as<V>((__builtin_convertvector(n, ints_of<V>) + 127) << 23);
  return x < -104.0f ? V{} : y;
}

template <class V> MC_INLINE V exp2(V x) {
  V c = clamped(x, -151.0f, 129.0f);
  V n = round(c);
  V r = (c - n) * 0.69314718f;
  n = x != x ? V{} : n;
  return times_pow2(exp_reduced(r), n);
}

// log(m * 2^e) with m in [sqrt(1/2), sqrt(2)): f = m - 1, log(m) = f - f^2/2 + f^3 P(f).
template <class V> MC_INLINE V log(V x) {
  typedef ints_of<V> I;
  auto tiny = x < 1.17549435e-38f;
  V y = tiny ? x * 8388608.0f : x;
  I i = bits_as<I>(y);
  I e = (i - 0x3f3504f3) >> 23;                                            // 0x3f3504f3 is sqrt(1/2)
  V m = bits_as<V>(i - (e << 23));
  V fe = __builtin_convertvector(e, V) - (tiny ? V{} + 23.0f : V{});
  V f = m - 1.0f;
  V p = poly(f, 0.3333331f, -0.24999987f, 0.20002152f, -0.16669197f, 0.14219919f, -0.12385798f, 0.11866035f,
      -0.11779667f,
             0.06917984f);
  V f2 = f * f;
  V tail = fma(p * f, f2, fe * -2.1219444e-04f);
  V r = fma(f2, V{} - 0.5f, tail) + f;
  r = fma(fe, V{} + 0.693359375f, r);
  r = x == V{} + __builtin_inff() ? x : r;
  r = x == V{} ? V{} - __builtin_inff() : r;
  return (x < V{}) | (x != x) ? V{} + __builtin_nanf("") : r;
}

// x = n * pi/2 + r with |r| <= pi/4 (three-part pi/2, good for |x| < 30000; beyond that `far`).
template <class V> MC_INLINE V reduce_pi(V x, V& n) {
  n = round(x * 0.636619772f);
  V r = fma(n, V{} - 1.5707964f, x);
  r = fma(n, V{} + 4.371139e-08f, r);
  return fma(n, V{} + 1.7151245e-15f, r);
}
template <class V> MC_INLINE V sin_reduced(V r, V z) {
  return fma(poly(z, -0.16666667f, 0.008333332f, -0.00019840064f, 2.7246947e-06f) * z, r, r);
}
template <class V> MC_INLINE V cos_reduced(V z) {
  V p = poly(z, 0.041666668f, -0.0013888888f, 2.4800582e-05f, -2.7298464e-07f);
  return fma(p * z, z, fma(z, V{} - 0.5f, V{} + 1.0f));
}
template <int Quarter, class V> MC_INLINE V sin_shifted(V x) {             // sin(x + Quarter * pi/2)
  V n, r = reduce_pi(x, n), z = r * r;
  auto q = __builtin_convertvector(n, ints_of<V>) + Quarter;
  V y = (q & 1) != 0 ? cos_reduced(z) : sin_reduced(r, z);
  y = bits_as<V>(bits_as<ints_of<V>>(y) ^ ((q & 2) << 30));
  if constexpr (Quarter == 0) return x == V{} ? x : y;
  else return y;
}
// arguments beyond the reduction's range, one by one
template <class V> V far(V x, V near, double (*f)(double)) {
  for (int l = 0; l < lanes_of<V>; ++l) if (!(abs(x[l]) < 30000.0f)) near[l] = float(f(x[l]));
  return near;
}
template <class V> MC_INLINE V sin(V x) {
  V y = sin_shifted<0>(x);
  if (__builtin_expect(any(~(abs(x) < 30000.0f)), 0))
    return far(x, y, [](double v) { return __builtin_sin(v); });
  return y;
}
template <class V> MC_INLINE V cos(V x) {
  V y = sin_shifted<1>(x);
  if (__builtin_expect(any(~(abs(x) < 30000.0f)), 0))
    return far(x, y, [](double v) { return __builtin_cos(v); });
  return y;
}

// (e^2a - 1) / (e^2a + 1) for a = |x|, from e^r - 1 = r + r^2 P(r), which is exact enough where it is small.
template <class V> MC_INLINE V tanh(V x) {
  V a = abs(x);
  a = a > 9.2f ? V{} + 9.2f : a;                                           // a NaN passes
  V n, r = reduce_ln2(V(a + a), n);
  V power = bits_as<V>((__builtin_convertvector(n, ints_of<V>) + 127) << 23);
  V e = fma(expm1_reduced(r), power, power - 1.0f);
  return copysign(V(e / (e + 2.0f)), x);
}

// x * P(x^2) / Q(x^2), a minimax fit (relative error 1.9e-8) up to where erf rounds to 1.
template <class V> MC_INLINE V erf(V x) {
  V c = clamped(x, -3.92f, 3.92f);
  V z = c * c;
  V p = poly(z, 1.12837911f, 0.19039683f, 0.052747272f, 0.00376515742f, 0.000284864858f, 2.05006268e-06f);
  V q = poly(z, 1.0f, 0.502067566f, 0.114104971f, 0.0149682993f, 0.00116241013f, 3.80905258e-05f);
  return clamped(V(c * p / q), -1.0f, 1.0f);
}

}  // namespace detail

// The public names: float32 vectors take the polynomial, float64 vectors Sleef, scalars the C library.
#define MC_MIXED(NAME, U) \
  MC_SLEEF_WIDTHS(MC_SLOT, NAME, U) \
  MC_INLINE float NAME(float x) { return __builtin_##NAME##f(x); } \
  MC_INLINE double NAME(double x) { return __builtin_##NAME(x); } \
  namespace sleef { \
    MC_SLEEF_WIDTHS(MC_VEC1, NAME, U) \
    template <class V> MC_INLINE V NAME(V x) { \
      return call1(x, [](auto v) { return sleef::NAME(v); }, [](auto s) { return mc::NAME(s); }); } } \
  template <class V> MC_INLINE V NAME(V x) { \
    if constexpr (same<lane<V>, float>) return detail::NAME(x); else return sleef::NAME(x); }
MC_OWN1(MC_MIXED)

// ---- functions neither the C library nor Sleef has --------------------------------------------------------

// Winitzki's first guess, then Newton steps on erf(y) = x (on erfc in the tail, where 1 - x is exact).
MC_INLINE double erfinv(double x) {
  if (!(x > -1 && x < 1)) return x == 1 ? __builtin_inf() : x == -1 ? -__builtin_inf() : __builtin_nan("");
  const double w = __builtin_log1p(-x * x), b = 4.3307467508 + w / 2;       // 2 / (pi * 0.147)
  double y = __builtin_copysign(__builtin_sqrt(__builtin_sqrt(b * b - w / 0.147) - b), x);
  for (int i = 0; i < 3; ++i) {
    const double a = __builtin_fabs(y);
    const double tail = (1 - __builtin_fabs(x)) - __builtin_erfc(a);
    const double miss = a < 0.5 ? __builtin_erf(y) - x : y < 0 ? -tail : tail;
    const double step = miss * 0.88622692545275801365 * __builtin_exp(y * y);
    y -= step / (1 + y * step);
  }
  return x == 0 ? x : y;
}
// Recurrence up to 10, then the asymptotic series; reflection for negative arguments.
MC_INLINE double digamma(double x) {
  if (x == 0) return __builtin_copysign(__builtin_inf(), -x);
  double r = 0;
  if (x < 0) {
    const double whole = __builtin_trunc(x);
    if (x == whole) return __builtin_nan("");
    r = -3.14159265358979323846 / __builtin_tan(3.14159265358979323846 * (x - whole));
    x = 1 - x;
  }
  for (; x < 10; x += 1) r -= 1 / x;
  const double z = 1 / (x * x);
  const double s = z * (1. / 12 - z * (1. / 120 - z * (1. / 252 - z * (1. / 240 - z * (1. / 132
      - z * (691. / 32760 - z / 12))))));
  return r + __builtin_log(x) - 0.5 / x - s;
}
MC_INLINE float erfinv(float x) { return float(erfinv(double(x))); }
MC_INLINE float digamma(float x) { return float(digamma(double(x))); }
template <class V> MC_INLINE V erfinv(V x) MC_EACH(V, (erfinv(x[l])))
template <class V> MC_INLINE V digamma(V x) MC_EACH(V, (digamma(x[l])))

// Called once when a library is loaded.
static void bind_math(Lookup lookup) {
  (void)lookup;
#define MC_BIND_ALL(NAME, U) MC_SLEEF_WIDTHS(MC_BIND, NAME, U)
  MC_ALL1(MC_BIND_ALL) MC_OWN1(MC_BIND_ALL) MC_ALL2(MC_BIND_ALL)
}

}  // namespace mc
