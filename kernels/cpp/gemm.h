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
// & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008); a panel streams from L2 at a
// few bytes per cycle, so K needs no blocking.
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

// P panels side by side: C[MR, P * NR] = A[MR, K] @ panels.
template <int MR, int P>
static MC_INLINE void gemm_tile(const float* A, i64 ra, i64 ka, const float* B, i64 K, float* C, i64 ldc) {
  constexpr int V = P * GEMM_NV;
  gemm_vec acc[MR][V];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) acc[i][v] = gemm_vec{};
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
                                                i64 panels, float* C, i64 ldc) {
  constexpr int P = MR * 4 <= GEMM_MR   ? 4
                    : MR * 2 <= GEMM_MR ? 2
                                        : 1;  // few rows: more panels, more independent sums
  i64 p = 0;
  for (; p + P <= panels; p += P)
    gemm_tile<MR, P>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc);
  for (; p < panels; p++) gemm_tile<MR, 1>(A, ra, ka, Bp + p * K * GEMM_NR, K, C + p * GEMM_NR, ldc);
}

template <int MR = GEMM_MR>
static inline void gemm_block(int m, const float* A, i64 ra, i64 ka, const float* Bp, i64 K, i64 panels,
                              float* C, i64 ldc) {
  if (m == MR) return gemm_rows<MR>(A, ra, ka, Bp, K, panels, C, ldc);
  if constexpr (MR > 1) gemm_block<MR - 1>(m, A, ra, ka, Bp, K, panels, C, ldc);
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

static bool gemm_few_rows(const Gemm& g) {
  return g.M <= 4 && g.sbk == 1 && g.sak == 1 && g.K >= 4 * GEMM_LANES;
}

static void gemm_part_few(const Gemm& g, i64 b, i64 n0, i64 n1) {
  float C[4 * 256];
  const float *A = g.A + b * g.sab, *B = g.B + b * g.sbb;
  for (i64 n = n0; n < n1; n += 256 - GEMM_LANES) {
    const i64 cols = n1 - n < 256 - GEMM_LANES ? n1 - n : 256 - GEMM_LANES;
    if (g.M == 1) gemm_dots<1>(A, g.sa, B + n * g.sbn, g.sbn, g.K, cols, C, 256);
    if (g.M == 2) gemm_dots<2>(A, g.sa, B + n * g.sbn, g.sbn, g.K, cols, C, 256);
    if (g.M == 3) gemm_dots<3>(A, g.sa, B + n * g.sbn, g.sbn, g.K, cols, C, 256);
    if (g.M == 4) gemm_dots<4>(A, g.sa, B + n * g.sbn, g.sbn, g.K, cols, C, 256);
    g.epilogue(g.context, b, 0, n, g.M, cols, C, 256);
  }
}

// How M rows are cut into blocks of at most MR: evenly, 16 rows are 8 + 8, not 14 + 2.
static i64 gemm_row_block(i64 rows) {
  const i64 blocks = (rows + GEMM_MR - 1) / GEMM_MR;
  return blocks ? (rows + blocks - 1) / blocks : 1;
}

// Product number b on the calling thread: panels [p0, p1), rows [r0, r1).
static void gemm_part(const Gemm& g, i64 b, i64 p0, i64 p1, i64 r0, i64 r1) {
  static thread_local GemmScratch scratch;
  const i64 K = g.K, mr = gemm_row_block(r1 - r0);
  i64 group = 163840 / (K * GEMM_NR + 1);  // panels that stay in L2 while all row blocks pass over them
  group = group < 1 ? 1 : group > p1 - p0 ? p1 - p0 : group;
  // A is copied where its rows do not run along K, or collide in one set of the L1 cache
  const bool copy = g.sak != 1 || (g.sa * 4 % 4096 == 0 && mr > 4);
  const i64 ldc = GEMM_TILE * GEMM_NR;
  float* C = scratch.get(GEMM_MR * ldc + group * K * GEMM_NR + (copy ? GEMM_MR * (K + 16) : 0) + 64);
  float *Bp = C + GEMM_MR * ldc, *Ap = Bp + group * K * GEMM_NR;
  const float* B = g.B + b * g.sbb;
  for (i64 at = p0; at < p1; at += group) {
    const i64 end = at + group < p1 ? at + group : p1;
    for (i64 p = at; p < end; p++) {
      const i64 c = p * GEMM_NR, n = g.N - c < GEMM_NR ? g.N - c : GEMM_NR;
      gemm_pack_panel(B + c * g.sbn, K, n, g.sbk, g.sbn, Bp + (p - at) * K * GEMM_NR);
    }
    for (i64 row = r0; row < r1; row += mr) {
      const int m = (int)(r1 - row < mr ? r1 - row : mr);
      const float* A = g.A + b * g.sab + row * g.sa;
      i64 ra = g.sa, ka = g.sak;
      if (copy && g.sak == 1) {  // rows apart by a length that is no multiple of the cache's sets
        for (int i = 0; i < m; i++) __builtin_memcpy(Ap + i * (K + 16), A + i * g.sa, K * sizeof(float));
        A = Ap, ra = K + 16;
      } else if (copy) {
        for (i64 k = 0; k < K; k++)
          for (int i = 0; i < m; i++) Ap[k * m + i] = A[i * g.sa + k * g.sak];
        A = Ap, ra = 1, ka = m;
      }
      for (i64 p = at; p < end; p += GEMM_TILE) {
        const i64 n = end - p < GEMM_TILE ? end - p : GEMM_TILE, col = p * GEMM_NR;
        gemm_block(m, A, ra, ka, Bp + (p - at) * K * GEMM_NR, K, n, C, ldc);
        const i64 cols = g.N - col < n * GEMM_NR ? g.N - col : n * GEMM_NR;
        g.epilogue(g.context, b, row, col, m, cols, C, ldc);
      }
    }
  }
}

// K = 0 gives zeros; an empty product calls nothing.
static inline void gemm(const Gemm& g, int threads) {
  const i64 panels = (g.N + GEMM_NR - 1) / GEMM_NR;
  if (g.batch * g.M * g.N == 0) return;
  if (g.batch * g.M * g.N * g.K < 32768) threads = 1;
  const bool few = gemm_few_rows(g);
  // Batches are split first, then columns, as each thread then packs only its own; rows where columns are
  // too few.
  const i64 pieces = g.batch % threads == 0 ? 1 : threads;
  const i64 cols = panels >= pieces ? pieces : 1, rows = panels >= pieces ? 1 : few ? 1 : pieces;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < g.batch * cols * rows; t++) {
    // consecutive batches on one thread
    const i64 unit = threads > 1 ? t / threads + t % threads * (g.batch * cols * rows / threads) : t;
    const i64 at = g.batch * cols * rows % threads == 0 ? unit : t;
    const i64 b = at / (cols * rows), c = at % cols, r = at / cols % rows;
    const i64 p0 = panels * c / cols, p1 = panels * (c + 1) / cols;
    if (few) {
      const i64 n1 = p1 * GEMM_NR < g.N ? p1 * GEMM_NR : g.N;
      gemm_part_few(g, b, p0 * GEMM_NR, n1);
    } else {
      gemm_part(g, b, p0, p1, g.M * r / rows, g.M * (r + 1) / rows);
    }
  }
}

}  // namespace mc
