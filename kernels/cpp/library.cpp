// The kernel library: what is too large to compile with every graph, built once per instruction set when
// the package is installed. Emitted code calls these by function pointer.
#include "attention.h"
#include "conv.h"
#include "gemm.h"

extern "C" {
__attribute__((visibility("default"))) void mc_gemm(const mc::Gemm* g, int threads) {
  mc::gemm(*g, threads);
}
__attribute__((visibility("default"))) void mc_conv2d(const mc::Conv2d* c, int threads) {
  mc::conv2d(*c, threads);
}
__attribute__((visibility("default"))) void mc_attention(const mc::Attention* a, int threads) {
  mc::attention(*a, threads);
}
}
