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

// NaN goes first, then the extreme, then the lower index. A lane begins with the identity at index 0: where
// nothing is better, every element equals the identity, and the first of them is the answer.
template <bool Max, class V, class I> struct Best {
  V value = V{} + (Max ? lowest<lane<V>>() : highest<lane<V>>());
  I index = I{};
  template <class M> MC_INLINE void step(V v, I i, M m) {
    const V w = value;
    if constexpr (is_vec<V>) {
      // selects of selects: a mask that is combined with others would leave the mask registers
      const auto worse = Max ? v <= w : v >= w;
      typedef mask_of<I> J;
      if constexpr (is_float<lane<V>>) {
        const auto number = w == w;
        v = number ? v : w, i = mask_as<J>(number) ? i : index;
      }
      v = worse ? w : v, i = mask_as<J>(worse) ? index : i;
      if constexpr (!M::full) {
        const auto there = ramp<lane<J>, lanes_of<J>>(0) < lane<J>(m.n);
        v = mask_as<mask_of<V>>(there) ? v : w, i = there ? i : index;
      }
      value = v, index = i;
    } else if (w == w && !(Max ? v <= w : v >= w)) { value = v; index = i; }
  }
};

// The index of the first best element of accumulators that saw one axis.
template <bool Max, class V, class I, int U> MC_INLINE i64 best_of(const Best<Max, V, I> (&all)[U]) {
  typedef typename Pick<Max, Amax, Amin>::type Op;
  V extreme = all[0].value;
#pragma GCC unroll 4
  for (int u = 1; u < U; ++u) extreme = Op::step(extreme, all[u].value);
  const lane<V> best = across<Op>(extreme);
  I first = I{} + highest<lane<I>>();
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    const V v = all[u].value;
    const I i = all[u].index;
    if constexpr (is_vec<V>) {
      const auto found = best != best ? v != v : v == best;
      first = Amin::step(first, mask_as<mask_of<I>>(found) ? i : I{} + highest<lane<I>>());
    } else first = i;
  }
  return across<Amin>(first);
}

}  // namespace mc
