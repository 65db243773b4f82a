// Vectors, masks, loads, stores and casts: what every emitted kernel stands on.
//
// A value of a kernel is a scalar T or a GCC vector of N lanes, vec<T, N>; the emitter writes the same text
// for both and overloads pick. Bool is `bool` as a scalar, and a "mask" as a vector: a vector of signed
// integers of any width, 0 or -1 per lane, which is what comparisons give. bfloat16 and float16 exist in
// memory and as raw 16-bit lanes; arithmetic sees them only after cast<float, bf16>. No header of the C++
// library or of torch is included: a compile of a graph must take well under a second.
#pragma once

namespace mc {

typedef signed char i8; typedef unsigned char u8; typedef short i16; typedef unsigned short u16;
typedef int i32; typedef unsigned u32; typedef long i64; typedef unsigned long u64;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct b8 { u8 bits; };                                    // a bool in memory

#define MC_INLINE inline __attribute__((always_inline))

template <class T, int N> struct VecOf { typedef T type __attribute__((vector_size(sizeof(T) * N))); };
template <class T, int N> using vec = typename VecOf<T, N>::type;

template <class V> V declv();
template <class...> struct Void { typedef void type; };
template <class T> struct NoRef { typedef T type; };
template <class T> struct NoRef<T&> { typedef T type; };
template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool same = Same<A, B>::value;

// lane<V>: the scalar type of V; lanes_of<V>: how many (1 for scalars).
template <class V, class = void> struct LaneOf { typedef V type; static constexpr int n = 1; };
template <class V> struct LaneOf<V, typename Void<decltype(declv<V&>()[0])>::type> {
  typedef typename NoRef<decltype(declv<V&>()[0])>::type type;
  static constexpr int n = sizeof(V) / sizeof(type);
};
template <class V> using lane = typename LaneOf<V>::type;
template <class V> constexpr int lanes_of = LaneOf<V>::n;
template <class V> constexpr bool is_vec = LaneOf<V>::n > 1;

template <int B> struct IntOf;
template <> struct IntOf<1> { typedef i8 type; };
template <> struct IntOf<2> { typedef i16 type; };
template <> struct IntOf<4> { typedef i32 type; };
template <> struct IntOf<8> { typedef i64 type; };
template <class T> using int_of = typename IntOf<sizeof(T)>::type;         // signed integer as wide as T
template <class V> using mask_of = vec<int_of<lane<V>>, lanes_of<V>>;      // what comparing two V gives

template <class T> constexpr bool is_float = same<T, float> || same<T, double>;

// How much of a vector exists: all lanes, or (the last step along an axis) the first n.
struct Full { static constexpr bool full = true; static constexpr int n = 1 << 30; };
struct Tail { static constexpr bool full = false; int n; };

// ---- shapes of values -------------------------------------------------------------------------------------

template <class T, int N> MC_INLINE vec<T, N> splat(T x) { return x - vec<T, N>{}; }
template <> MC_INLINE vec<float, 8> splat<float, 8>(float x) { return vec<float, 8>{x, x, x, x, x, x, x, x}; }
template <> MC_INLINE vec<float, 4> splat<float, 4>(float x) { return vec<float, 4>{x, x, x, x}; }
#ifdef __AVX512F__
template <> MC_INLINE vec<float, 16> splat<float, 16>(float x) {
  return vec<float, 16>{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
#endif
template <> MC_INLINE vec<double, 4> splat<double, 4>(double x) { return vec<double, 4>{x, x, x, x}; }
template <> MC_INLINE vec<double, 2> splat<double, 2>(double x) { return vec<double, 2>{x, x}; }
template <> MC_INLINE vec<double, 8> splat<double, 8>(double x) { return vec<double, 8>{x, x, x, x, x, x, x,
    x}; }
template <int N> MC_INLINE vec<i8, N> splat_mask(bool c) { return splat<i8, N>(c ? -1 : 0); }

// base, base + 1, … in the lanes.
template <class T, int N> MC_INLINE vec<T, N> ramp(T base, T step = 1) {
  vec<T, N> r;
#pragma GCC unroll 64
  for (int l = 0; l < N; ++l) r[l] = T(l);                                // a constant
  return splat<T, N>(base) + r * splat<T, N>(step);
}

// f(0), f(1), … in the lanes.
template <class T, int N, class F> MC_INLINE vec<T, N> each(F f) {
  vec<T, N> r;
  for (int l = 0; l < N; ++l) r[l] = f(l);
  return r;
}

template <class To, class From> MC_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From), "bits_as: sizes differ");
  To r;
  __builtin_memcpy(&r, &x, sizeof r);
  return r;
}

