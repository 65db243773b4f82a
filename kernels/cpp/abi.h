// What emitted code and the kernel library (library.cpp) say to each other: plain structs, and three
// functions that a loaded graph gets as pointers, because the library is built once and bound at run time.
#pragma once
#include "vec.h"

namespace mc {

// Called for each finished tile, in no particular order, from several threads: rows [row, row + rows) and
// columns [col, col + cols) of product number `batch` are tile[r * ld + c]. The tile's memory may be
// overwritten; reading up to a vector past its columns is allowed.
typedef void (*Epilogue)(void* context, i64 batch, i64 row, i64 col, i64 rows, i64 cols, float* tile,
                         i64 ld);

// A product's operands are float32 (kind 0), or each is bfloat16 or a float32 that counts as rounded to it.
enum { GEMM_HALF_A = 1, GEMM_HALF_B = 2, GEMM_ROUNDED = 4 };

struct Gemm {
  i64 batch, M, N, K;
  const void *A, *B;
  i64 sab, sa, sak;   // A's strides over batch, M, K
  i64 sbb, sbk, sbn;  // B's strides over batch, K, N
  Epilogue epilogue;
  void* context;
  i64 kind;
};

struct Conv2d {
  i64 batch, channels, height, width, out_channels, out_height, out_width, kh, kw;  // channels: of a group
  i64 groups;
  i64 stride[2], pad[2], dilation[2];
  const float *x, *w;
  i64 xs[4];  // strides of x over (image, channel, row, column)
  Epilogue epilogue;
  void* context;
  bool last;    // the result's channels lie side by side: the epilogue gets them as columns, pixels as rows
  bool w_last;  // so do the weight's: it lies as [OC, KH, KW, C]
  i64 first = 0;  // the epilogue's number of the first output channel
};

struct Attention {
  i64 batch, heads, kv_heads, queries, keys, dim, value_dim;
  const float *q, *k, *v, *mask;  // mask: nullptr for none
  i64 qs[3], ks[3], vs[3],
      ms[4];         // strides over (batch, head, position); mask: (batch, head, query, key)
  float *out, *lse;  // lse: nullptr where nobody reads it
  i64 os[3], ls[3];
  float scale;
  bool causal;  // query i sees keys 0 … i
};

struct Library {
  void (*gemm)(const Gemm*, int threads);
  void (*conv2d)(const Conv2d*, int threads);
  void (*attention)(const Attention*, int threads);
};

}  // namespace mc
