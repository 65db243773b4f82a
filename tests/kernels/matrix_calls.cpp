// What tests call the kernel library through: epilogues that add a bias per column (products) or per row (convolutions).
#include "attention.h"
#include "conv.h"

using namespace mc;

struct Sink {
  float* out;
  const float* bias;
  i64 row_stride, batch_stride;
  bool per_row;
};

static void store(void* context, i64 batch, i64 row, i64 col, i64 rows, i64 cols, float* tile, i64 ld) {
  const Sink& s = *(Sink*)context;
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < cols; c++)
      s.out[batch * s.batch_stride + (row + r) * s.row_stride + col + c] =
          tile[r * ld + c] + s.bias[s.per_row ? row + r : col + c];
}

typedef void (*GemmCall)(const Gemm*, int);
typedef void (*ConvCall)(const Conv2d*, int);

extern "C" {
__attribute__((visibility("default"))) void gemm_call(GemmCall call, Gemm* g, float* out, const float* bias, int threads) {
  Sink s{out, bias, g->N, g->M * g->N, false};
  g->epilogue = store, g->context = &s;
  call(g, threads);
}
__attribute__((visibility("default"))) void conv_call(ConvCall call, Conv2d* a, float* out, const float* bias, int threads) {
  const i64 pixels = a->out_height * a->out_width;
  const i64 channels = a->groups * a->out_channels;
  Sink s{out, bias, a->last ? channels : pixels, channels * pixels, !a->last};
  a->epilogue = store, a->context = &s;
  call(a, threads);
}
}
