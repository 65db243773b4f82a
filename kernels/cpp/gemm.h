// Single-precision matrix product with a fused epilogue: C = epilogue(A @ B).
//
// Takes A [M, K] and B [K, N] by pointer and strides, in the caller's own memory. Gives each finished
// vector of a row to an epilogue functor `epi(row, col, vec, lanes)`, which adds biases, applies
// activations and stores: the product itself never goes through memory.
//
// B is packed panel by panel into a per-thread buffer just before use, in every call. Packing costs K * N /
// 3 cycles against M * K * N / 16 of arithmetic (1% at M = 512), which is less than proving that a copy
// made earlier still equals weights that `.data`, numpy or another library may have written behind the
// version counter. The micro-kernel keeps MR x (NV vectors) of C in registers over the whole K extent (Goto
// & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008); a panel streams from L2 at a
// few bytes per cycle, so K needs no blocking.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace mc {

#if defined(__AVX512F__)
constexpr int GEMM_LANES = 16, GEMM_MR = 14;
#elif defined(__AVX2__)
constexpr int GEMM_LANES = 8, GEMM_MR = 6;
#else
constexpr int GEMM_LANES = 4, GEMM_MR = 4;
#endif
constexpr int GEMM_NV = 2, GEMM_NR = GEMM_LANES * GEMM_NV;
typedef float gemm_vec __attribute__((vector_size(GEMM_LANES * 4)));
typedef float gemm_uvec __attribute__((vector_size(GEMM_LANES * 4), aligned(4), may_alias));
typedef int gemm_ivec __attribute__((vector_size(GEMM_LANES * 4)));

// Per-thread memory that grows to the largest request and is released when its thread ends.
struct GemmScratch {
  float* data = nullptr;
  int64_t size = 0;
  float* get(int64_t n) {
    if (n > size) {
      free(data);
      data = (float*)aligned_alloc(64, (n * 4 + 63) / 64 * 64);
      if (!data) abort();
      size = n;
    }
    return data;
  }
  ~GemmScratch() { free(data); }
};

// LANES x LANES transpose in registers: log2(LANES) rounds of pairwise interleaving.
static inline __attribute__((always_inline)) void gemm_transpose(gemm_vec (&r)[GEMM_LANES]) {
  gemm_ivec lo, hi;
#pragma GCC unroll 16
  for (int i = 0; i < GEMM_LANES; i++) {
    lo[i] = i / 2 + (i % 2) * GEMM_LANES;
    hi[i] = lo[i] + GEMM_LANES / 2;
  }
  for (int round = 1; round < GEMM_LANES; round *= 2) {
    gemm_vec t[GEMM_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < GEMM_LANES / 2; i++) {
      t[2 * i] = __builtin_shuffle(r[i], r[i + GEMM_LANES / 2], lo);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + GEMM_LANES / 2], hi);
    }
#pragma GCC unroll 16
    for (int i = 0; i < GEMM_LANES; i++) r[i] = t[i];
  }
}

// One panel: out[k][j] = B[k * sk + j * sn] for j < n, zero for n <= j < NR.
static __attribute__((noinline)) void gemm_pack_panel(const float* B, int64_t K, int64_t n, int64_t sk,
                                                      int64_t sn, float* out) {
  if (n < GEMM_NR) memset(out, 0, sizeof(float) * K * GEMM_NR);
  if (sn == 1) {
    for (int64_t k = 0; k < K; k++) memcpy(out + k * GEMM_NR, B + k * sk, n * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < n; j += GEMM_LANES) {
    int64_t k = 0;
    if (sk == 1 && j + GEMM_LANES <= n)
      for (; k + GEMM_LANES <= K; k += GEMM_LANES) {
        gemm_vec r[GEMM_LANES];
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) r[i] = *(const gemm_uvec*)(B + (j + i) * sn + k);
        gemm_transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_LANES; i++) *(gemm_vec*)(out + (k + i) * GEMM_NR + j) = r[i];
      }
    const int64_t end = j + GEMM_LANES < n ? j + GEMM_LANES : n;
    for (; k < K; k++)
      for (int64_t i = j; i < end; i++) out[k * GEMM_NR + i] = B[k * sk + i * sn];
  }
}

