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

struct Attention {
  int64_t batch, heads, kv_heads, queries, keys, dim, value_dim;
  const float *q, *k, *v, *mask;  // mask: nullptr for none
  int64_t qs[3], ks[3], vs[3],
      ms[4];         // strides over (batch, head, position); mask: (batch, head, query, key)
  float *out, *lse;  // lse: nullptr where nobody reads it
  int64_t os[3], ls[3];
  float scale;
  bool causal;  // query i sees keys 0 … i
};

constexpr int64_t ATTN_KEYS = 512;          // keys per block; K and V of a block take 256 KiB at dim 64
constexpr int64_t ATTN_ROWS = 8 * GEMM_MR;  // query rows per task: a block's packing is shared by this many

// One row of scores s[0 … n): new maximum, exponentials in place, their sum; gives what older sums must be
// scaled by.
static MC_INLINE float attention_softmax(float* s, int64_t n, float& max, float& sum) {
  typedef gemm_vec V;
  const int64_t full = n / GEMM_LANES * GEMM_LANES;
  float m = max;
  if (full) {
    V x = *(V*)s;
    for (int64_t j = GEMM_LANES; j < full; j += GEMM_LANES) x = maximum(x, *(V*)(s + j));
    for (int l = 0; l < GEMM_LANES; l++) m = maximum(m, (float)x[l]);
  }
  for (int64_t j = full; j < n; j++) m = maximum(m, s[j]);
  const float base =
      m == -__builtin_inff() ? 0.0f : m;  // a row with no key yet: exp(-inf - 0) = 0, not NaN
  float total = 0;
  if (full) {
    V t{};
    for (int64_t j = 0; j < full; j += GEMM_LANES) {
      const V e = exp(*(V*)(s + j) - base);
      *(V*)(s + j) = e;
      t += e;
    }
    for (int l = 0; l < GEMM_LANES; l++) total += t[l];
  }
  for (int64_t j = full; j < n; j++) total += s[j] = exp(s[j] - base);
  const float rescale = max == -__builtin_inff() ? 0.0f : exp(max - base);
  max = m;
  sum = sum * rescale + total;
  return rescale;
}

// Rows [r0, r0 + rows) against keys [k0, k0 + n): scores, softmax, product with V added to `o` (rows x
// value_dim).
static void attention_block(const Attention& a, int64_t b, int64_t h, int64_t r0, int rows, int64_t k0,
                            int64_t n, const float* kp, const float* vp, float* s, float* o, float* max,
                            float* sum) {
  const float* q = a.q + b * a.qs[0] + h * a.qs[1] + r0 * a.qs[2];
  const float* mask = a.mask ? a.mask + b * a.ms[0] + h * a.ms[1] : nullptr;
  float rescale[GEMM_MR];
  auto scores = [&](int64_t i, int64_t j, gemm_vec x, int) {
    *(gemm_vec*)(s + i * ATTN_KEYS + j) = x * a.scale;
  };
  gemm_dispatch<GEMM_MR>(rows, q, a.qs[2], 1, kp, a.dim, 0, 0, (n + GEMM_NR - 1) / GEMM_NR, ATTN_KEYS,
                         scores);
  for (int i = 0; i < rows; i++) {
    float* row = s + i * ATTN_KEYS;
    if (mask)
      for (int64_t j = 0; j < n; j++) row[j] += mask[(r0 + i) * a.ms[2] + (k0 + j) * a.ms[3]];
    if (a.causal)
      for (int64_t j = r0 + i + 1 - k0 < 0 ? 0 : r0 + i + 1 - k0; j < n; j++) row[j] = -__builtin_inff();
    rescale[i] = attention_softmax(row, n, max[i], sum[i]);
  }
  auto add = [&](int64_t i, int64_t j, gemm_vec x, int lanes) {
    float* to = o + i * a.value_dim + j;
    if (lanes == GEMM_LANES)
      *(gemm_uvec*)to = *(gemm_uvec*)to * rescale[i] + x;
    else
      for (int l = 0; l < lanes; l++) to[l] = to[l] * rescale[i] + x[l];
  };
  const int64_t panels = (a.value_dim + GEMM_NR - 1) / GEMM_NR;
  gemm_dispatch<GEMM_MR>(rows, s, ATTN_KEYS, 1, vp, n, 0, 0, panels, a.value_dim, add);
}

