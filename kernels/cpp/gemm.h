// Matrix product of float32 or bfloat16 operands, summed in float32 and finished tile by tile through an
// epilogue: C = epilogue(A @ B).
//
// Takes A [M, K] and B [K, N] by pointer and strides, in the caller's own memory. Gives each finished tile
// to an epilogue function, which adds biases, applies activations and stores: the product itself never goes
// through main memory. Compiled once, into the kernel library (library.cpp); emitted code calls it by
// function pointer.
//
// B is packed panel by panel into a per-thread buffer just before use, in every call. Packing costs K * N /
// 3 cycles against M * K * N / 16 of arithmetic (1% at M = 512), which is less than proving that a copy
// made earlier still equals weights that `.data`, numpy or another library may have written behind the
// version counter. The micro-kernel keeps MR x (NV vectors) of C in registers over the whole K extent (Goto
// & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008). A long K is cut: sums of the
// parts are kept, for some rows and the panels that fit L2, and the last part finishes them.
#pragma once
#include "abi.h"
#include "math.h"

namespace mc {

#if defined(__AVX512F__)
constexpr int GEMM_LANES = 16, GEMM_MR = 14;
#elif defined(__AVX2__)
constexpr int GEMM_LANES = 8, GEMM_MR = 6;
#else
constexpr int GEMM_LANES = 4, GEMM_MR = 4;
#endif
constexpr int GEMM_NV = 2, GEMM_NR = GEMM_LANES * GEMM_NV;
constexpr int GEMM_TILE = 8;  // panels per epilogue call: a tile of MR rows stays in L1
typedef vec<float, GEMM_LANES> gemm_vec;
typedef float gemm_uvec __attribute__((vector_size(GEMM_LANES * 4), aligned(4), may_alias));

// Per-thread memory that grows to the largest request and is released when its thread ends.
struct GemmScratch {
  void* block = nullptr;
  float* data = nullptr;
  i64 size = 0;
  float* get(i64 n) {
    if (n > size) {
      __builtin_free(block);
      block = __builtin_malloc(n * 4 + 128);
      if (!block) __builtin_trap();
      data = (float*)(((u64)block + 63) & ~u64(63));
      size = n;
    }
    return data;
  }
  ~GemmScratch() { __builtin_free(block); }
};

// How operands are read. Packed memory holds units of 4 bytes, one for each lane of a multiplication: a
// float, or two bfloat16 neighbours along K, whose products one instruction adds (vdpbf16ps). `along(p)`
// gives the units from p on where K is dense, `across(p, sk, two)` those of neighbouring columns (or rows)
// where these are dense; without `two`, K ends in the middle of the unit, and 0 stands for the rest.
template <class T_> struct Single {  // depth 1: a float of each element
  typedef T_ T;
  static constexpr int depth = 1;
  static MC_INLINE gemm_vec read(const T* p) {
    if constexpr (same<T, bf16>) return float_of_bf16(load<GEMM_LANES>(p, Full{}));
    else return *(const gemm_uvec*)p;
  }
  static MC_INLINE gemm_vec along(const T* p) { return read(p); }
  static MC_INLINE gemm_vec across(const T* p, i64, bool) { return read(p); }
  static MC_INLINE float one(const T* p, i64, bool) {
    if constexpr (same<T, bf16>) return float_of_bf16(p->bits);
    else return *p;
  }
  static MC_INLINE gemm_vec step(gemm_vec a, gemm_vec b, gemm_vec c) { return fma(a, b, c); }
};
typedef Single<float> Floats;

struct Rounded : Floats {  // floats that count as rounded to bfloat16
  static MC_INLINE gemm_vec along(const float* p) { return rounded_bf16(read(p)); }
  static MC_INLINE gemm_vec across(const float* p, i64, bool) { return along(p); }
  static MC_INLINE float one(const float* p, i64, bool) { return rounded_bf16(*p); }
};

#if defined(__AVX512F__)
// Whether this machine multiplies pairs. The two instructions are written as text, because compilers name
// them differently; they take denormals as 0, as the library's products do.
static bool gemm_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
struct Pairs {
  static constexpr int depth = 2;
  static MC_INLINE gemm_vec step(gemm_vec a, gemm_vec b, gemm_vec c) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "vm"(b));
    return c;
  }
  template <class U> static MC_INLINE gemm_vec joined(U low, U high) {
    return bits_as<gemm_vec>(widened(low) | (widened(high) << 16));
  }
};
struct HalfPairs : Pairs {
  typedef bf16 T;
  static MC_INLINE gemm_vec along(const T* p) { return bits_as<gemm_vec>(load<32>(p, Full{})); }
  static MC_INLINE gemm_vec across(const T* p, i64 sk, bool two) {
    const auto low = load<16>(p, Full{});
    return joined(low, two ? load<16>(p + sk, Full{}) : low - low);
  }
  static MC_INLINE float one(const T* p, i64 sk, bool two) {
    return bits_as<float>(p->bits | u32(two ? p[sk].bits : 0) << 16);
  }
};
struct RoundedPairs : Pairs {
  typedef float T;
  static MC_INLINE gemm_vec along(const T* p) {
    gemm_vec units;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(units) : "v"(Floats::read(p + 16)), "v"(Floats::read(p)));
    return units;
  }
  static MC_INLINE gemm_vec across(const T* p, i64 sk, bool two) {
    return joined(bf16_of_float(Floats::read(p)),
                  bf16_of_float(two ? Floats::read(p + sk) : gemm_vec{}));
  }
  static MC_INLINE float one(const T* p, i64 sk, bool two) {
    return bits_as<float>(bf16_of_float(*p) | u32(two ? bf16_of_float(p[sk]) : 0) << 16);
  }
};
#else
static bool gemm_pairs() { return false; }
typedef Floats Pairs;
typedef Single<bf16> HalfPairs;
typedef Rounded RoundedPairs;
#endif

