// Scaled dot-product attention, float32, forward: softmax(scale * Q K^T + mask) V without a quadratic
// buffer.
//
// Takes Q, K, V by pointer and strides (last dimension dense), an additive mask or none; gives the output
// and, for the backward pass, the logarithm of each row's sum. Keys are visited in blocks that fit in L2,
// with the running maximum and sum of the online softmax (Milakov & Gimelshein, 2018; Dao et al.,
// "FlashAttention", 2022); both products are gemm.h's micro-kernel. Rows of the query are split over
// threads together with batch and heads.
#pragma once
#include "gemm.h"
#include "math.h"

namespace mc {

constexpr i64 ATTN_KEYS = 512;          // keys per block; K and V of a block take 256 KiB at dim 64
constexpr i64 ATTN_ROWS = 8 * GEMM_MR;  // query rows per task: a block's packing is shared by this many

// One row of scores s[0 … n): new maximum, exponentials in place, their sum; gives what older sums must be
// scaled by.
static MC_INLINE float attention_softmax(float* s, i64 n, float& max, float& sum) {
  typedef gemm_vec V;
  const i64 full = n / GEMM_LANES * GEMM_LANES;
  float m = max;
  if (full) {
    V x = *(V*)s;
    for (i64 j = GEMM_LANES; j < full; j += GEMM_LANES) x = maximum(x, *(V*)(s + j));
    for (int l = 0; l < GEMM_LANES; l++) m = maximum(m, (float)x[l]);
  }
  for (i64 j = full; j < n; j++) m = maximum(m, s[j]);
  const float base =
      m == -__builtin_inff() ? 0.0f : m;  // a row with no key yet: exp(-inf - 0) = 0, not NaN
  float total = 0;
  if (full) {
    V t{};
    for (i64 j = 0; j < full; j += GEMM_LANES) {
      const V e = exp(*(V*)(s + j) - base);
      *(V*)(s + j) = e;
      t += e;
    }
    for (int l = 0; l < GEMM_LANES; l++) total += t[l];
  }
  for (i64 j = full; j < n; j++) total += s[j] = exp(s[j] - base);
  const float rescale = max == -__builtin_inff() ? 0.0f : exp(max - base);
  max = m;
  sum = sum * rescale + total;
  return rescale;
}

// Rows [r0, r0 + rows) against keys [k0, k0 + n): scores, softmax, product with V added to `o` (rows x
// ldo).
static void attention_block(const Attention& a, i64 b, i64 h, i64 r0, int rows, i64 k0, i64 n,
                            const float* kp, const float* vp, float* s, float* t, float* o, i64 ldo,
                            float* max, float* sum) {
  const float* q = a.q + b * a.qs[0] + h * a.qs[1] + r0 * a.qs[2];
  const float* mask = a.mask ? a.mask + b * a.ms[0] + h * a.ms[1] : nullptr;
  gemm_block(rows, q, a.qs[2], 1, kp, a.dim, (n + GEMM_NR - 1) / GEMM_NR, s, ATTN_KEYS);
  float rescale[GEMM_MR];
  for (int i = 0; i < rows; i++) {
    float* row = s + i * ATTN_KEYS;
    for (i64 j = 0; j < n; j += GEMM_LANES) *(gemm_vec*)(row + j) *= a.scale;
    if (mask) {
      const float* m = mask + (r0 + i) * a.ms[2] + k0 * a.ms[3];
      for (i64 j = 0; j < n; j++) row[j] += m[j * a.ms[3]];
    }
    if (a.causal)
      for (i64 j = r0 + i + 1 - k0 < 0 ? 0 : r0 + i + 1 - k0; j < n; j++) row[j] = -__builtin_inff();
    rescale[i] = attention_softmax(row, n, max[i], sum[i]);
  }
  gemm_block(rows, s, ATTN_KEYS, 1, vp, n, ldo / GEMM_NR, t, ldo);
  for (int i = 0; i < rows; i++)
    for (i64 j = 0; j < ldo; j += GEMM_LANES) {
      gemm_vec* to = (gemm_vec*)(o + i * ldo + j);
      *to = *to * rescale[i] + *(gemm_vec*)(t + i * ldo + j);
    }
}

// Query rows [q0, q1) of head h.
static void attention_task(const Attention& a, i64 b, i64 h, i64 q0, i64 q1) {
  static thread_local GemmScratch scratch;
  const i64 kv = h / (a.heads / a.kv_heads), ldo = (a.value_dim + GEMM_NR - 1) / GEMM_NR * GEMM_NR;
  const i64 dim = (a.dim + GEMM_LANES - 1) / GEMM_LANES * GEMM_LANES;  // keeps what follows aligned
  float* kp = scratch.get(ATTN_KEYS * (dim + ldo + GEMM_MR) + ldo * (GEMM_MR + ATTN_ROWS) + 2 * ATTN_ROWS);
  float *vp = kp + ATTN_KEYS * dim, *s = vp + ATTN_KEYS * ldo, *t = s + GEMM_MR * ATTN_KEYS;
  float *o = t + GEMM_MR * ldo, *max = o + ATTN_ROWS * ldo, *sum = max + ATTN_ROWS;
  for (i64 i = 0; i < (q1 - q0) * ldo; i++) o[i] = 0;
  for (i64 i = 0; i < q1 - q0; i++) max[i] = -__builtin_inff(), sum[i] = 0;
  const i64 end = a.causal && q1 < a.keys ? q1 : a.keys;
  for (i64 k0 = 0; k0 < end; k0 += ATTN_KEYS) {
    const i64 n = end - k0 < ATTN_KEYS ? end - k0 : ATTN_KEYS;
    const float* k = a.k + b * a.ks[0] + kv * a.ks[1] + k0 * a.ks[2];
    const float* v = a.v + b * a.vs[0] + kv * a.vs[1] + k0 * a.vs[2];
    for (i64 j = 0; j < n; j += GEMM_NR)
      gemm_pack_panel(k + j * a.ks[2], a.dim, n - j < GEMM_NR ? n - j : GEMM_NR, 1, a.ks[2],
                      kp + j * a.dim);
    for (i64 j = 0; j < a.value_dim; j += GEMM_NR)
      gemm_pack_panel(v + j, n, a.value_dim - j < GEMM_NR ? a.value_dim - j : GEMM_NR, a.vs[2], 1,
                      vp + j * n);
    for (i64 r = q0; r < q1; r += GEMM_MR) {
      const int rows = q1 - r < GEMM_MR ? (int)(q1 - r) : GEMM_MR;
      if (a.causal && r + rows <= k0) continue;
      const i64 i = r - q0;
      attention_block(a, b, h, r, rows, k0, n, kp, vp, s, t, o + i * ldo, ldo, max + i, sum + i);
    }
  }
  for (i64 i = 0; i < q1 - q0; i++) {
    float* to = a.out + b * a.os[0] + h * a.os[1] + (q0 + i) * a.os[2];
    const float f = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
    for (i64 j = 0; j < a.value_dim; j++) to[j] = o[i * ldo + j] * f;
    if (a.lse)
      a.lse[b * a.ls[0] + h * a.ls[1] + (q0 + i) * a.ls[2]] = sum[i] == 0 ? 0.0f : max[i] + log(sum[i]);
  }
}

static inline void attention(const Attention& a, int threads) {
  // A task is up to ATTN_ROWS query rows of one head; few heads get smaller tasks, so that every thread has
  // some.
  i64 rows = ATTN_ROWS;
  while (rows > GEMM_MR && a.batch * a.heads * ((a.queries + rows - 1) / rows) < 2 * threads)
    rows -= GEMM_MR;
  const i64 per = (a.queries + rows - 1) / rows, tasks = a.batch * a.heads * per;
  if (a.batch * a.heads * a.queries * a.keys * a.dim < 65536) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < tasks; t++) {
    const i64 q0 = t % per * rows, q1 = q0 + rows < a.queries ? q0 + rows : a.queries;
    attention_task(a, t / per / a.heads, t / per % a.heads, q0, q1);
  }
}

}  // namespace mc