static void attention_task(const Attention& a, int64_t b, int64_t h, int64_t q0, int64_t q1) {
  static thread_local GemmScratch scratch;
  const int64_t kv = h / (a.heads / a.kv_heads);
  const int64_t kpanels = ATTN_KEYS / GEMM_NR, vpanels = (a.value_dim + GEMM_NR - 1) / GEMM_NR;
  float* kp = scratch.get(kpanels * GEMM_NR * a.dim + vpanels * GEMM_NR * ATTN_KEYS + GEMM_MR * ATTN_KEYS +
                          ATTN_ROWS * (a.value_dim + 2) + 64);
  float *vp = kp + kpanels * GEMM_NR * a.dim, *s = vp + vpanels * GEMM_NR * ATTN_KEYS,
        *o = s + GEMM_MR * ATTN_KEYS;
  float *max = o + ATTN_ROWS * a.value_dim, *sum = max + ATTN_ROWS;
  for (int64_t i = 0; i < (q1 - q0) * a.value_dim; i++) o[i] = 0;
  for (int64_t i = 0; i < q1 - q0; i++) max[i] = -__builtin_inff(), sum[i] = 0;
  const int64_t end = a.causal && q1 < a.keys ? q1 : a.keys;
  for (int64_t k0 = 0; k0 < end; k0 += ATTN_KEYS) {
    const int64_t n = end - k0 < ATTN_KEYS ? end - k0 : ATTN_KEYS;
    const float* k = a.k + b * a.ks[0] + kv * a.ks[1] + k0 * a.ks[2];
    const float* v = a.v + b * a.vs[0] + kv * a.vs[1] + k0 * a.vs[2];
    for (int64_t j = 0; j < n; j += GEMM_NR)
      gemm_pack_panel(k + j * a.ks[2], a.dim, n - j < GEMM_NR ? n - j : GEMM_NR, 1, a.ks[2],
                      kp + j * a.dim);
    for (int64_t j = 0; j < a.value_dim; j += GEMM_NR)
      gemm_pack_panel(v + j, n, a.value_dim - j < GEMM_NR ? a.value_dim - j : GEMM_NR, a.vs[2], 1,
                      vp + j * n);
    for (int64_t r = q0; r < q1; r += GEMM_MR) {
      const int rows = q1 - r < GEMM_MR ? (int)(q1 - r) : GEMM_MR;
      const int64_t seen = a.causal && r + rows - k0 < n ? r + rows - k0 : n;
      if (seen <= 0) continue;
      // V's panels were packed for n keys: scores past `seen` are zero weights
      const int64_t i = r - q0;
      attention_block(a, b, h, r, rows, k0, n, kp, vp, s, o + i * a.value_dim, max + i, sum + i);
    }
  }
  for (int64_t i = 0; i < q1 - q0; i++) {
    float* to = a.out + b * a.os[0] + h * a.os[1] + (q0 + i) * a.os[2];
    const float f = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
    for (int64_t j = 0; j < a.value_dim; j++) to[j] = o[i * a.value_dim + j] * f;
    if (a.lse) a.lse[b * a.ls[0] + h * a.ls[1] + (q0 + i) * a.ls[2]] = max[i] + log(sum[i]);
  }
}

inline void attention(const Attention& a, int nthreads) {
  // A task is up to ATTN_ROWS query rows of one head; few heads get smaller tasks, so that every thread has
  // some.
  int64_t rows = ATTN_ROWS;
  while (rows > GEMM_MR && a.batch * a.heads * ((a.queries + rows - 1) / rows) < 2 * nthreads)
    rows -= GEMM_MR;
  const int64_t per = (a.queries + rows - 1) / rows, tasks = a.batch * a.heads * per;
  if (a.batch * a.heads * a.queries * a.keys * a.dim < 65536) nthreads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(nthreads) if (nthreads > 1)
  for (int64_t t = 0; t < tasks; t++) {
    const int64_t q0 = t % per * rows, q1 = q0 + rows < a.queries ? q0 + rows : a.queries;
    attention_task(a, t / per / a.heads, t / per % a.heads, q0, q1);
  }
}

}  // namespace mc