static inline i64 gemm_units(i64 K, int depth) { return (K + depth - 1) / depth; }

// One panel: out[u][j] = unit u of column j of B[k * sk + j * sn] for j < n, zero for n <= j < NR.
template <class S = Floats>
static __attribute__((noinline)) void gemm_pack_panel(const typename S::T* B, i64 K, i64 n, i64 sk, i64 sn,
                                                      float* out) {
  constexpr int D = S::depth;
  const i64 units = gemm_units(K, D), whole = K / D;
  if (n < GEMM_NR) __builtin_memset(out, 0, sizeof(float) * units * GEMM_NR);
  if (sn == 1 && n == GEMM_NR) {
    for (i64 u = 0; u < units; u++)
#pragma GCC unroll 2
      for (int v = 0; v < GEMM_NR; v += GEMM_LANES)
        *(gemm_vec*)(out + u * GEMM_NR + v) = S::across(B + u * D * sk + v, sk, u < whole);
    return;
  }
  for (i64 j = 0; j < n; j += GEMM_LANES) {
    i64 u = 0;
    if (sk == 1 && j + GEMM_LANES <= n)
      for (; u + GEMM_LANES <= whole; u += GEMM_LANES) {
        gemm_vec r[GEMM_LANES];
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) r[i] = S::along(B + (j + i) * sn + u * D);
        transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) *(gemm_vec*)(out + (u + i) * GEMM_NR + j) = r[i];
      }
    const i64 end = j + GEMM_LANES < n ? j + GEMM_LANES : n;
    for (; u < units; u++)
      for (i64 i = j; i < end; i++) out[u * GEMM_NR + i] = S::one(B + u * D * sk + i * sn, sk, u < whole);
  }
}

// Rows of A, dense along K, as units: out[i * pitch + u].
template <class S>
static __attribute__((noinline)) void gemm_copy_rows(const typename S::T* A, i64 sa, i64 sak, i64 K, i64 m,
                                                     float* out, i64 pitch) {
  constexpr int D = S::depth;
  const i64 units = gemm_units(K, D), whole = K / D;
  for (i64 i = 0; i < m; i++) {
    const typename S::T* from = A + i * sa;
    i64 u = 0;
    if (sak == 1)
      for (; u + GEMM_LANES <= whole; u += GEMM_LANES)
        *(gemm_uvec*)(out + i * pitch + u) = S::along(from + u * D);
    for (; u < units; u++) out[i * pitch + u] = S::one(from + u * D * sak, sak, u < whole);
  }
}

