// Single-precision matrix product, finished tile by tile through an epilogue: C = epilogue(A @ B).
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

// One panel: out[k][j] = B[k * sk + j * sn] for j < n, zero for n <= j < NR.
static __attribute__((noinline)) void gemm_pack_panel(const float* B, i64 K, i64 n, i64 sk, i64 sn,
                                                      float* out) {
  if (n < GEMM_NR) __builtin_memset(out, 0, sizeof(float) * K * GEMM_NR);
  if (sn == 1 && n == GEMM_NR) {
    for (i64 k = 0; k < K; k++)
#pragma GCC unroll 2
      for (int v = 0; v < GEMM_NR; v += GEMM_LANES)
        *(gemm_vec*)(out + k * GEMM_NR + v) = *(const gemm_uvec*)(B + k * sk + v);
    return;
  }
  for (i64 j = 0; j < n; j += GEMM_LANES) {
    i64 k = 0;
    if (sk == 1 && j + GEMM_LANES <= n)
      for (; k + GEMM_LANES <= K; k += GEMM_LANES) {
        gemm_vec r[GEMM_LANES];
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) r[i] = *(const gemm_uvec*)(B + (j + i) * sn + k);
        transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) *(gemm_vec*)(out + (k + i) * GEMM_NR + j) = r[i];
      }
    const i64 end = j + GEMM_LANES < n ? j + GEMM_LANES : n;
    for (; k < K; k++)
      for (i64 i = j; i < end; i++) out[k * GEMM_NR + i] = B[k * sk + i * sn];
  }
}

// P panels side by side: C[MR, P * NR] = (more ? C : 0) + A[MR, K] @ panels.
template <int MR, int P>
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
      for (int v = 0; v < V; v++) acc[i][v] = fma(a, b[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) *(gemm_uvec*)(C + i * ldc + v * GEMM_LANES) = acc[i][v];
}

// MR rows of A against `panels` packed panels.
template <int MR>
static __attribute__((noinline)) void gemm_rows(const float* A, i64 ra, i64 ka, const float* Bp, i64 K,
                                                i64 panels, float* C, i64 ldc, bool more) {
  constexpr int P = MR * 4 <= GEMM_MR   ? 4
                    : MR * 2 <= GEMM_MR ? 2
                                        : 1;  // few rows: more panels, more independent sums
  i64 p = 0;
  for (; p + P <= panels; p += P)
    gemm_tile<MR, P>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc, more);
  for (; p < panels; p++)
    gemm_tile<MR, 1>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc, more);
}

template <int MR = GEMM_MR>
static inline void gemm_block(int m, const float* A, i64 ra, i64 ka, const float* Bp, i64 K, i64 panels,
                              float* C, i64 ldc, bool more = false) {
  if (m == MR) return gemm_rows<MR>(A, ra, ka, Bp, K, panels, C, ldc, more);
  if constexpr (MR > 1) gemm_block<MR - 1>(m, A, ra, ka, Bp, K, panels, C, ldc, more);
}

// Few rows: every element of B is used M times only, so it is read in place, its columns running along K:
// dot products. C[M, n1 - n0], ldc floats a row.
template <int M>
static __attribute__((noinline)) void gemm_dots(const float* A, i64 ra, const float* B, i64 sn, i64 K,
                                                i64 n, float* C, i64 ldc) {
  constexpr int U = M == 1 ? 8 : M == 2 ? 4 : 2;  // columns at a time: independent sums hide the latency
  for (i64 j = 0; j < n; j += U) {
    gemm_vec acc[M][U];
    const float* col[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) {
      col[u] = B + (j + u < n ? j + u : j) * sn;
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) acc[i][u] = gemm_vec{};
    }
    i64 k = 0;
    for (; k + GEMM_LANES <= K; k += GEMM_LANES)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) {
        const gemm_vec b = *(const gemm_uvec*)(col[u] + k);
#pragma GCC unroll 4
        for (int i = 0; i < M; i++)
          acc[i][u] = fma(b, gemm_vec(*(const gemm_uvec*)(A + i * ra + k)), acc[i][u]);
      }
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) {
        float s = 0;
        for (int l = 0; l < GEMM_LANES; l++) s += acc[i][u][l];
        for (i64 t = k; t < K; t++) s += A[i * ra + t] * col[u][t];
        if (j + u < n) C[i * ldc + j + u] = s;
      }
  }
}

