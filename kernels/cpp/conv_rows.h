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
  r.plane = r.row * r.rows + GEMM_LANES;
  return r;
}

// Whether any of `taps` windows elements lies at place `at`, which is counted modulo the stride.
static inline bool conv_reads(i64 at, i64 taps, i64 dilation, i64 stride) {
  for (i64 t = 0; t < taps && t < stride; t++)
    if ((at - t * dilation) % stride == 0) return true;
  return false;
}

// One phase of a row, in vectors: what of each exists.
struct ConvPhase {
  bool read;
  i64 first, lo, hi;  // its place q holds the row's element q * stride + first, if lo <= q < hi
};
typedef vec<i32, GEMM_LANES> conv_lanes;
typedef Evens<conv_lanes> ConvMask;

static inline ConvMask conv_mask(const ConvPhase& f, i64 q, i64 step) {
  const conv_lanes at = ramp<i32, GEMM_LANES>(i32(q)), in = (at >= i32(f.lo)) & (at < i32(f.hi));
  return step == 2 ? evens_where(in) : ConvMask{in, in};
}

// A phase of a row to `to`, n places. Whole vectors: what they write past the end is the beginning of what
// is copied next.
static inline void conv_copy_phase(const ConvPhase& f, const ConvMask* masks, const float* row, i64 step,
                                   i64 n, float* to) {
  const float* from = row + f.first;
  if constexpr (masked_loads<float, GEMM_LANES>) {
    if (step <= 2) {
      for (i64 q = 0; q < n; q += GEMM_LANES, masks++)
        *(gemm_uvec*)(to + q) = step == 2 ? load_evens<GEMM_LANES>(*masks, from + q * 2)
                                          : gemm_vec(load_if<GEMM_LANES>(masks->low, from + q, Full{}));
      return;
    }
  }
  for (i64 q = 0; q < n; q++) to[q] = q >= f.lo && q < f.hi ? from[q * step] : 0;
}

// The same where channels lie side by side: for a vector of pixels and channels each, turned in registers.
static inline void conv_copy_turned(const ConvPhase& f, const float* row, i64 step, i64 n, i64 channels,
                                    float* to, i64 plane) {
  const conv_lanes there = ramp<i32, GEMM_LANES>(0) < i32(channels);
  for (i64 q = 0; q < n; q += GEMM_LANES) {
    gemm_vec v[GEMM_LANES];
#pragma GCC unroll 16
    for (int l = 0; l < GEMM_LANES; l++) {
      const float* from = row + f.first + (q + l) * step;
      if (q + l < f.lo || q + l >= f.hi) v[l] = gemm_vec{};
      else if (channels >= GEMM_LANES) v[l] = *(const gemm_uvec*)from;
      else v[l] = load_if<GEMM_LANES>(there, from, Full{});
    }
    transpose(v);
#pragma GCC unroll 16
    for (int l = 0; l < GEMM_LANES; l++)
      if (l < channels) *(gemm_uvec*)(to + l * plane + q) = v[l];
  }
}

// The rows of all channels at x, in ascending places: up to a vector behind each channel is written.
static __attribute__((noinline)) void conv_copy_rows(const Conv2d& a, const float* x, const ConvRows& r) {
  const i64 s = a.stride[1], step = s * a.xs[3], vectors = (r.phase + GEMM_LANES - 1) / GEMM_LANES;
  ConvPhase* phases = (ConvPhase*)__builtin_alloca(s * sizeof(ConvPhase));
  ConvMask* masks = (ConvMask*)__builtin_alloca_with_align(s * vectors * sizeof(ConvMask), 512);
  for (i64 f = 0; f < s; f++) {
    const i64 first = f - a.pad[1], lo = first < 0 ? (-first + s - 1) / s : 0;
    const i64 hi = first >= a.width ? 0 : (a.width - 1 - first) / s + 1;
    phases[f] = {conv_reads(f, a.kw, a.dilation[1], s), first * a.xs[3], lo, hi};
    for (i64 v = 0; v < vectors; v++) masks[f * vectors + v] = conv_mask(phases[f], v * GEMM_LANES, step);
  }
  bool* reads = (bool*)__builtin_alloca(a.stride[0]);
  for (i64 i = 0; i < a.stride[0]; i++) reads[i] = conv_reads(i, a.kh, a.dilation[0], a.stride[0]);
  const i64 side = a.xs[1] == 1 && a.xs[3] != 1 ? GEMM_LANES : 1;  // channels at a time
  for (i64 c = 0; c < a.channels; c += side)
    for (i64 i = 0, at = 0; i < r.rows; i++, at = at + 1 < a.stride[0] ? at + 1 : 0) {
      if (!reads[at]) continue;
      float* to = r.data + c * r.plane + i * r.row;
      const i64 row = r.row0 + i - a.pad[0], many = a.channels - c < side ? a.channels - c : side;
      if (row < 0 || row >= a.height) {
        for (i64 k = 0; k < many; k++)
          for (i64 q = 0; q < r.row; q += GEMM_LANES) *(gemm_uvec*)(to + k * r.plane + q) = gemm_vec{};
        continue;
      }
      const float* from = x + c * a.xs[1] + row * a.xs[2];
      for (i64 f = 0; f < s; f++, to += r.phase) {
        if (!phases[f].read) continue;
        if (side > 1) conv_copy_turned(phases[f], from, step, r.phase, many, to, r.plane);
        else conv_copy_phase(phases[f], masks + f * vectors, from, step, r.phase, to);
      }
    }
}

// Where the elements of a window lie in the copied rows, in the weight's order.
static inline void conv_places(const Conv2d& a, const ConvRows& r, i64* places) {
  const i64 taps = a.kh * a.kw, each = a.w_last ? a.channels : 1, apart = a.w_last ? 1 : taps;
  for (i64 i = 0; i < a.kh; i++)
    for (i64 l = 0; l < a.kw; l++) {
      const i64 at = i * a.dilation[0] * r.row + (l * a.dilation[1]) % a.stride[1] * r.phase +
                     (l * a.dilation[1]) / a.stride[1];
      for (i64 c = 0; c < a.channels; c++) places[(i * a.kw + l) * each + c * apart] = c * r.plane + at;
    }
}

constexpr i64 CONV_TURN = 16;  // channels that are turned together into rows of the result

// rows [CONV_TURN, n], ld floats apart, to turned [n, CONV_TURN]; those that are not there become zeros.
static __attribute__((noinline)) void conv_turn(const float* rows, i64 many, i64 n, i64 ld, float* turned) {
  for (i64 r = 0; r < CONV_TURN; r += GEMM_LANES)
    for (i64 q = 0; q < n; q += GEMM_LANES) {
      gemm_vec v[GEMM_LANES];
#pragma GCC unroll 16
      for (int l = 0; l < GEMM_LANES; l++)
        v[l] = r + l < many ? gemm_vec(*(const gemm_uvec*)(rows + (r + l) * ld + q)) : gemm_vec{};
      transpose(v);
#pragma GCC unroll 16
      for (int l = 0; l < GEMM_LANES; l++) *(gemm_uvec*)(turned + (q + l) * CONV_TURN + r) = v[l];
    }
}

}  // namespace mc
