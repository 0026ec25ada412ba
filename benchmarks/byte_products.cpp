// The most products of bytes a second: independent chains of what kernels/cpu/dot.hpp multiplies with, and nothing else. Several
// threads each run the same.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(IC_AVX512)
#define PRODUCT "vpdpbusd %%zmm0, %%zmm1, %%zmm\\sum\n\t"
constexpr int PRODUCTS = 64;
#else
#define PRODUCT "vpmaddubsw %%ymm0, %%ymm1, %%ymm15\n\tvpaddw %%ymm15, %%ymm\\sum, %%ymm\\sum\n\t"
constexpr int PRODUCTS = 32;
#endif
#define CLOBBERED "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm15"
constexpr int CHAINS = 12;
constexpr long ROUNDS = 1 << 22;

static double run() {
  const auto began = std::chrono::steady_clock::now();
  for (long i = 0; i < ROUNDS; ++i) asm volatile(".irp sum,2,3,4,5,6,7,8,9,10,11,12,13\n\t" PRODUCT ".endr" : : : CLOBBERED);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  return double(PRODUCTS) * CHAINS * ROUNDS / took.count();
}

int main(int, char** arguments) {
  const int count = std::atoi(arguments[1]);
  std::vector<double> rates(count);
  std::vector<std::thread> threads;
  for (double& rate : rates)
    threads.emplace_back([&rate] {
      for (int i = 0; i < 20; ++i) rate = std::max(rate, run());
    });
  for (auto& thread : threads) thread.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  std::printf("%.1f\n", total / 1e9);
}
