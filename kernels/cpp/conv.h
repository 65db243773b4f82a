// 2-d convolution, float32, NCHW in and out, with a fused epilogue, as a matrix product: weights [OC,
// C*KH*KW] times the input's windows [C*KH*KW, pixels].
//
// Takes the input by strides and a dense weight, in the caller's own memory. The right operand never exists
// as a whole: the panels gemm.h packs anyway are filled from the input. Each task first copies the rows it
// needs with their padding, columns split by phase (column modulo the stride), which makes every run of
// window elements contiguous whatever the stride; that copy costs 1/(OC*KH*KW) of the arithmetic and
// filling the panels 2/OC. Pixels go in vectors that never span two images, and two vectors of any images
// make a panel, so tiny images waste no lanes. Gives each finished vector to `epi(image, out_channel,
// pixel, vec, lanes)`, pixel = oh * OW + ow.
#pragma once
#include "gemm.h"

namespace mc {

struct Conv2d {
  int64_t batch, channels, height, width, out_channels, out_height, out_width, kh, kw;
  int64_t stride[2], pad[2], dilation[2];
  const float *x, *w;
  int64_t xs[4];  // strides of x over (image, channel, row, column)
};

// The padded copy of the rows of one image that some of its pixels need.
struct ConvRows {
  float* data;
  int64_t row0, rows, phase, row,
      plane;  // first row (of the padded image), and strides of phase, row and channel
};

static inline ConvRows conv_rows(const Conv2d& a, int64_t pixel0, int64_t pixel1) {
  const int64_t oh0 = pixel0 / a.out_width, oh1 = (pixel1 - 1) / a.out_width;
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
  const int64_t s = a.stride[1];
  for (int64_t c = 0; c < a.channels; c++)
    for (int64_t i = 0; i < r.rows; i++) {
      float* to = r.data + c * r.plane + i * r.row;
      const int64_t row = r.row0 + i - a.pad[0];
      if (row < 0 || row >= a.height) {
        memset(to, 0, r.row * sizeof(float));
        continue;
      }
      const float* from = x + c * a.xs[1] + row * a.xs[2];
      for (int64_t f = 0; f < s; f++, to += r.phase) {  // to[q] = padded column q * s + f
        const int64_t first = f - a.pad[1];
        int64_t lo = first < 0 ? (-first + s - 1) / s : 0;
        int64_t hi = first >= a.width ? 0 : (a.width - 1 - first) / s + 1;
        if (hi > r.phase) hi = r.phase;
        if (lo > hi) lo = hi;
        for (int64_t q = 0; q < lo; q++) to[q] = 0;
        if (s * a.xs[3] == 1) {
          memcpy(to + lo, from + lo + first, (hi - lo) * sizeof(float));
        } else {
          for (int64_t q = lo; q < hi; q++) to[q] = from[(q * s + first) * a.xs[3]];
        }
        for (int64_t q = hi; q < r.phase; q++) to[q] = 0;
      }
    }
}

// Vectors of pixels [u0, u1): which image and pixels unit u is.
struct ConvUnits {
  int64_t per_image, pixels;
  int64_t image(int64_t u) const { return u / per_image; }
  int64_t pixel(int64_t u) const { return u % per_image * GEMM_LANES; }
  int64_t lanes(int64_t u) const { return pixels - pixel(u) < GEMM_LANES ? pixels - pixel(u) : GEMM_LANES; }
};

// One panel: out[k][v * LANES + j] = window element k of pixel j of unit u + v.
static __attribute__((noinline)) void conv_pack_panel(const Conv2d& a, const ConvUnits& units, int64_t u,
                                                      int64_t u1, const ConvRows* rows, int64_t image0,
                                                      float* out) {
  struct Run {
    const float* from;
    int64_t at, plane, row;
  };  // pixels of the panel that lie in one output row
  Run runs[GEMM_NR];
  int nruns = 0;
  for (int v = 0; v < GEMM_NV && u + v < u1; v++) {
    const ConvRows& r = rows[units.image(u + v) - image0];
    const int64_t p0 = units.pixel(u + v), n = units.lanes(u + v);
    for (int64_t j = 0; j < n;) {
      const int64_t oh = (p0 + j) / a.out_width, ow = (p0 + j) % a.out_width;
      runs[nruns++] =
          Run{r.data + (oh * a.stride[0] - r.row0) * r.row + ow, v * GEMM_LANES + j, r.plane, r.row};
      j += a.out_width - ow;
    }
  }
  const int64_t phase = rows[0].phase;
  for (int64_t c = 0; c < a.channels; c++)
    for (int64_t i = 0; i < a.kh; i++)
      for (int64_t l = 0; l < a.kw; l++, out += GEMM_NR) {
        const int64_t at = (l * a.dilation[1]) % a.stride[1] * phase + (l * a.dilation[1]) / a.stride[1];
        // Whole vectors: what a run writes past its end, the next run or the next k overwrites.
        for (int r = 0; r < nruns; r++)
          *(gemm_uvec*)(out + runs[r].at) =
              *(const gemm_uvec*)(runs[r].from + c * runs[r].plane + i * a.dilation[0] * runs[r].row + at);
      }
}

template <class Epi>
static void conv_part(const Conv2d& a, const ConvUnits& units, int64_t u0, int64_t u1, Epi& epi) {
  static thread_local GemmScratch scratch, padded;
  const int64_t K = a.channels * a.kh * a.kw, M = a.out_channels;
  const int64_t image0 = units.image(u0), images = units.image(u1 - 1) - image0 + 1;
  ConvRows* rows = (ConvRows*)__builtin_alloca(images * sizeof(ConvRows));
  int64_t total = 0;
  for (int64_t i = 0; i < images; i++) {
    const int64_t first = i == 0 ? units.pixel(u0) : 0;
    const int64_t last = i == images - 1 ? units.pixel(u1 - 1) + units.lanes(u1 - 1) : units.pixels;
    rows[i] = conv_rows(a, first, last);
    total += rows[i].plane * a.channels;
  }
  float* data = padded.get(total + GEMM_LANES);
  for (int64_t i = 0; i < images; i++) {
    rows[i].data = data;
    conv_copy_rows(a, a.x + (image0 + i) * a.xs[0], rows[i]);
    data += rows[i].plane * a.channels;
  }
  const int64_t panels = (u1 - u0 + GEMM_NV - 1) / GEMM_NV;
  const int64_t blocks = (M + GEMM_MR - 1) / GEMM_MR, mr = (M + blocks - 1) / blocks;
  int64_t group = 98304 / (K * GEMM_NR + 1);
  group = group < 1 ? 1 : group > panels ? panels : group;
  float* Bp = scratch.get(group * K * GEMM_NR + GEMM_NR);
  auto inner = [&](int64_t row, int64_t col, gemm_vec v, int) {
    const int64_t u = u0 + col / GEMM_LANES;
    epi(units.image(u), row, units.pixel(u), v, (int)units.lanes(u));
  };
  for (int64_t g = 0; g < panels; g += group) {
    const int64_t ge = g + group < panels ? g + group : panels;
    for (int64_t p = g; p < ge; p++)
      conv_pack_panel(a, units, u0 + p * GEMM_NV, u1, rows, image0, Bp + (p - g) * K * GEMM_NR);
    for (int64_t row = 0; row < M; row += mr) {
      const int m = (int)(M - row < mr ? M - row : mr);
      gemm_dispatch<GEMM_MR>(m, a.w + row * K, K, 1, Bp, K, row, g, ge, (u1 - u0) * GEMM_LANES, inner);
    }
  }
}

// epi(image, out_channel, pixel, gemm_vec value, int lanes), once per vector, in no particular order, from
// several threads.
template <class Epi>
void conv2d(const Conv2d& a, Epi epi, int nthreads) {
  const int64_t pixels = a.out_height * a.out_width;
  const ConvUnits units{(pixels + GEMM_LANES - 1) / GEMM_LANES, pixels};
  const int64_t all = a.batch * units.per_image;
  if (all * a.out_channels == 0) return;
  if (a.batch * pixels * a.out_channels * a.channels * a.kh * a.kw < 32768) nthreads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(nthreads) if (nthreads > 1)
  for (int64_t t = 0; t < nthreads; t++) {
    const int64_t u0 = all * t / nthreads, u1 = all * (t + 1) / nthreads;
    if (u0 < u1) conv_part(a, units, u0, u1, epi);
  }
}

}  // namespace mc
