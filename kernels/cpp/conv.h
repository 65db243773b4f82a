// 2-d convolution, float32, as a matrix product: weights [OC, C*KH*KW] times the input's
// windows [C*KH*KW, pixels].
//
// Takes the input by strides and a dense weight, in the caller's own memory. The right operand never exists
// as a whole. Each chunk of pixels first copies the rows it needs with their padding, columns split by phase
// (column modulo the stride), which makes every run of window elements contiguous whatever the stride.
// Pixels go in vectors that never span two images, and two vectors of any images make a panel, so tiny
// images waste no lanes. A panel whose two vectors each lie in one row is read in place, by one table of
// offsets for all panels; others are packed for gemm.h's micro-kernel. Gives finished pixels to a gemm.h
// epilogue: batch = image, rows = output channels, columns = pixels oh * OW + ow. Where channels come last,
// they are turned while in cache: rows of the input as they are copied, tiles of the result as they are done.
#pragma once
#include "depthwise.h"

namespace mc {

constexpr i64 CONV_DEPTH = 512;   // of the sum at a time: see GEMM_DEPTH
constexpr i64 CONV_COPY = 65536;  // floats of the input that are copied at a time

// Vectors of pixels [u0, u1): which image and pixels unit u is.
struct ConvUnits {
  i64 per_image, pixels;
  i64 image(i64 u) const { return u / per_image; }
  i64 pixel(i64 u) const { return u % per_image * GEMM_LANES; }
  i64 lanes(i64 u) const { return pixels - pixel(u) < GEMM_LANES ? pixels - pixel(u) : GEMM_LANES; }
};

// The elements of a panel that lie side by side in memory: they are the panel's from column `at` on.
struct ConvRun {
  const float* from;
  i64 at;
};

// Finds the runs of the panel that begins with unit u.
static inline int conv_runs(const Conv2d& a, const ConvUnits& units, i64 u, i64 u1, const ConvRows* rows,
                            i64 image0, ConvRun* runs) {
  int count = 0;
  for (int v = 0; v < GEMM_NV && u + v < u1; v++) {
    const ConvRows& r = rows[units.image(u + v) - image0];
    const i64 p0 = units.pixel(u + v), n = units.lanes(u + v);
    for (i64 j = 0; j < n;) {
      const i64 oh = (p0 + j) / a.out_width, ow = (p0 + j) % a.out_width;
      runs[count++] = ConvRun{r.data + (oh * a.stride[0] - r.row0) * r.row + ow, v * GEMM_LANES + j};
      j += a.out_width - ow;
    }
  }
  if (count == 1) runs[count++] = ConvRun{runs[0].from, GEMM_LANES};
  return count;
}

// A panel that is more than two whole vectors, copied: out[k][j] = window element k of pixel j.
static __attribute__((noinline)) void conv_pack_panel(const ConvRun* runs, int count, const i64* places,
                                                      i64 K, float* out) {
  for (i64 k = 0; k < K; k++, out += GEMM_NR)
    // Whole vectors: what a run writes past its end, the next run or the next k overwrites.
    for (int r = 0; r < count; r++)
      *(gemm_uvec*)(out + runs[r].at) = *(const gemm_uvec*)(runs[r].from + places[k]);
}

// As gemm_rows, with the two vectors of a panel read where they lie.
template <int MR>
static __attribute__((noinline)) void conv_tile(const float* A, i64 ra, const float* x0, const float* x1,
                                                const i64* places, i64 K, float* C, i64 ldc, bool more) {
  gemm_vec acc[MR][2];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++)
      acc[i][v] = more ? gemm_vec(*(const gemm_uvec*)(C + i * ldc + v * GEMM_LANES)) : gemm_vec{};
  for (i64 k = 0; k < K; k++) {
    const gemm_vec b0 = *(const gemm_uvec*)(x0 + places[k]), b1 = *(const gemm_uvec*)(x1 + places[k]);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const gemm_vec w = splat<float, GEMM_LANES>(A[i * ra + k]);
      acc[i][0] = fma(w, b0, acc[i][0]);
      acc[i][1] = fma(w, b1, acc[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) *(gemm_uvec*)(C + i * ldc + v * GEMM_LANES) = acc[i][v];
}

template <int MR = GEMM_MR>
static inline void conv_block(int m, const float* A, i64 ra, const ConvRun* two, const i64* places, i64 K,
                              float* C, i64 ldc, bool more) {
  if (m == MR) return conv_tile<MR>(A, ra, two[0].from, two[1].from, places, K, C, ldc, more);
  if constexpr (MR > 1) conv_block<MR - 1>(m, A, ra, two, places, K, C, ldc, more);
}

// Units [u, u1) of a finished tile to the epilogue, one call per image.
static void conv_finish(const Conv2d& a, const ConvUnits& units, i64 u, i64 u1, i64 row, i64 rows, float* C,
                        i64 ldc, float* turned) {
  while (u < u1) {
    const i64 image = units.image(u), next = (image + 1) * units.per_image, last = next < u1 ? next : u1;
    const i64 cols = units.pixel(last - 1) + units.lanes(last - 1) - units.pixel(u);
    if (a.last) {
      conv_turn(C, rows, cols, ldc, turned);
      a.epilogue(a.context, image, units.pixel(u), a.first + row, cols, rows, turned, CONV_TURN);
    } else {
      a.epilogue(a.context, image, a.first + row, units.pixel(u), rows, cols, C, ldc);
    }
    C += (last - u) * GEMM_LANES;
    u = last;
  }
}

// The rows that units [u0, u1) need, copied: one ConvRows for each image.
static ConvRows* conv_copy(const Conv2d& a, const ConvUnits& units, i64 u0, i64 u1, ConvRows* rows) {
  static thread_local GemmScratch padded;
  const i64 image0 = units.image(u0), images = units.image(u1 - 1) - image0 + 1;
  i64 plane = 0;
  for (i64 i = 0; i < images; i++) {
    const i64 first = i == 0 ? units.pixel(u0) : 0;
    const i64 last = i == images - 1 ? units.pixel(u1 - 1) + units.lanes(u1 - 1) : units.pixels;
    rows[i] = conv_rows(a, first, last);
    if (rows[i].plane > plane) plane = rows[i].plane;
  }
  float* data = padded.get(images * plane * a.channels + 2 * GEMM_LANES);
  for (i64 i = 0; i < images; i++) {
    rows[i].plane = plane;
    rows[i].data = data + i * plane * a.channels;
    conv_copy_rows(a, a.x + (image0 + i) * a.xs[0], rows[i]);
  }
  return rows;
}

// Units [u0, u1): few enough that the copy of their rows stays in the cache.
static void conv_chunk(const Conv2d& a, const ConvUnits& units, i64 u0, i64 u1) {
  static thread_local GemmScratch scratch;
  const i64 taps = a.kh * a.kw, K = a.channels * taps, M = a.out_channels, image0 = units.image(u0);
  const i64 images = units.image(u1 - 1) - image0 + 1;
  const ConvRows* rows =
      conv_copy(a, units, u0, u1, (ConvRows*)__builtin_alloca(images * sizeof(ConvRows)));
  // as in gemm_part: some of the window at a time, sums of the rest kept
  const i64 parts = (K + CONV_DEPTH - 1) / CONV_DEPTH, depth = (K + parts - 1) / parts;
  const i64 panels = (u1 - u0 + GEMM_NV - 1) / GEMM_NV;
  i64 group = GEMM_PANELS / (depth * GEMM_NR + 1);
  group = group < 1 ? 1 : group > panels ? panels : group;
  const bool split = parts > 1;
  const i64 ldc = (split ? group : GEMM_TILE) * GEMM_NR, sums = (split ? M : CONV_TURN) * ldc;
  const i64 tile = a.last ? GEMM_TILE * GEMM_NR * CONV_TURN + GEMM_LANES : 0;
  float* C = scratch.get(sums + tile + group * depth * GEMM_NR + GEMM_NR + 2 * K);
  float *turned = C + sums, *Bp = turned + tile;
  i64* places = (i64*)(Bp + (group * depth + 1) * GEMM_NR);
  conv_places(a, rows[0], places);
  ConvRun* two = (ConvRun*)__builtin_alloca(group * 2 * sizeof(ConvRun));  // of panels read in place
  for (i64 g = 0; g < panels; g += group) {
    const i64 ge = g + group < panels ? g + group : panels;
    for (i64 k0 = 0; k0 < K; k0 += depth) {
      const i64 k = K - k0 < depth ? K - k0 : depth;
      for (i64 p = g; p < ge; p++) {
        ConvRun runs[GEMM_NR];
        const int count = conv_runs(a, units, u0 + p * GEMM_NV, u1, rows, image0, runs);
        const bool whole = count == 2 && runs[1].at == GEMM_LANES;
        two[2 * (p - g)] = whole ? runs[0] : ConvRun{nullptr, 0};
        two[2 * (p - g) + 1] = runs[1];
        if (!whole) conv_pack_panel(runs, count, places + k0, k, Bp + (p - g) * k * GEMM_NR);
      }
      for (i64 row = 0, many; row < M; row += many) {
        many = !a.last ? gemm_next(M - row) : M - row < CONV_TURN ? M - row : CONV_TURN;
        for (i64 p = g; p < ge; p += GEMM_TILE) {
          const i64 n = ge - p < GEMM_TILE ? ge - p : GEMM_TILE;
          const i64 v0 = u0 + p * GEMM_NV, v1 = v0 + n * GEMM_NV;
          float* to = split ? C + row * ldc + (p - g) * GEMM_NR : C;
          for (i64 r = 0, m; r < many; r += m) {
            m = gemm_next(many - r);
            const float* w = a.w + (row + r) * K + k0;
            for (i64 q = p; q < p + n; q++) {
              float* sum = to + r * ldc + (q - p) * GEMM_NR;
              const ConvRun* both = two + 2 * (q - g);
              if (both->from) conv_block((int)m, w, K, both, places + k0, k, sum, ldc, k0 > 0);
              else gemm_block((int)m, w, K, 1, Bp + (q - g) * k * GEMM_NR, k, 1, sum, ldc, k0 > 0);
            }
          }
          if (k0 + k == K) conv_finish(a, units, v0, v1 < u1 ? v1 : u1, row, many, to, ldc, turned);
        }
      }
    }
  }
}

// How many units at a time: their rows are copied together, those at the edge twice.
static i64 conv_step(const Conv2d& a) {
  const ConvRows one = conv_rows(a, 0, 1);
  const i64 row = one.row * a.channels, edge = row * (one.rows - 1), unit = row * a.stride[0] * GEMM_LANES;
  i64 step = (CONV_COPY - edge) * a.out_width / (unit + 1);
  const i64 least = 2 * GEMM_TILE * GEMM_NV, twice = 4 * edge * a.out_width / (unit + 1);
  if (step < twice) step = twice;  // at most a quarter of them is copied twice
  return step < least ? least : step;
}

// The part of a convolution that is group number g.
static inline Conv2d conv_group(Conv2d a, i64 g) {
  a.x += g * a.channels * a.xs[1];
  a.first = g * a.out_channels;
  a.w += a.first * a.channels * a.kh * a.kw;
  return a;
}

static inline void conv2d(const Conv2d& a, int threads) {
  const i64 pixels = a.out_height * a.out_width;
  if (a.channels == 1 && a.groups > 1) return depthwise(a, threads);
  if (a.groups == 1 && a.kh * a.kw == 1 && a.stride[0] * a.stride[1] == 1 && a.pad[0] + a.pad[1] == 0 &&
      (a.xs[2] == a.width * a.xs[3] || a.height == 1)) {  // a product, just as it lies there
    if (a.last)
      return gemm({a.batch, pixels, a.out_channels, a.channels, a.x, a.w, a.xs[0], a.xs[3], a.xs[1], 0, 1,
                   a.channels, a.epilogue, a.context}, threads);
    return gemm({a.batch, a.out_channels, pixels, a.channels, a.w, a.x, 0, a.channels, 1, a.xs[0], a.xs[1],
                 a.xs[3], a.epilogue, a.context}, threads);
  }
  const ConvUnits units{(pixels + GEMM_LANES - 1) / GEMM_LANES, pixels};
  const i64 all = a.batch * units.per_image;
  if (all * a.out_channels == 0) return;
  if (a.batch * pixels * a.groups * a.out_channels * a.channels * a.kh * a.kw < 32768) threads = 1;
  const i64 step = conv_step(a);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < threads; t++)
    for (i64 g = 0; g < a.groups; g++)
      for (i64 u = all * t / threads, end = all * (t + 1) / threads; u < end; u += step)
        conv_chunk(conv_group(a, g), units, u, u + step < end ? u + step : end);
}

}  // namespace mc