// Integers of another width, twice or half as wide at a time: such a step has an instruction, a longer one
// goes
// lane by lane.
template <class To, class V> MC_INLINE auto resize(V x) {
  typedef lane<V> From;
  constexpr int from = sizeof(From), to = sizeof(To), N = lanes_of<V>;
  if constexpr (from > 2 * to)
    return resize<To>(__builtin_convertvector(x, vec<typename IntOf<from / 2>::type, N>));
  else if constexpr (same<From, u8> && to > 2) return resize<To>(__builtin_convertvector(x, vec<u16, N>));
  else if constexpr (same<From, i8> && to > 2) return resize<To>(__builtin_convertvector(x, vec<i16, N>));
  else return __builtin_convertvector(x, vec<To, N>);
}

// A mask with lanes as wide as another type needs.
template <class M, class C> MC_INLINE M mask_as(C c) {
  if constexpr (same<M, C>) return c;
  else return resize<lane<M>>(c);
}

template <class C> MC_INLINE bool any(C c) {
  if constexpr (!is_vec<C>) return c;
#ifdef __AVX__
#ifdef __AVX512F__
  else if constexpr (sizeof(C) == 64) {
    return __builtin_ia32_ptestmd512(bits_as<vec<i32, 16>>(c), bits_as<vec<i32, 16>>(c), -1) != 0;
  }
#endif
  else if constexpr (sizeof(C) == 32) {
    typedef long long all __attribute__((vector_size(32)));
    return !__builtin_ia32_ptestz256(bits_as<all>(c), bits_as<all>(c));
  }
#endif
  else {
    constexpr int W = sizeof(C) < 8 ? 1 : sizeof(C) / 8;
    if constexpr (sizeof(C) < 8) {
      for (int l = 0; l < lanes_of<C>; ++l) if (c[l]) return true;
      return false;
    } else {
      u64 w[W], all = 0;
      __builtin_memcpy(w, &c, sizeof c);
#pragma GCC unroll 8
      for (int i = 0; i < W; ++i) all |= w[i];
      return all != 0;
    }
  }
}

template <class C, class V> MC_INLINE V where(C c, V a, V b) {
  if constexpr (is_vec<V> && is_vec<C>) return mask_as<mask_of<V>>(c) ? a : b;
  else return c ? a : b;
}

// ---- bool: logical operators on masks of different widths -------------------------------------------------

template <class A, class B> struct Wider { typedef A type; };
template <bool First, class A, class B> struct Pick { typedef A type; };
template <class A, class B> struct Pick<false, A, B> { typedef B type; };
template <class A, class B> using wider = typename Pick<(sizeof(A) >= sizeof(B)), A, B>::type;

template <class A, class B> MC_INLINE auto mask_and(A a, B b) {
  if constexpr (!is_vec<A>) return a && b; else { typedef wider<A, B> M;
      return mask_as<M>(a) & mask_as<M>(b); }
}
template <class A, class B> MC_INLINE auto mask_or(A a, B b) {
  if constexpr (!is_vec<A>) return a || b; else { typedef wider<A, B> M;
      return mask_as<M>(a) | mask_as<M>(b); }
}
template <class A, class B> MC_INLINE auto mask_xor(A a, B b) {
  if constexpr (!is_vec<A>) return a != b; else { typedef wider<A, B> M;
      return mask_as<M>(a) ^ mask_as<M>(b); }
}
template <class A> MC_INLINE auto mask_not(A a) {
  if constexpr (!is_vec<A>) return !a; else return ~a;
}
template <class C, class A, class B> MC_INLINE auto mask_where(C c, A a, B b) {
  return mask_or(mask_and(c, a), mask_and(mask_not(c), b));
}

// ---- memory -----------------------------------------------------------------------------------------------

// Raw lane type of an element in memory.
template <class T> struct RawOf { typedef T type; };
template <> struct RawOf<bf16> { typedef u16 type; };
template <> struct RawOf<f16> { typedef u16 type; };
template <> struct RawOf<b8> { typedef u8 type; };
template <class T> using raw = typename RawOf<T>::type;

