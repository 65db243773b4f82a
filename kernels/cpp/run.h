// What a kernel needs beside arithmetic: its environment, threads, checked indices, scratch.
#pragma once
#include "vec.h"

extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

namespace mc {

// Given to every kernel: how many threads it may use (the caller's torch.get_num_threads()), and where the
// number + 1 of the first failed index check goes (0: none failed). `found` is the value that failed. `sizes`
// are the graph's, where these vary.
struct Env { int threads; int error; i64 found; const i64* sizes; };

// What a kernel of a team gets as its Env, with no threads: it does the part [lo, hi) of `of`.
struct Share : Env {
  i64 lo, hi, of;
  i64 at(i64 n, i64 part) const { return part == of ? n : i64(double(n) * double(part) / double(of)); }
};

// f(begin, end) over [0, n), split evenly among at most `env->threads` threads; `enough`: it is worth
// several.
template <class F> MC_INLINE void parallel(const Env* env, i64 n, F f, bool enough = true) {
  if (env->threads <= 1 || n <= 1 || !enough) {
    i64 begin = 0, end = n;
    if (env->threads == 0) {
      const auto share = (const Share*)env;
      begin = share->at(n, share->lo), end = share->at(n, share->hi);
    }
    if (begin < end) f(begin, end);
    return;
  }
#pragma omp parallel num_threads(env->threads)
  {
    // a copy per thread stays in registers
    F mine = f;
    const i64 t = omp_get_thread_num(), k = omp_get_num_threads();
    const i64 begin = n * t / k, end = n * (t + 1) / k;
    if (begin < end) mine(begin, end);
  }
}

__attribute__((noinline, cold)) static void report(Env* env, int number, i64 found) {
  int none = 0;
  if (__atomic_compare_exchange_n(&env->error, &none, number + 1, false, __ATOMIC_RELAXED,
      __ATOMIC_RELAXED)) env->found = found;
}

// Kernels that need nothing of each other, as one parallel region whose work is split evenly. A kernel that
// cannot be split is done by the thread that has its beginning.
struct Member { void (*run)(char* const*, Env*); int buffers; bool splits; i64 work; };

template <int count> static void team(const Member (&members)[count], i64 work, char* const* b, Env* env) {
  parallel(env, work, [=, &members](i64 begin, i64 end) {
    char* const* mine = b;
    for (const Member& member : members) {
      i64 lo = begin > 0 ? begin : 0, hi = end < member.work ? end : member.work;
      if (lo < hi && (member.splits || begin <= 0)) {
        if (!member.splits) hi = member.work;
        Share share{*env, lo, hi, member.work};
        share.threads = share.error = 0;
        member.run(mine, &share);
        if (share.error) report(env, share.error - 1, share.found);
      }
      begin -= member.work, end -= member.work, mine += member.buffers;
    }
  });
}

// An index that must lie in [lo, hi): reported and clamped otherwise, so that the access stays inside the
// buffer.
template <class V, class M> MC_INLINE V checked(Env* env, V x, lane<V> lo, lane<V> hi, int number, M m) {
  if constexpr (is_vec<V>) {
    auto bad = (x < lo) | (x >= hi);
    if (__builtin_expect(any(bad), 0)) {
      for (int l = 0; l < lanes_of<V> && l < m.n; ++l) if (bad[l]) report(env, number, x[l]);
      return bad ? splat<lane<V>, lanes_of<V>>(lo) : x;
    }
    return x;
  } else {
    if (__builtin_expect(x < lo || x >= hi, 0)) { report(env, number, x); return lo; }
    return x;
  }
}

MC_INLINE i64 floordiv(i64 a, i64 b) { i64 q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
MC_INLINE i64 floormod(i64 a, i64 b) { i64 r = a % b; return r + (r != 0 && (r < 0) != (b < 0) ? b : 0); }
MC_INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
MC_INLINE i64 most(i64 a, i64 b) { return a > b ? a : b; }

// Memory for one thread's rows, where they are too large for its stack.
struct Scratch {
  char* at;
  explicit Scratch(u64 bytes) : at((char*)__builtin_malloc(bytes + 64)) { if (!at) __builtin_trap(); }
  ~Scratch() { __builtin_free(at); }
  char* get() const { return (char*)(((u64)at + 63) & ~u64(63)); }
};

// The same for rows whose length is a size: on the stack up to OWN bytes.
template <int OWN> struct Rows {
  alignas(64) char own[OWN];
  char* at;
  explicit Rows(u64 bytes) : at(bytes > OWN ? (char*)__builtin_malloc(bytes + 64) : nullptr) {
    if (bytes > OWN && !at) __builtin_trap();
  }
  ~Rows() { __builtin_free(at); }
  char* get() { return at ? (char*)(((u64)at + 63) & ~u64(63)) : own; }
};

}  // namespace mc