// P panels side by side: a tile C[MR, P * NR] over all of K, handed to the epilogue.
template <int MR, int P, class Epi>
static inline __attribute__((always_inline)) void gemm_tile(const float* A, int64_t ra, int64_t ka,
                                                            const float* B, int64_t K, int64_t row,
                                                            int64_t col, int64_t N, Epi& epi) {
  constexpr int V = P * GEMM_NV;
  gemm_vec acc[MR][V];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < V; v++) acc[i][v] = gemm_vec{};
  for (int64_t k = 0; k < K; k++) {
    gemm_vec b[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; v++)
      b[v] = *(const gemm_vec*)(B + (v / GEMM_NV) * K * GEMM_NR + k * GEMM_NR + (v % GEMM_NV) * GEMM_LANES);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const float a = A[i * ra + k * ka];
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) {
      const int64_t c = col + v * GEMM_LANES, left = N - c;
      if (left > 0) epi(row + i, c, acc[i][v], left < GEMM_LANES ? (int)left : GEMM_LANES);
    }
}

template <int MR, class Epi>
static __attribute__((noinline)) void gemm_rows(const float* A, int64_t ra, int64_t ka, const float* Bp,
                                                int64_t K, int64_t row, int64_t p0, int64_t p1, int64_t N,
                                                Epi& epi) {
  constexpr int P = MR * 4 <= GEMM_MR   ? 4
                    : MR * 2 <= GEMM_MR ? 2
                                        : 1;  // few rows: more panels, for enough independent sums
  int64_t p = p0;
  for (; p + P <= p1; p += P)
    gemm_tile<MR, P>(A, ra, ka, Bp + (p - p0) * K * GEMM_NR, K, row, p * GEMM_NR, N, epi);
  for (; p < p1; p++) gemm_tile<MR, 1>(A, ra, ka, Bp + (p - p0) * K * GEMM_NR, K, row, p * GEMM_NR, N, epi);
}

template <int MR, class Epi>
static inline void gemm_dispatch(int m, const float* A, int64_t ra, int64_t ka, const float* Bp, int64_t K,
                                 int64_t row, int64_t p0, int64_t p1, int64_t N, Epi& epi) {
  if (m == MR) return gemm_rows<MR>(A, ra, ka, Bp, K, row, p0, p1, N, epi);
  if constexpr (MR > 1) gemm_dispatch<MR - 1>(m, A, ra, ka, Bp, K, row, p0, p1, N, epi);
}

// Few rows: every element of B is used M times only, so it is read in place. B's columns run along K (sk ==
// 1): dot products.
template <int M, class Epi>
static __attribute__((noinline)) void gemm_dots(const float* A, int64_t ra, const float* B, int64_t sn,
                                                int64_t K, int64_t n0, int64_t n1, Epi& epi) {
  constexpr int U = M == 1 ? 8 : M == 2 ? 4 : 2;  // columns at a time: independent sums hide the latency
  for (int64_t n = n0; n < n1; n += GEMM_LANES) {
    const int lanes = n1 - n < GEMM_LANES ? (int)(n1 - n) : GEMM_LANES;
    gemm_vec c[M];
    for (int i = 0; i < M; i++) c[i] = gemm_vec{};
    for (int j = 0; j < lanes; j += U) {
      gemm_vec acc[M][U];
      const float* col[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) {
        col[u] = B + (n + (j + u < lanes ? j + u : j)) * sn;
        for (int i = 0; i < M; i++) acc[i][u] = gemm_vec{};
      }
      int64_t k = 0;
      for (; k + GEMM_LANES <= K; k += GEMM_LANES)
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) {
          const gemm_vec b = *(const gemm_uvec*)(col[u] + k);
#pragma GCC unroll 4
          for (int i = 0; i < M; i++) acc[i][u] += b * *(const gemm_uvec*)(A + i * ra + k);
        }
      for (int u = 0; u < U && j + u < lanes; u++)
        for (int i = 0; i < M; i++) {
          float s = 0;
          for (int l = 0; l < GEMM_LANES; l++) s += acc[i][u][l];
          for (int64_t t = k; t < K; t++) s += A[i * ra + t] * col[u][t];
          c[i][j + u] = s;
        }
    }
    for (int i = 0; i < M; i++) epi((int64_t)i, n, c[i], lanes);
  }
}