template <class T, class R> MC_INLINE auto from_raw(R r) {                // only bool changes on its way in
  if constexpr (!same<T, b8>) return r;
  else if constexpr (is_vec<R>) return r != 0;
  else return r != 0;
}
template <class T, class V> MC_INLINE auto to_raw(V v) {
  if constexpr (!same<T, b8>) return v;
  else if constexpr (is_vec<V>) return bits_as<vec<u8, lanes_of<V>>>(mask_as<vec<i8, lanes_of<V>>>(v) & 1);
  else return u8(v);
}

template <class T> MC_INLINE auto load(const T* p) {                       // one element
  raw<T> r;
  __builtin_memcpy(&r, p, sizeof r);
  return from_raw<T>(r);
}
template <class T, class V> MC_INLINE void store(T* p, V v) {
  raw<T> r = to_raw<T>(v);
  __builtin_memcpy(p, &r, sizeof r);
}

// N elements in a row, absent ones 0
template <int N, class T, class M> MC_INLINE auto load(const T* p, M m) {
  vec<raw<T>, N> r;
  if constexpr (M::full) __builtin_memcpy(&r, p, sizeof r);
  else {
    r = vec<raw<T>, N>{};
    __builtin_memcpy(&r, p, m.n * sizeof(T));
  }
  return from_raw<T>(r);
}
template <int N, class T, class V, class M> MC_INLINE void store(T* p, V v, M m) {
  vec<raw<T>, N> r = to_raw<T>(v);
  if constexpr (M::full) __builtin_memcpy(p, &r, sizeof r);
  else __builtin_memcpy(p, &r, m.n * sizeof(T));
}

// Elements anywhere: at(l) is the address of lane l's. Absent lanes are 0 and not read.
template <int N, class T, class F, class M> MC_INLINE auto gather(F at, M m) {
  vec<raw<T>, N> r = {};
  if constexpr (M::full) {
#pragma GCC unroll 64
    for (int l = 0; l < N; ++l) r[l] = *(const raw<T>*)at(l);
  } else {
    for (int l = 0; l < m.n; ++l) r[l] = *(const raw<T>*)at(l);
  }
  return from_raw<T>(r);
}
template <int N, class T, class F, class C, class M> MC_INLINE auto gather_if(C c, F at, M m) {
  vec<raw<T>, N> r = {};
  const int n = m.n < N ? m.n : N;
  for (int l = 0; l < n; ++l) if (c[l]) r[l] = *(const raw<T>*)at(l);
  return from_raw<T>(r);
}
// N elements in a row, from p downwards.
template <int N, class T, class M> MC_INLINE auto load_back(const T* p, M m) {
  if constexpr (M::full) {
    vec<raw<T>, N> r;
    vec<int_of<raw<T>>, N> order;
#pragma GCC unroll 64
    for (int l = 0; l < N; ++l) order[l] = N - 1 - l;
    __builtin_memcpy(&r, p - (N - 1), sizeof r);
    return from_raw<T>(__builtin_shuffle(r, order));
  } else return gather<N, T>([&](int l) { return p - l; }, m);
}
#ifdef __AVX2__
MC_INLINE auto masked_load(vec<i32, 8> c, const void* p) {
  return __builtin_ia32_maskloadd256((const vec<i32, 8>*)p, c);
}
MC_INLINE auto masked_load(vec<i32, 4> c, const void* p) {
  return __builtin_ia32_maskloadd((const vec<i32, 4>*)p, c);
}
typedef vec<long long, 4> i64x4_; typedef vec<long long, 2> i64x2_;
MC_INLINE auto masked_load(vec<i64, 4> c, const void* p) {
  return __builtin_ia32_maskloadq256((const i64x4_*)p, bits_as<i64x4_>(c));
}
MC_INLINE auto masked_load(vec<i64, 2> c, const void* p) {
  return __builtin_ia32_maskloadq((const i64x2_*)p, bits_as<i64x2_>(c));
}
#ifdef __AVX512F__
MC_INLINE auto masked_load(vec<i32, 16> c, const void* p) {
  return __builtin_ia32_loadups512_mask((const float*)p, vec<float, 16>{},
                                        __builtin_ia32_ptestmd512(c, c, -1));
}
MC_INLINE auto masked_load(vec<i64, 8> c, const void* p) {
  typedef vec<long long, 8> L;
  return __builtin_ia32_loadupd512_mask((const double*)p, vec<double, 8>{},
                                        __builtin_ia32_ptestmq512(bits_as<L>(c), bits_as<L>(c), -1));
}
#endif
constexpr int MASKED_BYTES = sizeof(vec<i32, 8>)
#ifdef __AVX512F__
    * 2
#endif
    ;