// P panels side by side: C[MR, P * NR] = (more ? C : 0) + A[MR, K] @ panels.
template <class S, int MR, int P>
static MC_INLINE void gemm_tile(const float* A, i64 ra, i64 ka, const float* B, i64 K, float* C, i64 ldc,
                                bool more) {
  constexpr int V = P * GEMM_NV;
  gemm_vec acc[MR][V];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++)
      acc[i][v] = more ? gemm_vec(*(const gemm_uvec*)(C + i * ldc + v * GEMM_LANES)) : gemm_vec{};
  for (i64 k = 0; k < K; k++) {
    gemm_vec b[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; v++)
      b[v] = *(const gemm_vec*)(B + (v / GEMM_NV) * K * GEMM_NR + k * GEMM_NR + (v % GEMM_NV) * GEMM_LANES);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const gemm_vec a = splat<float, GEMM_LANES>(A[i * ra + k * ka]);
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) acc[i][v] = S::step(a, b[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) *(gemm_uvec*)(C + i * ldc + v * GEMM_LANES) = acc[i][v];
}

// MR rows of A against `panels` packed panels; K in units.
template <class S, int MR>
static __attribute__((noinline)) void gemm_rows(const float* A, i64 ra, i64 ka, const float* Bp, i64 K,
                                                i64 panels, float* C, i64 ldc, bool more) {
  constexpr int P = MR * 4 <= GEMM_MR   ? 4
                    : MR * 2 <= GEMM_MR ? 2
                                        : 1;  // few rows: more panels, more independent sums
  i64 p = 0;
  for (; p + P <= panels; p += P)
    gemm_tile<S, MR, P>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc, more);
  for (; p < panels; p++)
    gemm_tile<S, MR, 1>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc, more);
}

template <class S = Floats, int MR = GEMM_MR>
static inline void gemm_block(int m, const float* A, i64 ra, i64 ka, const float* Bp, i64 K, i64 panels,
                              float* C, i64 ldc, bool more = false) {
  if (m == MR) return gemm_rows<S, MR>(A, ra, ka, Bp, K, panels, C, ldc, more);
  if constexpr (MR > 1) gemm_block<S, MR - 1>(m, A, ra, ka, Bp, K, panels, C, ldc, more);
}

// The sums of the lanes of `count` vectors: out[i]. Neighbours are added until one vector holds 16 sums.
template <int COUNT> static MC_INLINE void gemm_totals(const gemm_vec* acc, float* out) {
  vec<i32, GEMM_LANES> even, odd;
#pragma GCC unroll 16
  for (int l = 0; l < GEMM_LANES; l++) even[l] = 2 * l, odd[l] = 2 * l + 1;
#pragma GCC unroll 8
  for (int at = 0; at < COUNT; at += GEMM_LANES) {
    gemm_vec r[GEMM_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < GEMM_LANES; i++) r[i] = at + i < COUNT ? acc[at + i] : gemm_vec{};
#pragma GCC unroll 4
    for (int n = GEMM_LANES / 2; n; n /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < n; i++)
        r[i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], even) +
               __builtin_shuffle(r[2 * i], r[2 * i + 1], odd);
    *(gemm_uvec*)(out + at) = r[0];
  }
}

// Few rows: every element of B is used M times only, so it is read in place, its columns running along K:
// dot products. x holds M rows of units, zero behind the last; C[M, n], ldc floats a row.
template <class S, int M>
static __attribute__((noinline)) void gemm_dots(const float* x, i64 ldx, const typename S::T* B, i64 sn,
                                                i64 K, i64 n, float* C, i64 ldc) {
  // columns at a time: independent sums hide the latency, and stay in registers
  constexpr int ROOM = GEMM_LANES > 8 ? 24 : 9;
  constexpr int U = M == 1 || ROOM / M > 8 ? 8 : ROOM / M > 0 ? ROOM / M : 1, D = S::depth;
  const i64 whole = K / (GEMM_LANES * D) * GEMM_LANES, rest = K - whole * D;
  for (i64 j = 0; j < n; j += U) {
    gemm_vec acc[M * U];
    const typename S::T* col[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) col[u] = B + (j + u < n ? j + u : j) * sn;
#pragma GCC unroll 24
    for (int i = 0; i < M * U; i++) acc[i] = gemm_vec{};
    for (i64 k = 0; k < whole; k += GEMM_LANES) {
      gemm_vec b[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) b[u] = S::along(col[u] + k * D);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        const gemm_vec a = *(const gemm_uvec*)(x + i * ldx + k);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) acc[i * U + u] = S::step(a, b[u], acc[i * U + u]);
      }
    }
    if (rest)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) {
        typename S::T last[GEMM_LANES * D] = {};
        __builtin_memcpy(last, col[u] + whole * D, rest * sizeof(typename S::T));
        const gemm_vec b = S::along(last);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
          acc[i * U + u] = S::step(*(const gemm_uvec*)(x + i * ldx + whole), b, acc[i * U + u]);
      }
    float sums[(M * U + GEMM_LANES - 1) / GEMM_LANES * GEMM_LANES];
    gemm_totals<M * U>(acc, sums);
    const i64 many = n - j < U ? n - j : U;
    for (int i = 0; i < M; i++)
      for (i64 u = 0; u < many; u++) C[i * ldc + j + u] = sums[i * U + u];
  }
}

