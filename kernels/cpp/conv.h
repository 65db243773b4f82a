// 2-d convolution, float32, NCHW in and out, as a matrix product: weights [OC, C*KH*KW] times the input's
// windows [C*KH*KW, pixels].
//
// Takes the input by strides and a dense weight, in the caller's own memory. The right operand never exists
// as a whole: the panels gemm.h's micro-kernel reads are filled from the input. Each task first copies the
// rows it needs with their padding, columns split by phase (column modulo the stride), which makes every
// run of window elements contiguous whatever the stride; that copy costs 1/(OC*KH*KW) of the arithmetic and
// filling the panels 2/OC. Pixels go in vectors that never span two images, and two vectors of any images
// make a panel, so tiny images waste no lanes. Gives finished pixels to a gemm.h epilogue: batch = image,
// rows = output channels, columns = pixels oh * OW + ow.
#pragma once
#include "gemm.h"

namespace mc {

// The padded copy of the rows of one image that some of its pixels need.
struct ConvRows {
  float* data;
  i64 row0, rows, phase, row,
      plane;  // first row (of the padded image), and strides of phase, row and channel
};

static inline ConvRows conv_rows(const Conv2d& a, i64 pixel0, i64 pixel1) {
  const i64 oh0 = pixel0 / a.out_width, oh1 = (pixel1 - 1) / a.out_width;
  ConvRows r;
  r.data = nullptr;
  r.row0 = oh0 * a.stride[0];
  r.rows = (oh1 - oh0) * a.stride[0] + (a.kh - 1) * a.dilation[0] + 1;
  r.phase = a.out_width + ((a.kw - 1) * a.dilation[1]) / a.stride[1];
  r.row = r.phase * a.stride[1];
  r.plane = r.row * r.rows;
  return r;
}

static __attribute__((noinline)) void conv_copy_rows(const Conv2d& a, const float* x, const ConvRows& r) {
  const i64 s = a.stride[1];
  for (i64 c = 0; c < a.channels; c++)
    for (i64 i = 0; i < r.rows; i++) {
      float* to = r.data + c * r.plane + i * r.row;
      const i64 row = r.row0 + i - a.pad[0];
      if (row < 0 || row >= a.height) {
        __builtin_memset(to, 0, r.row * sizeof(float));
        continue;
      }
      const float* from = x + c * a.xs[1] + row * a.xs[2];
      for (i64 f = 0; f < s; f++, to += r.phase) {  // to[q] = padded column q * s + f
        const i64 first = f - a.pad[1];
        i64 lo = first < 0 ? (-first + s - 1) / s : 0;
        i64 hi = first >= a.width ? 0 : (a.width - 1 - first) / s + 1;
        if (hi > r.phase) hi = r.phase;
        if (lo > hi) lo = hi;
        for (i64 q = 0; q < lo; q++) to[q] = 0;
        if (s * a.xs[3] == 1) {
          __builtin_memcpy(to + lo, from + lo + first, (hi - lo) * sizeof(float));
        } else {
          for (i64 q = lo; q < hi; q++) to[q] = from[(q * s + first) * a.xs[3]];
        }
        for (i64 q = hi; q < r.phase; q++) to[q] = 0;
      }
    }
}

// Vectors of pixels [u0, u1): which image and pixels unit u is.
struct ConvUnits {
  i64 per_image, pixels;
  i64 image(i64 u) const { return u / per_image; }
  i64 pixel(i64 u) const { return u % per_image * GEMM_LANES; }
  i64 lanes(i64 u) const { return pixels - pixel(u) < GEMM_LANES ? pixels - pixel(u) : GEMM_LANES; }
};

// One panel: out[k][v * LANES + j] = window element k of pixel j of unit u + v.
static __attribute__((noinline)) void conv_pack_panel(const Conv2d& a, const ConvUnits& units, i64 u,
                                                      i64 u1, const ConvRows* rows, i64 image0,
                                                      float* out) {
  struct Run {
    const float* from;
    i64 at, plane, row;
  };  // pixels of the panel that lie in one output row
  Run runs[GEMM_NR];
  int nruns = 0;
  for (int v = 0; v < GEMM_NV && u + v < u1; v++) {
    const ConvRows& r = rows[units.image(u + v) - image0];
    const i64 p0 = units.pixel(u + v), n = units.lanes(u + v);
    for (i64 j = 0; j < n;) {
      const i64 oh = (p0 + j) / a.out_width, ow = (p0 + j) % a.out_width;
      runs[nruns++] =
          Run{r.data + (oh * a.stride[0] - r.row0) * r.row + ow, v * GEMM_LANES + j, r.plane, r.row};
      j += a.out_width - ow;
    }
  }
  const i64 phase = rows[0].phase;
  for (i64 c = 0; c < a.channels; c++)
    for (i64 i = 0; i < a.kh; i++)
      for (i64 l = 0; l < a.kw; l++, out += GEMM_NR) {
        const i64 at = (l * a.dilation[1]) % a.stride[1] * phase + (l * a.dilation[1]) / a.stride[1];
        // Whole vectors: what a run writes past its end, the next run or the next k overwrites.
        for (int r = 0; r < nruns; r++)
          *(gemm_uvec*)(out + runs[r].at) =
              *(const gemm_uvec*)(runs[r].from + c * runs[r].plane + i * a.dilation[0] * runs[r].row + at);
      }
}

// Units [u, u1) of a finished tile to the epilogue, one call per image.
static void conv_finish(const Conv2d& a, const ConvUnits& units, i64 u, i64 u1, i64 row, i64 rows, float* C,
                        i64 ldc) {
  while (u < u1) {
    const i64 image = units.image(u), next = (image + 1) * units.per_image, last = next < u1 ? next : u1;
    const i64 cols = units.pixel(last - 1) + units.lanes(last - 1) - units.pixel(u);
    a.epilogue(a.context, image, row, units.pixel(u), rows, cols, C, ldc);
    C += (last - u) * GEMM_LANES;
    u = last;
  }
}

static void conv_part(const Conv2d& a, const ConvUnits& units, i64 u0, i64 u1) {
  static thread_local GemmScratch scratch, padded;
  const i64 K = a.channels * a.kh * a.kw, M = a.out_channels;
  const i64 image0 = units.image(u0), images = units.image(u1 - 1) - image0 + 1;
  ConvRows* rows = (ConvRows*)__builtin_alloca(images * sizeof(ConvRows));
  i64 total = 0;
  for (i64 i = 0; i < images; i++) {
    const i64 first = i == 0 ? units.pixel(u0) : 0;
    const i64 last = i == images - 1 ? units.pixel(u1 - 1) + units.lanes(u1 - 1) : units.pixels;
    rows[i] = conv_rows(a, first, last);
    total += rows[i].plane * a.channels;
  }
  float* data = padded.get(total + GEMM_LANES);
  for (i64 i = 0; i < images; i++) {
    rows[i].data = data;
    conv_copy_rows(a, a.x + (image0 + i) * a.xs[0], rows[i]);
    data += rows[i].plane * a.channels;
  }
  const i64 panels = (u1 - u0 + GEMM_NV - 1) / GEMM_NV, mr = gemm_row_block(M), ldc = GEMM_TILE * GEMM_NR;
  i64 group = 98304 / (K * GEMM_NR + 1);
  group = group < 1 ? 1 : group > panels ? panels : group;
  float* C = scratch.get(GEMM_MR * ldc + group * K * GEMM_NR + GEMM_NR);
  float* Bp = C + GEMM_MR * ldc;
  for (i64 g = 0; g < panels; g += group) {
    const i64 ge = g + group < panels ? g + group : panels;
    for (i64 p = g; p < ge; p++)
      conv_pack_panel(a, units, u0 + p * GEMM_NV, u1, rows, image0, Bp + (p - g) * K * GEMM_NR);
    for (i64 row = 0; row < M; row += mr) {
      const int m = (int)(M - row < mr ? M - row : mr);
      for (i64 p = g; p < ge; p += GEMM_TILE) {
        const i64 n = ge - p < GEMM_TILE ? ge - p : GEMM_TILE, v0 = u0 + p * GEMM_NV, v1 = v0 + n * GEMM_NV;
        gemm_block(m, a.w + row * K, K, 1, Bp + (p - g) * K * GEMM_NR, K, n, C, ldc);
        conv_finish(a, units, v0, v1 < u1 ? v1 : u1, row, m, C, ldc);
      }
    }
  }
}

static inline void conv2d(const Conv2d& a, int threads) {
  const i64 pixels = a.out_height * a.out_width;
  const ConvUnits units{(pixels + GEMM_LANES - 1) / GEMM_LANES, pixels};
  const i64 all = a.batch * units.per_image;
  if (all * a.out_channels == 0) return;
  if (a.batch * pixels * a.out_channels * a.channels * a.kh * a.kw < 32768) threads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < threads; t++) {
    const i64 u0 = all * t / threads, u1 = all * (t + 1) / threads;
    if (u0 < u1) conv_part(a, units, u0, u1);
  }
}

}  // namespace mc