template <class T, int N> constexpr bool masked_loads =
    (sizeof(T) == 4 || sizeof(T) == 8) && sizeof(T) * N >= 16 && sizeof(T) * N <= MASKED_BYTES;
#else
template <class T, int N> constexpr bool masked_loads = false;
template <class I> I masked_load(I c, const void* p);  // not there
#endif
template <int N, class T, class C, class M> MC_INLINE auto load_if(C c, const T* p, M m) {
  if constexpr (masked_loads<T, N>) {
    typedef vec<int_of<T>, N> I;
    I mask = mask_as<I>(c);
    if constexpr (!M::full) mask &= ramp<int_of<T>, N>(0) < int_of<T>(m.n);
    return from_raw<T>(bits_as<vec<raw<T>, N>>(masked_load(mask, p)));
  }
  if (M::full && !any(~c)) return load<N>(p, m);                            // most often: away from the edges
  return gather_if<N, T>(c, [&](int l) { return p + l; }, m);
}
// Every other element from p on, where c holds: two vectors, the second ending at the last element, shuffled.
// What is read of the two:
template <class I> struct Evens { I low, high; };
template <class I> MC_INLINE Evens<I> evens_where(I mask) {
  constexpr int N = lanes_of<I>;
  I low, high, odd;  // the lanes that their elements belong to
#pragma GCC unroll 64
  for (int l = 0; l < N; ++l) low[l] = l / 2, high[l] = (N - 1 + l) / 2, odd[l] = -(l & 1);
  return {__builtin_shuffle(mask, low) & ~odd, __builtin_shuffle(mask, high) & odd};
}
template <class V> MC_INLINE V evens_of(V a, V b) {
  constexpr int N = lanes_of<V>;
  vec<int_of<lane<V>>, N> even;
#pragma GCC unroll 64
  for (int l = 0; l < N; ++l) even[l] = 2 * l < N ? 2 * l : 2 * l + 1;
  return __builtin_shuffle(a, b, even);
}
template <int N, class T> MC_INLINE vec<T, N> load_evens(const Evens<vec<int_of<T>, N>>& where, const T* p) {
  typedef vec<T, N> V;
  return evens_of(bits_as<V>(masked_load(where.low, p)), bits_as<V>(masked_load(where.high, p + (N - 1))));
}
struct Each {};
template <int N, class C, class T, class M> MC_INLINE auto load_even(C c, const T* p, M m) {
  if constexpr (masked_loads<T, N>) {
    typedef vec<int_of<raw<T>>, N> I;
    if constexpr (M::full && same<C, Each>) {
      vec<raw<T>, N> a, b;
      __builtin_memcpy(&a, p, sizeof a);
      __builtin_memcpy(&b, p + (N - 1), sizeof b);
      return from_raw<T>(evens_of(a, b));
    } else {
      I mask = ramp<int_of<raw<T>>, N>(0) < int_of<raw<T>>(m.n);
      if constexpr (!same<C, Each>) mask &= mask_as<I>(c);
      return from_raw<T>(load_evens<N>(evens_where(mask), (const raw<T>*)p));
    }
  } else {
    const auto at = [&](int l) { return p + 2 * l; };
    if constexpr (same<C, Each>) return gather<N, T>(at, m);
    else return gather_if<N, T>(c, at, m);
  }
}
template <int N, class T, class F, class V, class M> MC_INLINE void scatter(F at, V v, M m) {
  vec<raw<T>, N> r = to_raw<T>(v);
  const int n = m.n < N ? m.n : N;
  for (int l = 0; l < n; ++l) *(raw<T>*)at(l) = r[l];
}

// N vectors of N lanes, rows for columns, in registers: log2(N) rounds of pairwise interleaving.
template <class V, int N> MC_INLINE void transpose(V (&r)[N]) {
  static_assert(N == lanes_of<V>, "transpose: as many vectors as lanes");
  vec<int_of<lane<V>>, N> lo, hi;
#pragma GCC unroll 64
  for (int i = 0; i < N; ++i) {
    lo[i] = i / 2 + (i % 2) * N;
    hi[i] = lo[i] + N / 2;
  }
#pragma GCC unroll 6
  for (int round = 1; round < N; round *= 2) {
    V t[N];
#pragma GCC unroll 32
    for (int i = 0; i < N / 2; ++i) {
      t[2 * i] = __builtin_shuffle(r[i], r[i + N / 2], lo);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + N / 2], hi);
    }
