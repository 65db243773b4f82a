// Depthwise 2-d convolution, float32: each output channel is made of one input channel.
//
// Takes a Conv2d whose groups are its channels, gives finished pixels to its epilogue, one channel at a time.
// A channel's rows are copied with their padding as conv.h does, columns split by phase, so every window
// element of neighbouring pixels is a run. Accumulators lie `apart` floats from each other in that copy: one
// below the other, a row of the result each; or, where rows are shorter than vectors, side by side, over the
// rows as they follow each other in the copy (a convolution is a sum of shifts of the padded image).
#pragma once
#include "conv_rows.h"

namespace mc {

constexpr int DEPTH_MANY = GEMM_LANES > 8 ? 8 : 4, DEPTH_SOME = 4, DEPTH_ACC = GEMM_LANES > 4 ? 8 : 4;
constexpr i64 DEPTH_TILE = 2048;  // pixels at a time: they stay in L1 with the rows they come from

// out[i * pitch + lane] = sum over taps of w[t] * x[places[t] + i * apart + lane]
template <int R>
static __attribute__((noinline)) void depth_sums(const float* x, const float* w, const i64* places, i64 taps,
                                                 i64 apart, float* out, i64 pitch) {
  gemm_vec acc[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) acc[i] = gemm_vec{};
  for (i64 t = 0; t < taps; t++) {
    const gemm_vec a = splat<float, GEMM_LANES>(w[t]);
    const float* from = x + places[t];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) acc[i] = fma(a, gemm_vec(*(const gemm_uvec*)(from + i * apart)), acc[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) *(gemm_uvec*)(out + i * pitch) = acc[i];  // in order: see depth_rows
}

template <int R = DEPTH_ACC>
static inline void depth_block(i64 n, const float* x, const float* w, const i64* places, i64 taps, i64 apart,
                               float* out, i64 pitch) {
  if (n == R) return depth_sums<R>(x, w, places, taps, apart, out, pitch);
  if constexpr (R > 1) depth_block<R - 1>(n, x, w, places, taps, apart, out, pitch);
}

// The same for windows of KH neighbouring rows: a row of x serves all results that read it.
template <int KH, int R>
static __attribute__((noinline)) void depth_reuse(const float* x, const float* w, const i64* places, i64 kw,
                                                  i64 apart, float* out, i64 pitch) {
  gemm_vec acc[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) acc[i] = gemm_vec{};
  for (i64 l = 0; l < kw; l++) {
    gemm_vec a[KH];
#pragma GCC unroll 8
    for (int k = 0; k < KH; k++) a[k] = splat<float, GEMM_LANES>(w[k * kw + l]);
    const float* from = x + places[l];
#pragma GCC unroll 16
    for (int r = 0; r < R + KH - 1; r++) {
      const gemm_vec v = *(const gemm_uvec*)(from + r * apart);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++)
        if (r - i >= 0 && r - i < KH) acc[i] = fma(a[r - i], v, acc[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) *(gemm_uvec*)(out + i * pitch) = acc[i];
}

typedef void (*DepthReuse)(const float*, const float*, const i64*, i64, i64, float*, i64);
template <int R>
static inline DepthReuse depth_reuse_of(const Conv2d& a) {
  if (a.stride[0] != 1 || a.dilation[0] != 1) return nullptr;
  return a.kh == 3   ? depth_reuse<3, R>
         : a.kh == 5 ? depth_reuse<5, R>
         : a.kh == 7 ? depth_reuse<7, R>
                     : nullptr;
}

static inline i64 depth_next(i64 n) {  // as gemm_next
  const i64 blocks = (n + DEPTH_ACC - 1) / DEPTH_ACC;
  return (n + blocks - 1) / blocks;
}

// `n` rows of the result from the copied rows x, `apart` floats from one to the next, into a dense tile.
// What a vector writes past its row is the beginning of the next one, which is written later: columns go
// backwards, rows forwards.
static void depth_rows(const Conv2d& a, const float* x, const float* w, const i64* places, i64 apart, i64 n,
                       float* tile, float* flat) {
  const i64 taps = a.kh * a.kw, vectors = (a.out_width + GEMM_LANES - 1) / GEMM_LANES;
  const i64 side = (n * apart + GEMM_LANES - 1) / GEMM_LANES;
  const DepthReuse many = depth_reuse_of<DEPTH_MANY>(a), some = depth_reuse_of<DEPTH_SOME>(a);
  if (side * (many && n >= DEPTH_SOME ? 2 : 1) < n * vectors) {
    for (i64 v = 0, m; v < side; v += m) {
      m = depth_next(side - v);
      depth_block(m, x + v * GEMM_LANES, w, places, taps, GEMM_LANES, flat + v * GEMM_LANES, GEMM_LANES);
    }
    for (i64 i = 0; i < n; i++)
      for (i64 c = 0; c < a.out_width; c++) tile[i * a.out_width + c] = flat[i * apart + c];
    return;
  }
  for (i64 i = 0, m; i < n; i += m) {
    const DepthReuse reuse = n - i >= DEPTH_MANY ? many : n - i >= DEPTH_SOME ? some : nullptr;
    m = !reuse ? depth_next(n - i) : n - i >= DEPTH_MANY ? DEPTH_MANY : DEPTH_SOME;
    for (i64 v = vectors - 1; v >= 0; v--) {
      const float* from = x + i * apart + v * GEMM_LANES;
      float* to = tile + i * a.out_width + v * GEMM_LANES;
      if (reuse) reuse(from, w, places, a.kw, apart, to, a.out_width);
      else depth_block(m, from, w, places, taps, apart, to, a.out_width);
    }
  }
}

static inline i64 depth_block_size(const Conv2d& a) { return a.last ? CONV_TURN : 1; }

// Blocks [p0, p1) of output channels of all images, counted through: one channel each, or as many as are
// turned together.
static void depth_blocks(const Conv2d& a, i64 p0, i64 p1) {
  static thread_local GemmScratch scratch;
  const i64 channels = a.groups * a.out_channels, block = depth_block_size(a);
  const i64 least = DEPTH_TILE / (a.last ? 4 : 1) / a.out_width, most = least < 1 ? 1 : least;
  const i64 step = most < a.out_height ? most : a.out_height, taps = a.kh * a.kw;
  const ConvRows full = conv_rows(a, 0, step * a.out_width);
  const i64 apart = full.row * a.stride[0], tile = step * a.out_width + GEMM_LANES;
  const i64 slack = 2 * GEMM_LANES + apart;  // read past the copied rows, and dropped
  const i64 turn = a.last ? tile * CONV_TURN : 0;
  float* out = scratch.get(block * tile + turn + step * apart + GEMM_LANES + block * full.plane + slack);
  float *turned = out + block * tile, *flat = turned + turn, *x = flat + step * apart + GEMM_LANES;
  i64* places = (i64*)__builtin_alloca(taps * sizeof(i64));
  conv_places(a, full, places);
  const i64 blocks = (channels + block - 1) / block;
  Conv2d part = a;
  for (i64 p = p0; p < p1; p++) {
    const i64 image = p / blocks, channel = p % blocks * block;
    part.channels = channels - channel < block ? channels - channel : block;
    for (i64 h = 0; h < a.out_height; h += step) {
      const i64 n = a.out_height - h < step ? a.out_height - h : step, pixels = n * a.out_width;
      ConvRows rows = conv_rows(a, h * a.out_width, h * a.out_width + pixels);
      rows.data = x;
      conv_copy_rows(part, a.x + image * a.xs[0] + channel / a.out_channels * a.xs[1], rows);
      for (i64 c = 0; c < part.channels; c++)
        depth_rows(a, x + c * rows.plane, a.w + (channel + c) * taps, places, apart, n, out + c * tile, flat);
      if (a.last) {
        conv_turn(out, part.channels, pixels, tile, turned);
        a.epilogue(a.context, image, h * a.out_width, channel, pixels, part.channels, turned, CONV_TURN);
      } else {
        a.epilogue(a.context, image, channel, h * a.out_width, 1, pixels, out, tile);
      }
    }
  }
}

static inline void depthwise(const Conv2d& a, int threads) {
  const i64 block = depth_block_size(a), all = a.batch * ((a.groups * a.out_channels + block - 1) / block);
  if (all * block * a.out_height * a.out_width * a.kh * a.kw < 32768) threads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < threads; t++) depth_blocks(a, all * t / threads, all * (t + 1) / threads);
}

}  // namespace mc
