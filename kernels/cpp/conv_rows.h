// Rows of an image, copied with their padding for convolutions: columns split by phase (column modulo the
// stride), so that one window element of neighbouring pixels is a run of floats whatever the stride.
#pragma once
#include "gemm.h"

namespace mc {

// The padded copy of the rows of one image that some of its pixels need.
struct ConvRows {
  float* data;
  i64 row0, rows;          // first row (of the padded image) and how many
  i64 phase, row, plane;   // strides of phase, row and channel
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

// Whether any of `taps` windows elements lies at place `at`, which is counted modulo the stride.
static inline bool conv_reads(i64 at, i64 taps, i64 dilation, i64 stride) {
  for (i64 t = 0; t < taps && t < stride; t++)
    if ((at - t * dilation) % stride == 0) return true;
  return false;
}

// One phase of a row: to[q] = from[q * step] where lo <= q < hi, else 0, for q < n. Whole vectors: what they
// write past n is the beginning of what is copied next.
static inline void conv_copy_run(const float* from, i64 step, i64 lo, i64 hi, i64 n, float* to) {
  typedef vec<i32, GEMM_LANES> lanes;
  for (i64 q = 0; q < n; q += GEMM_LANES) {
    const float* p = from + q * step;
    gemm_vec v;
    if (q >= lo && q + GEMM_LANES <= hi && step == 1) v = *(const gemm_uvec*)p;
    else if (q >= lo && q + GEMM_LANES <= hi && step == 2) v = load_even<GEMM_LANES>(Each{}, p, Full{});
    else {
      const lanes at = ramp<i32, GEMM_LANES>(i32(q));
      const lanes in = (at >= i32(lo)) & (at < i32(hi));
      if (step == 1) v = load_if<GEMM_LANES>(in, p, Full{});
      else if (step == 2) v = load_even<GEMM_LANES>(in, p, Full{});
      else v = gather_if<GEMM_LANES, float>(in, [&](int l) { return p + l * step; }, Full{});
    }
    *(gemm_uvec*)(to + q) = v;
  }
}

// The rows of all channels at x, in ascending places: up to a vector behind the last one is written.
static __attribute__((noinline)) void conv_copy_rows(const Conv2d& a, const float* x, const ConvRows& r) {
  const i64 s = a.stride[1], step = s * a.xs[3];
  struct Phase {
    bool read;
    i64 first, lo, hi;
  }* phases = (Phase*)__builtin_alloca(s * sizeof(Phase));
  for (i64 f = 0; f < s; f++) {  // its place q holds the padded column q * s + f
    const i64 first = f - a.pad[1];
    const i64 lo = first < 0 ? (-first + s - 1) / s : 0, hi = first >= a.width ? 0 : (a.width - 1 - first) / s + 1;
    phases[f] = {conv_reads(f, a.kw, a.dilation[1], s), first * a.xs[3], lo < r.phase ? lo : r.phase,
                 hi < r.phase ? hi : r.phase};
  }
  for (i64 c = 0; c < a.channels; c++)
    for (i64 i = 0; i < r.rows; i++) {
      if (a.stride[0] > 1 && !conv_reads(i, a.kh, a.dilation[0], a.stride[0])) continue;
      float* to = r.data + c * r.plane + i * r.row;
      const i64 row = r.row0 + i - a.pad[0];
      const bool outside = row < 0 || row >= a.height;
      const float* from = x + c * a.xs[1] + (outside ? 0 : row) * a.xs[2];
      for (i64 f = 0; f < s; f++, to += r.phase)
        if (phases[f].read)
          conv_copy_run(from + phases[f].first, step, phases[f].lo, outside ? 0 : phases[f].hi, r.phase, to);
    }
}

// Where the elements of a window over some channels lie in the copied rows.
static inline void conv_places(const Conv2d& a, const ConvRows& r, i64 channels, i64* places) {
  for (i64 c = 0; c < channels; c++)
    for (i64 i = 0; i < a.kh; i++)
      for (i64 l = 0; l < a.kw; l++)
        *places++ = c * r.plane + i * a.dilation[0] * r.row + (l * a.dilation[1]) % a.stride[1] * r.phase +
                    (l * a.dilation[1]) / a.stride[1];
}

}  // namespace mc