#pragma GCC unroll 64
    for (int i = 0; i < N; ++i) r[i] = t[i];
  }
}

// A tile whose columns lie in rows of memory: lane l of r[u] is p[u + l * stride], for the rows u and lanes
// l that
// exist; 0 elsewhere.
template <class T, int N, class R, class M>
MC_INLINE void load_columns(vec<raw<T>, N> (&r)[N], const T* p, i64 stride, R rows, M m) {
#pragma GCC unroll 64
  for (int l = 0; l < N; ++l) {
    r[l] = vec<raw<T>, N>{};
    if (l < m.n) __builtin_memcpy(&r[l], p + l * stride, R::full ? sizeof r[l] : rows.n * sizeof(T));
  }
  transpose(r);
}

typedef short i16x8_ __attribute__((vector_size(16)));

// ---- casts ------------------------------------------------------------------------------------------------

// u16 to u32 and, for what fits, back. GCC has a plain instruction for each only if told.
template <class U> MC_INLINE auto widened(U x) {
  constexpr int N = lanes_of<U>;
#ifdef __AVX2__
  if constexpr (N == 8) return bits_as<vec<u32, 8>>(__builtin_ia32_pmovzxwd256(bits_as<i16x8_>(x))); else
#endif
#ifdef __AVX512F__
  if constexpr (N == 16)
    return bits_as<vec<u32, 16>>(
        __builtin_ia32_pmovzxwd512_mask(bits_as<vec<short, 16>>(x), vec<i32, 16>{}, -1));
  else
#endif
  return __builtin_convertvector(x, vec<u32, N>);
}
template <class U> MC_INLINE auto narrowed(U x) {
  constexpr int N = lanes_of<U>;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (N == 8) {
    vec<i32, 4> half[2];
    __builtin_memcpy(half, &x, sizeof half);
    return bits_as<vec<u16, 8>>(__builtin_ia32_packusdw128(half[0], half[1]));
  } else
#endif
#ifdef __AVX512F__
  if constexpr (N == 16)
    return bits_as<vec<u16, 16>>(
        __builtin_ia32_pmovdw512_mask(bits_as<vec<i32, 16>>(x), vec<short, 16>{}, -1));
  else
#endif
  return __builtin_convertvector(x, vec<u16, N>);
}
template <class U> MC_INLINE auto float_of_bf16(U x) {
  if constexpr (is_vec<U>) {
    constexpr int N = lanes_of<U>;
    return bits_as<vec<float, N>>(widened(x) << 16);
  } else return bits_as<float>(u32(x) << 16);
}
// round to nearest even; NaN stays NaN
template <class F> MC_INLINE auto bf16_of_float(F x) {
  if constexpr (is_vec<F>) {
    constexpr int N = lanes_of<F>;
    auto u = bits_as<vec<u32, N>>(x);
    auto rounded = (u + (0x7fff + ((u >> 16) & 1))) >> 16;
    return narrowed((x != x) ? vec<u32, N>{} + 0x7fc0 : rounded);
  } else {
    u32 u = bits_as<u32>(x);
    return u16(x != x ? 0x7fc0 : (u + (0x7fff + ((u >> 16) & 1))) >> 16);
  }
}
// A float32 rounded to bfloat16, still a float32: what a cast there and back gives, without the packing.
template <class F> MC_INLINE F rounded_bf16(F x) {
  if constexpr (!is_vec<F>) return float_of_bf16(bf16_of_float(x));
  else {
    auto u = bits_as<vec<u32, lanes_of<F>>>(x);
    return (x != x) ? x : bits_as<F>((u + (0x7fff + ((u >> 16) & 1))) & 0xffff0000u);
  }
}
// Half precision by integer arithmetic: exact, denormals included, and the same on every instruction set.
MC_INLINE float float_of_f16(u16 h) {
  const u32 sign = u32(h & 0x8000) << 16, rest = u32(h & 0x7fff) << 13;
  if (rest >= 0x0f800000) return bits_as<float>(sign | (rest + 0x70000000));          // inf, NaN
  return bits_as<float>(sign | bits_as<u32>(bits_as<float>(rest) * 0x1p112f));
}
MC_INLINE u16 f16_of_float(float x) {
  const u32 u = bits_as<u32>(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;
  if (a >= 0x47800000) return sign | 0x7c00;
  // the addition rounds
  if (a < 0x38800000) return sign | (bits_as<u32>(bits_as<float>(a) + 0.5f) - 0x3f000000);
  return sign | ((a + 0xc8000fff + ((a >> 13) & 1)) >> 13);
}
#ifdef __F16C__
template <class U> MC_INLINE auto float_of_f16v(U x) {
  constexpr int N = lanes_of<U>;
  if constexpr (N == 8) return bits_as<vec<float, 8>>(__builtin_ia32_vcvtph2ps256(bits_as<i16x8_>(x)));
#ifdef __AVX512F__
  else if constexpr (N == 16)
    return __builtin_ia32_vcvtph2ps512_mask(bits_as<vec<short, 16>>(x), vec<float, 16>{}, -1, 4);
#endif
  else { vec<float, N> r; for (int l = 0; l < N; ++l) r[l] = float_of_f16(x[l]); return r; }
}
template <class F> MC_INLINE auto f16_of_floatv(F x) {
  constexpr int N = lanes_of<F>;
  if constexpr (N == 8) return bits_as<vec<u16, 8>>(__builtin_ia32_vcvtps2ph256(x, 0));
#ifdef __AVX512F__
  else if constexpr (N == 16)
    return bits_as<vec<u16, 16>>(__builtin_ia32_vcvtps2ph512_mask(x, 0, vec<short, 16>{}, -1));
#endif
  else { vec<u16, N> r; for (int l = 0; l < N; ++l) r[l] = f16_of_float(x[l]); return r; }
}
#else
template <class U> MC_INLINE auto float_of_f16v(U x) {
  vec<float, lanes_of<U>> r; for (int l = 0; l < lanes_of<U>; ++l) r[l] = float_of_f16(x[l]); return r;
}
template <class F> MC_INLINE auto f16_of_floatv(F x) {
  vec<u16, lanes_of<F>> r; for (int l = 0; l < lanes_of<F>; ++l) r[l] = f16_of_float(x[l]); return r;
}
#endif

// Numbers: as C converts, one lane at a time in meaning. float -> narrow integer goes through int32 (int64
// for uint8), as eager's does.
template <class To, class V> MC_INLINE auto convert(V x) {
  typedef lane<V> From;
  if constexpr (same<To, From>) return x;
  else if constexpr (same<To, u8> && same<From, float> && is_vec<V>) {
    if (!any(~((x < 0x1p31f) & (x > -0x1p31f))))
      return resize<u8>(__builtin_convertvector(x, vec<i32, lanes_of<V>>));
    return resize<u8>(__builtin_convertvector(x, vec<i64, lanes_of<V>>));
  } else if constexpr (is_float<From> && sizeof(To) < 4) {
    typedef typename Pick<same<To, u8>, i64, i32>::type Mid;
    return convert<To>(convert<Mid>(x));
  } else if constexpr (!is_vec<V>) return To(x);
  else if constexpr (is_float<To> && sizeof(From) < 4)
    return __builtin_convertvector(resize<i32>(x), vec<To, lanes_of<V>>);
  else if constexpr (is_float<To> || is_float<From>) return __builtin_convertvector(x, vec<To, lanes_of<V>>);
  else return resize<To>(x);
}

// cast<To, From>: From and To are element types (bf16, f16, b8 included); x has From's register form.
template <class To, class From, class V> MC_INLINE auto cast(V x) {
  if constexpr (same<To, From>) return x;
  else if constexpr (same<From, bf16>) return cast<To, float>(float_of_bf16(x));
  else if constexpr (same<From, f16>) {
    if constexpr (is_vec<V>) return cast<To, float>(float_of_f16v(x)); else return cast<To,
        float>(float_of_f16(x));
  } else if constexpr (same<From, b8>) {
    if constexpr (same<To, bf16> || same<To, f16>) return cast<To, float>(cast<float, b8>(x));
    else if constexpr (!is_vec<V>) return To(x);
    else {
      constexpr int N = lanes_of<V>;
      return mask_as<vec<int_of<To>, N>>(x) ? splat<To, N>(To(1)) : vec<To, N>{};
    }
  } else if constexpr (same<To, b8>) return x != 0;
  else if constexpr (same<To, bf16>) return bf16_of_float(convert<float>(x));
  else if constexpr (same<To, f16>) {
    if constexpr (is_vec<V>) return f16_of_floatv(convert<float>(x));
        else return f16_of_float(convert<float>(x));
  } else return convert<To>(x);
}

template <class To, class V> MC_INLINE auto bitcast(V x) {
  if constexpr (is_vec<V>) return bits_as<vec<To, lanes_of<V>>>(x); else return bits_as<To>(x);
}

}  // namespace mc