// The same where B's rows run along N: they are added up, scaled, DEPTH of them in one pass over the sums.
template <int M>
static __attribute__((noinline)) void gemm_sums(const float* A, i64 ra, i64 ka, const float* B, i64 sk, i64 K,
                                                i64 n, float* C, i64 ldc) {
  constexpr int DEPTH = M == 1 ? 8 : 4;
  for (int i = 0; i < M; i++) __builtin_memset(C + i * ldc, 0, n * sizeof(float));
  for (i64 k = 0; k < K; k += DEPTH) {
    gemm_vec a[M][DEPTH];
    const float* row[DEPTH];
#pragma GCC unroll 8
    for (int d = 0; d < DEPTH; d++) {
      row[d] = B + (k + d < K ? k + d : k) * sk;
#pragma GCC unroll 4
      for (int i = 0; i < M; i++)
        a[i][d] = splat<float, GEMM_LANES>(k + d < K ? A[i * ra + (k + d) * ka] : 0);
    }
    i64 j = 0;
    for (; j + GEMM_LANES <= n; j += GEMM_LANES) {
      gemm_vec acc[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) acc[i] = *(const gemm_uvec*)(C + i * ldc + j);
#pragma GCC unroll 8
      for (int d = 0; d < DEPTH; d++) {
        const gemm_vec b = *(const gemm_uvec*)(row[d] + j);
#pragma GCC unroll 4
        for (int i = 0; i < M; i++) acc[i] = fma(a[i][d], b, acc[i]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) *(gemm_uvec*)(C + i * ldc + j) = acc[i];
    }
    for (; j < n; j++)
      for (int i = 0; i < M; i++) {
        float s = C[i * ldc + j];
        for (int d = 0; d < DEPTH; d++) s = __builtin_fmaf(a[i][d][0], row[d][j], s);
        C[i * ldc + j] = s;
      }
  }
}

// A product of few rows (or, the other way round, few columns): how it is read.
enum GemmFew { MANY, ROWS, COLUMNS };
constexpr i64 GEMM_FEW = 4, GEMM_RUN = 1024;  // rows; results at a time: their sums stay in L1

static GemmFew gemm_few(const Gemm& g) {
  if (g.M <= GEMM_FEW && ((g.sbk == 1 && g.K >= 4 * GEMM_LANES) || g.sbn == 1)) return ROWS;
  if (g.N <= GEMM_FEW && ((g.sak == 1 && g.K >= 4 * GEMM_LANES) || g.sa == 1)) return COLUMNS;
  return MANY;
}

// Rows of x [few, K] times y [K, n1 - n0] of y's columns from n0 on: C[few, n1 - n0], GEMM_RUN floats a row.
template <int FEW = GEMM_FEW>
static void gemm_line(i64 few, const float* x, i64 sx, i64 sxk, const float* y, i64 syk, i64 syn, i64 K,
                      i64 n, float* C) {
  if constexpr (FEW > 1)
    if (few < FEW) return gemm_line<FEW - 1>(few, x, sx, sxk, y, syk, syn, K, n, C);
  if (syn == 1) gemm_sums<FEW>(x, sx, sxk, y, syk, K, n, C, GEMM_RUN);
  else gemm_dots<FEW>(x, sx, y, syn, K, n, C, GEMM_RUN);
}

// Results [n0, n1) along the long axis.
static void gemm_part_few(const Gemm& g, GemmFew how, i64 b, i64 n0, i64 n1) {
  static thread_local GemmScratch scratch;
  const bool rows = how == ROWS;
  const i64 few = rows ? g.M : g.N;
  const float *x = rows ? g.A + b * g.sab : g.B + b * g.sbb, *y = rows ? g.B + b * g.sbb : g.A + b * g.sab;
  i64 sx = rows ? g.sa : g.sbn, sxk = rows ? g.sak : g.sbk;
  const i64 syk = rows ? g.sbk : g.sak, syn = rows ? g.sbn : g.sa;
  float* C = scratch.get(2 * GEMM_FEW * GEMM_RUN + few * g.K);
  float *turned = C + GEMM_FEW * GEMM_RUN, *line = turned + GEMM_FEW * GEMM_RUN;
  if (sxk != 1 && syn != 1) {  // dot products want both to run along K
    for (i64 i = 0; i < few; i++)
      for (i64 k = 0; k < g.K; k++) line[i * g.K + k] = x[i * sx + k * sxk];
    x = line, sx = g.K, sxk = 1;
  }
  for (i64 n = n0; n < n1; n += GEMM_RUN - GEMM_LANES) {
    const i64 run = n1 - n < GEMM_RUN - GEMM_LANES ? n1 - n : GEMM_RUN - GEMM_LANES;
    gemm_line(few, x, sx, sxk, y + n * syn, syk, syn, g.K, run, C);
    if (rows) {
      g.epilogue(g.context, b, 0, n, few, run, C, GEMM_RUN);
      continue;
    }
    for (i64 i = 0; few > 1 && i < few; i++)
      for (i64 j = 0; j < run; j++) turned[j * few + i] = C[i * GEMM_RUN + j];
    g.epilogue(g.context, b, n, 0, run, few, few > 1 ? turned : C, few);
  }
}

// How many of the rows that are left go into the next block of at most MR: evenly, 16 rows are 8 + 8, not
// 14 + 2.
static inline i64 gemm_next(i64 rows) {
  const i64 blocks = (rows + GEMM_MR - 1) / GEMM_MR;
  return (rows + blocks - 1) / blocks;
}

// Rows [0, rows) of A, which do not run along K, in blocks: out[block][k][row].
static __attribute__((noinline)) void gemm_pack_rows(const float* A, i64 sa, i64 sak, i64 K, i64 rows,
                                                     float* out) {
  constexpr i64 RUN = 32;  // rows of memory that are read side by side, each from end to end
  for (i64 k0 = 0; k0 < K; k0 += RUN) {
    const i64 k1 = k0 + RUN < K ? k0 + RUN : K;
    for (i64 row = 0, m; row < rows; row += m) {
      m = gemm_next(rows - row);
      float* to = out + row * K + k0 * m;
      const float* from = A + row * sa + k0 * sak;
      i64 k = k0;
      // whole vectors where they stay within the block: what they write too much is written over
      if (sa == 1 && row + GEMM_LANES <= rows)
        for (; k < k1 && k * m + GEMM_LANES <= K * m; k++, from += sak, to += m)
          *(gemm_uvec*)to = *(const gemm_uvec*)from;
      for (; k < k1; k++, from += sak)
        for (i64 i = 0; i < m; i++) *to++ = from[i * sa];
    }
  }
}

constexpr i64 GEMM_DEPTH = 768;     // of K at a time: a panel and a block of rows stay in L1
constexpr i64 GEMM_PANELS = GEMM_LANES > 8 ? 262144 : 98304;  // floats of panels: they stay in L2
constexpr i64 GEMM_ROWS = 768;      // at a time, where their sums are kept meanwhile
constexpr i64 GEMM_COPY = 1 << 19;  // floats of A that are copied at a time

// Product number b on the calling thread: panels [p0, p1), rows [r0, r1).
static void gemm_part(const Gemm& g, i64 b, i64 p0, i64 p1, i64 r0, i64 r1) {
  static thread_local GemmScratch scratch;
  const i64 parts = (g.K + GEMM_DEPTH - 1) / GEMM_DEPTH, depth = parts > 1 ? (g.K + parts - 1) / parts : g.K;
  i64 group = GEMM_PANELS / (depth * GEMM_NR + 1);
  group = group < 1 ? 1 : group > p1 - p0 ? p1 - p0 : group;
  // A is copied where its rows do not run along K, or collide in one set of the L1 cache
  const bool turn = g.sak != 1, copy = turn || (g.sa * 4 % 4096 == 0 && r1 - r0 > 4);
  i64 many = parts > 1 ? GEMM_ROWS : r1 - r0;
  if (turn && many > GEMM_COPY / (g.K + 1)) many = GEMM_COPY / (g.K + 1);
  many = many < GEMM_MR ? GEMM_MR : many < r1 - r0 ? many / GEMM_MR * GEMM_MR : r1 - r0;
  const i64 ldc = parts > 1 ? group * GEMM_NR : GEMM_TILE * GEMM_NR;
  const i64 sums = (parts > 1 ? many : GEMM_MR) * ldc, pitch = depth + 16;
  const i64 rows = turn ? many * g.K : copy ? GEMM_MR * pitch : 0;
  float* C = scratch.get(sums + group * depth * GEMM_NR + rows + 64);
  float *Bp = C + sums, *Ap = Bp + group * depth * GEMM_NR;
  const float *A0 = g.A + b * g.sab, *B = g.B + b * g.sbb;
  for (i64 top = r0; top < r1; top += many) {
    const i64 bottom = top + many < r1 ? top + many : r1;
    for (i64 at = p0; at < p1; at += group) {
      const i64 end = at + group < p1 ? at + group : p1;
      i64 k0 = 0;
      do {  // once for K = 0
        const i64 K = g.K - k0 < depth ? g.K - k0 : depth;
        const bool last = k0 + K >= g.K;
        for (i64 p = at; p < end; p++) {
          const i64 c = p * GEMM_NR, n = g.N - c < GEMM_NR ? g.N - c : GEMM_NR;
          gemm_pack_panel(B + c * g.sbn + k0 * g.sbk, K, n, g.sbk, g.sbn, Bp + (p - at) * K * GEMM_NR);
        }
        if (turn && at == p0)
          gemm_pack_rows(A0 + top * g.sa + k0 * g.sak, g.sa, g.sak, K, bottom - top, Ap + k0 * many);
        for (i64 row = top, m; row < bottom; row += m) {
          m = gemm_next(bottom - row);
          const float* A = A0 + row * g.sa + k0;
          i64 ra = g.sa, ka = 1;
          if (turn) {
            A = Ap + k0 * many + (row - top) * K, ra = 1, ka = m;
          } else if (copy) {  // rows apart by a length that is no multiple of the cache's sets
            for (int i = 0; i < m; i++) __builtin_memcpy(Ap + i * pitch, A + i * g.sa, K * sizeof(float));
            A = Ap, ra = pitch;
          }
          for (i64 p = at; p < end; p += GEMM_TILE) {
            const i64 n = end - p < GEMM_TILE ? end - p : GEMM_TILE, col = p * GEMM_NR;
            float* to = parts > 1 ? C + (row - top) * ldc + (p - at) * GEMM_NR : C;
            gemm_block((int)m, A, ra, ka, Bp + (p - at) * K * GEMM_NR, K, n, to, ldc, k0 > 0);
            const i64 cols = g.N - col < n * GEMM_NR ? g.N - col : n * GEMM_NR;
            if (last) g.epilogue(g.context, b, row, col, m, cols, to, ldc);
          }
        }
        k0 += depth;
      } while (k0 < g.K);
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