// The same where B's rows run along N: they are added up, scaled, DEPTH of them in one pass over the sums.
template <class S, int M>
static __attribute__((noinline)) void gemm_sums(const float* x, i64 ldx, const typename S::T* B, i64 sk,
                                                i64 K, i64 n, float* C, i64 ldc) {
  constexpr int DEPTH = M == 1 ? 8 : 4, D = S::depth;
  const i64 units = gemm_units(K, D);
  for (int i = 0; i < M; i++) __builtin_memset(C + i * ldc, 0, n * sizeof(float));
  for (i64 k = 0; k < units; k += DEPTH) {
    gemm_vec a[M][DEPTH];
    const typename S::T* row[DEPTH];
    bool two[DEPTH];
#pragma GCC unroll 8
    for (int d = 0; d < DEPTH; d++) {
      const i64 at = k + d < units ? k + d : k;
      row[d] = B + at * D * sk, two[d] = (at + 1) * D <= K;
#pragma GCC unroll 4
      for (int i = 0; i < M; i++)
        a[i][d] = splat<float, GEMM_LANES>(k + d < units ? x[i * ldx + k + d] : 0);
    }
    i64 j = 0;
    for (; j + GEMM_LANES <= n; j += GEMM_LANES) {
      gemm_vec acc[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) acc[i] = *(const gemm_uvec*)(C + i * ldc + j);
#pragma GCC unroll 8
      for (int d = 0; d < DEPTH; d++) {
        const gemm_vec b = S::across(row[d] + j, sk, two[d]);
#pragma GCC unroll 4
        for (int i = 0; i < M; i++) acc[i] = S::step(a[i][d], b, acc[i]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) *(gemm_uvec*)(C + i * ldc + j) = acc[i];
    }
    for (; j < n; j++)
      for (int i = 0; i < M; i++) {
        gemm_vec s = splat<float, GEMM_LANES>(C[i * ldc + j]);
        for (int d = 0; d < DEPTH; d++)
          s = S::step(a[i][d], splat<float, GEMM_LANES>(S::one(row[d] + j, sk, two[d])), s);
        C[i * ldc + j] = s[0];
      }
  }
}

// A product of few rows (or, the other way round, few columns): how it is read.
enum GemmFew { MANY, ROWS, COLUMNS };
// rows; those of dot products, at a time and in all; results at a time: their sums stay in L1
constexpr i64 GEMM_FEW = 4, GEMM_DOTS = GEMM_LANES > 8 ? 8 : 4, GEMM_MOST_DOTS = GEMM_LANES > 8 ? 16 : 4;
constexpr i64 GEMM_RUN = 1024;

// Rows of x [few, K] times n columns of y: C[few, n].
template <class S, int FEW = GEMM_DOTS>
static void gemm_line(i64 few, const float* x, i64 ldx, const void* y, i64 syk, i64 syn, i64 K, i64 n,
                      float* C, i64 ldc) {
  if constexpr (FEW > 1)
    if (few < FEW) return gemm_line<S, FEW - 1>(few, x, ldx, y, syk, syn, K, n, C, ldc);
  const auto from = (const typename S::T*)y;
  if constexpr (FEW <= GEMM_FEW)
    if (syn == 1 && (syk != 1 || n > 1)) return gemm_sums<S, FEW>(x, ldx, from, syk, K, n, C, ldc);
  gemm_dots<S, FEW>(x, ldx, from, syn, K, n, C, ldc);
}

// How many of the rows that are left go into the next block of at most MR: evenly, 16 rows are 8 + 8, not
// 14 + 2.
static inline i64 gemm_next(i64 rows) {
  const i64 blocks = (rows + GEMM_MR - 1) / GEMM_MR;
  return (rows + blocks - 1) / blocks;
}

// Rows [0, rows) of A, which do not run along K, in blocks: out[block][unit][row].
template <class S>
static __attribute__((noinline)) void gemm_pack_rows(const typename S::T* A, i64 sa, i64 sak, i64 K,
                                                     i64 rows, float* out) {
  constexpr i64 RUN = 32, D = S::depth;  // rows of memory that are read side by side, each from end to end
  const i64 units = gemm_units(K, D), whole = K / D;
  for (i64 k0 = 0; k0 < units; k0 += RUN) {
    const i64 k1 = k0 + RUN < units ? k0 + RUN : units;
    for (i64 row = 0, m; row < rows; row += m) {
      m = gemm_next(rows - row);
      float* to = out + row * units + k0 * m;
      const typename S::T* from = A + row * sa + k0 * D * sak;
      i64 k = k0;
      // whole vectors where they stay within the block: what they write too much is written over
      if (sa == 1 && row + GEMM_LANES <= rows)
        for (; k < k1 && k * m + GEMM_LANES <= units * m; k++, from += D * sak, to += m)
          *(gemm_uvec*)to = S::across(from, sak, k < whole);
      for (; k < k1; k++, from += D * sak)
        for (i64 i = 0; i < m; i++) *to++ = S::one(from + i * sa, sak, k < whole);
    }
  }
}

// What a product does with an operand of one kind, by address.
struct GemmSource {
  i64 bytes, depth;  // of an element; elements in a unit
  void (*panel)(const void*, i64 K, i64 n, i64 sk, i64 sn, float* out);
  void (*rows)(const void*, i64 sa, i64 sak, i64 K, i64 rows, float* out);
  void (*copy)(const void*, i64 sa, i64 sak, i64 K, i64 m, float* out, i64 pitch);
  void (*line)(i64 few, const float* x, i64 ldx, const void* y, i64 syk, i64 syn, i64 K, i64 n, float* C,
               i64 ldc);
  bool in_place;  // whether units along K are what lies in memory
  const char* at(const void* p, i64 elements) const { return (const char*)p + elements * bytes; }
};
template <class S> struct GemmReads {
  typedef const typename S::T* From;
  static void panel(const void* B, i64 K, i64 n, i64 sk, i64 sn, float* out) {
    gemm_pack_panel<S>((From)B, K, n, sk, sn, out);
  }
  static void rows(const void* A, i64 sa, i64 sak, i64 K, i64 many, float* out) {
    gemm_pack_rows<S>((From)A, sa, sak, K, many, out);
  }
  static void copy(const void* A, i64 sa, i64 sak, i64 K, i64 m, float* out, i64 pitch) {
    gemm_copy_rows<S>((From)A, sa, sak, K, m, out, pitch);
  }
  static constexpr GemmSource table{sizeof(typename S::T), S::depth, panel, rows, copy, gemm_line<S>,
                                    sizeof(typename S::T) * S::depth == 4 && !same<S, Rounded>};
};

// kind of a product -> how its left and its right operand are read
static const GemmSource& gemm_source(i64 kind, i64 half) {
  if (!kind) return GemmReads<Floats>::table;
  if (gemm_pairs()) return kind & half ? GemmReads<HalfPairs>::table : GemmReads<RoundedPairs>::table;
  return kind & half ? GemmReads<Single<bf16>>::table : GemmReads<Rounded>::table;
}

static GemmFew gemm_few(const Gemm& g) {
  const i64 deep = 4 * GEMM_LANES * gemm_source(g.kind, GEMM_HALF_A).depth;
  if ((g.M <= GEMM_MOST_DOTS && g.sbk == 1 && g.K >= deep) || (g.M <= GEMM_FEW && g.sbn == 1)) return ROWS;
  if ((g.N <= GEMM_MOST_DOTS && g.sak == 1 && g.K >= deep) || (g.N <= GEMM_FEW && g.sa == 1)) return COLUMNS;
  return MANY;
}

// Results [n0, n1) along the long axis.
static void gemm_part_few(const Gemm& g, GemmFew how, i64 b, i64 n0, i64 n1) {
  static thread_local GemmScratch scratch;
  const bool rows = how == ROWS;
  const i64 few = rows ? g.M : g.N;
  const GemmSource &l = gemm_source(g.kind, GEMM_HALF_A), &r = gemm_source(g.kind, GEMM_HALF_B);
  const GemmSource &xr = rows ? l : r, &yr = rows ? r : l;
  const char* const A = l.at(g.A, b * g.sab);
  const char* const B = r.at(g.B, b * g.sbb);
  const char *x = rows ? A : B, *y = rows ? B : A;
  const i64 sx = rows ? g.sa : g.sbn, sxk = rows ? g.sak : g.sbk, syk = rows ? g.sbk : g.sak;
  const i64 syn = rows ? g.sbn : g.sa, units = gemm_units(g.K, xr.depth), ldx = units + 2 * GEMM_LANES;
  i64 most = GEMM_RUN - GEMM_LANES;
  if (few > GEMM_DOTS && most > 65536 / (units + 1)) most = 65536 / (units + 1) + 8;  // read twice, from L2
  const i64 ldc = (most < n1 - n0 ? most : n1 - n0) + GEMM_LANES;
  float* C = scratch.get(2 * few * ldc + few * ldx + 64);
  float *turned = C + few * ldc, *line = turned + few * ldc;
  for (i64 i = 0; i < few; i++) __builtin_memset(line + i * ldx + units, 0, (ldx - units) * sizeof(float));
  xr.copy(x, sx, sxk, g.K, few, line, ldx);
  for (i64 n = n0; n < n1; n += most) {
    const i64 run = n1 - n < most ? n1 - n : most;
    for (i64 i = 0, m; i < few; i += m) {
      const i64 blocks = (few - i + GEMM_DOTS - 1) / GEMM_DOTS;
      m = (few - i + blocks - 1) / blocks;
      yr.line(m, line + i * ldx, ldx, yr.at(y, n * syn), syk, syn, g.K, run, C + i * ldc, ldc);
    }
    if (rows) {
      g.epilogue(g.context, b, 0, n, few, run, C, ldc);
      continue;
    }
    for (i64 i = 0; few > 1 && i < few; i++)
      for (i64 j = 0; j < run; j++) turned[j * few + i] = C[i * ldc + j];
    g.epilogue(g.context, b, n, 0, run, few, few > 1 ? turned : C, few);
  }
}

// Units of K at a time: they stream well from L2, sums are kept less often.
constexpr i64 GEMM_DEPTH = 1536;
constexpr i64 GEMM_PANELS = 98304;  // floats of panels: they stay in L2, with a block of rows and its sums
constexpr i64 GEMM_ROWS = 384;      // at a time, where their sums are kept meanwhile
constexpr i64 GEMM_COPY = 1 << 19;  // floats of A that are copied at a time, once for all panels

// Product number b on the calling thread: panels [p0, p1), rows [r0, r1).
static void gemm_part(const Gemm& g, i64 b, i64 p0, i64 p1, i64 r0, i64 r1) {
  static thread_local GemmScratch scratch;
  const GemmSource &l = gemm_source(g.kind, GEMM_HALF_A), &r = gemm_source(g.kind, GEMM_HALF_B);
  const i64 D = l.depth, units = gemm_units(g.K, D);
  const i64 parts = (units + GEMM_DEPTH - 1) / GEMM_DEPTH;
  const i64 depth = parts > 1 ? (units + parts - 1) / parts : units;
  i64 group = GEMM_PANELS / (depth * GEMM_NR + 1);
  group = group < 1 ? 1 : group > p1 - p0 ? p1 - p0 : group;
  const char* const A0 = l.at(g.A, b * g.sab);
  const char* const B0 = r.at(g.B, b * g.sbb);
  // A is copied where its rows do not run along K, are no units, or collide in one set of the L1 cache
  const bool turn = g.sak != 1, units_there = l.in_place && g.K % D == 0 && g.sa % D == 0 && (u64)A0 % 4 == 0;
  const bool copy = turn || !units_there || (g.sa * l.bytes % 4096 == 0 && r1 - r0 > 4);
  i64 many = parts > 1 ? GEMM_ROWS : r1 - r0;
  if (copy && many > GEMM_COPY / (units + 1)) many = GEMM_COPY / (units + 1);
  many = many < GEMM_MR ? GEMM_MR : many < r1 - r0 ? many / GEMM_MR * GEMM_MR : r1 - r0;
  const i64 ldc = parts > 1 ? group * GEMM_NR : GEMM_TILE * GEMM_NR;
  // rows apart by a length that is no multiple of the cache's sets
  const i64 sums = (parts > 1 ? many : GEMM_MR) * ldc, pitch = turn ? depth : depth + 16;
  const i64 rows = copy ? many * pitch * parts : 0;
  float* C = scratch.get(sums + group * depth * GEMM_NR + rows + 64);
  float *Bp = C + sums, *Ap = Bp + group * depth * GEMM_NR;
  const auto block = D == 2 ? gemm_block<Pairs> : gemm_block<Floats>;
  for (i64 top = r0; top < r1; top += many) {
    const i64 bottom = top + many < r1 ? top + many : r1;
    for (i64 at = p0; at < p1; at += group) {
      const i64 end = at + group < p1 ? at + group : p1;
      i64 k0 = 0, part = 0;  // k0 in units
      do {                   // once for K = 0
        const i64 n_units = units - k0 < depth ? units - k0 : depth, e0 = k0 * D;
        const bool last = k0 + n_units >= units;
        const i64 K = last ? g.K - e0 : n_units * D;
        for (i64 p = at; p < end; p++) {
          const i64 c = p * GEMM_NR, n = g.N - c < GEMM_NR ? g.N - c : GEMM_NR;
          r.panel(r.at(B0, c * g.sbn + e0 * g.sbk), K, n, g.sbk, g.sbn, Bp + (p - at) * n_units * GEMM_NR);
        }
        float* const copied = Ap + part * many * pitch;  // for all panels
        if (turn && at == p0)
          l.rows(l.at(A0, top * g.sa + e0 * g.sak), g.sa, g.sak, K, bottom - top, copied);
        for (i64 row = top, m; row < bottom; row += m) {
          m = gemm_next(bottom - row);
          const char* from = l.at(A0, row * g.sa + e0);
          const float* A = (const float*)from;
          i64 ra = g.sa / D, ka = 1;
          if (turn) {
            A = copied + (row - top) * n_units, ra = 1, ka = m;
          } else if (copy) {
            float* to = copied + (row - top) * pitch;
            if (at == p0) l.copy(from, g.sa, 1, K, m, to, pitch);
            A = to, ra = pitch;
          }
          for (i64 p = at; p < end; p += GEMM_TILE) {
            const i64 n = end - p < GEMM_TILE ? end - p : GEMM_TILE, col = p * GEMM_NR;
            float* to = parts > 1 ? C + (row - top) * ldc + (p - at) * GEMM_NR : C;
            block((int)m, A, ra, ka, Bp + (p - at) * n_units * GEMM_NR, n_units, n, to, ldc, k0 > 0);
            const i64 cols = g.N - col < n * GEMM_NR ? g.N - col : n * GEMM_NR;
            if (last) g.epilogue(g.context, b, row, col, m, cols, to, ldc);
          }
        }
        k0 += depth, part++;
      } while (k0 < units);
    }
  }
}

// K = 0 gives zeros; an empty product calls nothing.
static inline void gemm(const Gemm& g, int threads) {
  const i64 panels = (g.N + GEMM_NR - 1) / GEMM_NR;
  if (g.batch * g.M * g.N == 0) return;
  if (g.batch * g.M * g.N * g.K < 32768) threads = 1;
  const GemmFew few = gemm_few(g);
  // Batches are split first, then columns, as each thread then packs only its own; rows where columns are
  // too few.
  const i64 pieces = g.batch % threads == 0 ? 1 : threads;
  const bool across = few == ROWS || (few == MANY && panels >= pieces);
  const i64 cols = across ? pieces : 1, rows = across ? 1 : pieces;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < g.batch * cols * rows; t++) {
    // consecutive batches on one thread
    const i64 unit = threads > 1 ? t / threads + t % threads * (g.batch * cols * rows / threads) : t;
    const i64 at = g.batch * cols * rows % threads == 0 ? unit : t;
    const i64 b = at / (cols * rows), c = at % cols, r = at / cols % rows;
    const i64 p0 = panels * c / cols, p1 = panels * (c + 1) / cols;
    if (few == ROWS) gemm_part_few(g, few, b, p0 * GEMM_NR, p1 * GEMM_NR < g.N ? p1 * GEMM_NR : g.N);
    else if (few == COLUMNS) gemm_part_few(g, few, b, g.M * r / rows, g.M * (r + 1) / rows);
    else gemm_part(g, b, p0, p1, g.M * r / rows, g.M * (r + 1) / rows);
  }
}

}  // namespace mc