// One product on the calling thread, columns [p0, p1) in panels, all rows. `sa`/`sak`: A's strides along M
// and K; `sk`/`sn`: B's.
template <class Epi>
static void gemm_part(int64_t M, int64_t N, int64_t K, const float* A, int64_t sa, int64_t sak,
                      const float* B, int64_t sk, int64_t sn, int64_t p0, int64_t p1, int64_t r0,
                      int64_t r1, Epi& epi) {
  static thread_local GemmScratch scratch;
  if (r0 == 0 && r1 == M && M <= 4 && sk == 1 && sak == 1 && K >= 4 * GEMM_LANES) {
    const int64_t n0 = p0 * GEMM_NR, n1 = p1 * GEMM_NR < N ? p1 * GEMM_NR : N;
    if (M == 1) return gemm_dots<1>(A, sa, B, sn, K, n0, n1, epi);
    if (M == 2) return gemm_dots<2>(A, sa, B, sn, K, n0, n1, epi);
    if (M == 3) return gemm_dots<3>(A, sa, B, sn, K, n0, n1, epi);
    if (M == 4) return gemm_dots<4>(A, sa, B, sn, K, n0, n1, epi);
  }
  const int64_t rows = r1 - r0, blocks = (rows + GEMM_MR - 1) / GEMM_MR;
  const int64_t mr =
      blocks ? (rows + blocks - 1) / blocks : 1;  // even blocks: 16 rows are 8 + 8, not 14 + 2
  int64_t group = 163840 / (K * GEMM_NR + 1);  // panels that stay in L2 while all row blocks pass over them
  if (group < 1) group = 1;
  if (group > p1 - p0) group = p1 - p0;
  // A is copied where its rows do not run along K, or collide in one set of the L1 cache
  const bool copy = sak != 1 || (sa * 4 % 4096 == 0 && mr > 4);
  float* Bp = scratch.get(group * K * GEMM_NR + (copy ? GEMM_MR * (K + 16) : 0) + 64);
  float* Ap = Bp + group * K * GEMM_NR;
  for (int64_t g = p0; g < p1; g += group) {
    const int64_t ge = g + group < p1 ? g + group : p1;
    for (int64_t p = g; p < ge; p++) {
      const int64_t c = p * GEMM_NR, n = N - c < GEMM_NR ? N - c : GEMM_NR;
      gemm_pack_panel(B + c * sn, K, n, sk, sn, Bp + (p - g) * K * GEMM_NR);
    }
    for (int64_t row = r0; row < r1; row += mr) {
      const int m = (int)(r1 - row < mr ? r1 - row : mr);
      const float* a = A + row * sa;
      if (copy && sak == 1) {  // rows apart by a length that is no multiple of the cache's sets
        for (int i = 0; i < m; i++) memcpy(Ap + i * (K + 16), a + i * sa, K * sizeof(float));
        gemm_dispatch<GEMM_MR>(m, Ap, K + 16, 1, Bp, K, row, g, ge, N, epi);
      } else if (copy) {
        for (int64_t k = 0; k < K; k++)
          for (int i = 0; i < m; i++) Ap[k * m + i] = a[i * sa + k * sak];
        gemm_dispatch<GEMM_MR>(m, Ap, 1, m, Bp, K, row, g, ge, N, epi);
      } else {
        gemm_dispatch<GEMM_MR>(m, a, sa, 1, Bp, K, row, g, ge, N, epi);
      }
    }
  }
}

// C = epi(A @ B). epi(row, col, gemm_vec value, int lanes) is called once per vector of C, in no particular
// order, from several threads; `lanes` < GEMM_LANES at the right edge. K = 0 gives zeros; M = 0 or N = 0
// calls nothing.
template <class Epi>
void gemm(int64_t M, int64_t N, int64_t K, const float* A, int64_t sa, int64_t sak, const float* B,
          int64_t sk, int64_t sn, Epi epi, int nthreads) {
  const int64_t panels = (N + GEMM_NR - 1) / GEMM_NR;
  if (M == 0 || N == 0) return;
  if (M * N * K < 32768) nthreads = 1;
  if (nthreads == 1) return gemm_part(M, N, K, A, sa, sak, B, sk, sn, 0, panels, 0, M, epi);
  // Columns are split first, as each thread then packs only its own; rows where columns are too few.
  const int64_t cols = panels >= nthreads ? nthreads : 1, rows = panels >= nthreads ? 1 : nthreads;
#pragma omp parallel for schedule(static, 1) num_threads(nthreads)
  for (int64_t t = 0; t < cols * rows; t++) {
    const int64_t c = t % cols, r = t / cols;
    gemm_part(M, N, K, A, sa, sak, B, sk, sn, panels * c / cols, panels * (c + 1) / cols, M * r / rows,
              M * (r + 1) / rows, epi);
  }
}

}  // namespace mc
