// Reductions and scans: an accumulator per lane, combined across lanes at the end.
//
// Sums keep several accumulators (the emitter unrolls) and fold them as a tree; maxima and minima carry NaN,
// as eager's do.
#pragma once
#include "math.h"

namespace mc {

template <class T> constexpr T lowest() {
  if constexpr (same<T, float>) return -__builtin_inff();
  else if constexpr (same<T, double>) return -__builtin_inf();
  else if constexpr (T(-1) > T(0)) return 0;
  else return T(u64(1) << (sizeof(T) * 8 - 1));
}
template <class T> constexpr T highest() {
  if constexpr (is_float<T>) return -lowest<T>(); else return T(~lowest<T>());
}

// Each operation: its identity for lane type T, and step(accumulator, value).
#define MC_REDUCTION(NAME, IDENTITY, STEP) struct NAME { \
  template <class T> static constexpr T identity() { return IDENTITY; } \
  template <class V> static MC_INLINE V step(V a, V b) { return STEP; } };
MC_REDUCTION(Sum, 0, a + b)
MC_REDUCTION(Prod, 1, a * b)
MC_REDUCTION(Amax, lowest<T>(), maximum(b, a))
MC_REDUCTION(Amin, highest<T>(), minimum(b, a))
#define MC_LOGICAL(NAME, IDENTITY, OP) struct NAME { \
  template <class T> static constexpr T identity() { return IDENTITY; } \
  template <class A, class B> static MC_INLINE A step(A a, B b) { \
    if constexpr (is_vec<A>) return a OP mask_as<A>(b); else return a OP b; \
  } };
MC_LOGICAL(Any, 0, |)
MC_LOGICAL(All, T(-1), &)

// v where the lane exists, `other` elsewhere.
template <class V, class M> MC_INLINE V present(V v, lane<V> other, M m) {
  if constexpr (M::full || !is_vec<V>) return v;
  else {
    typedef int_of<lane<V>> I;
    return ramp<I, lanes_of<V>>(0) < I(m.n) ? v : splat<lane<V>, lanes_of<V>>(other);
  }
}

// Long sums go through totals: accumulators are taken in every few hundred additions, so rounding errors do
// not pile up.
template <int U, class V> struct TotalsOf {
  V sum[U];
  MC_INLINE void take(V* acc) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) { sum[u] += acc[u]; acc[u] = V{}; }
  }
  // at the end: the accumulators hold everything
  MC_INLINE void give(V* acc) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) acc[u] += sum[u];
  }
};
template <int U> struct Totals { template <class V> static MC_INLINE TotalsOf<U, V> of(V*) {
    return TotalsOf<U, V>{}; } };

template <int... I> struct Seq {};
template <int N, int... I> struct MakeSeq : MakeSeq<N - 1, N - 1, I...> {};
template <int... I> struct MakeSeq<0, I...> { typedef Seq<I...> type; };
template <class V, int... I> MC_INLINE auto low_half(V v, Seq<I...>) { return __builtin_shufflevector(v, v,
    I...); }
template <class V, int... I> MC_INLINE auto high_half(V v, Seq<I...>) { return __builtin_shufflevector(v, v,
    (I + int(sizeof...(I)))...); }

// one value out of the lanes, as a tree
template <class Op, class V> MC_INLINE lane<V> across(V v) {
  if constexpr (!is_vec<V>) return v;
  else if constexpr (lanes_of<V> == 2) return Op::step(lane<V>(v[0]), lane<V>(v[1]));
  else {
    typedef typename MakeSeq<lanes_of<V> / 2>::type Half;
    return across<Op>(Op::step(low_half(v, Half{}), high_half(v, Half{})));
  }
}

// ---- argmax and argmin ------------------------------------------------------------------------------------

// Whether (v, i) goes before the best (w, j): NaN first, then the extreme, then the lower index.
template <bool Max, class V> MC_INLINE auto beats(V v, V w) {
  if constexpr (is_float<lane<V>>) {
    auto better = Max ? v > w : v < w;
    if constexpr (is_vec<V>) return (better | (v != v)) & (w == w); else return (better || v != v) && w == w;
  } else return Max ? v > w : v < w;
}
template <bool Max, class V, class I> struct Best {
  V value; I index;
  template <class B> static Best start() {
    return Best{V{} + (Max ? lowest<lane<V>>() : highest<lane<V>>()), I{} + highest<lane<I>>()};
  }
  template <class M> MC_INLINE void step(V v, I i, M m) {
    // nothing seen yet: an extreme equal to the identity counts
    auto first = index == highest<lane<I>>();
    if constexpr (is_vec<V>) {
      auto take = mask_as<mask_of<I>>(beats<Max>(v, value)) | first;
      if constexpr (!M::full) take &= ramp<lane<I>, lanes_of<I>>(0) < lane<I>(m.n);
      value = mask_as<mask_of<V>>(take) ? v : value;
      index = take ? i : index;
    } else if (beats<Max>(v, value) || first) { value = v; index = i; }
  }
  MC_INLINE i64 finish() const {
    if constexpr (!is_vec<V>) return index;
    else {
      lane<V> v = value[0]; i64 i = index[0];
      for (int l = 1; l < lanes_of<V>; ++l) {
        if (index[l] == highest<lane<I>>()) continue;
        const bool tie = v == value[l] || (v != v && value[l] != value[l]);
        if (i == highest<lane<I>>() || (tie ? index[l] < i : beats<Max>(lane<V>(value[l]), v))) {
            v = value[l]; i = index[l]; }
      }
      return i;
    }
  }
};

}  // namespace mc
