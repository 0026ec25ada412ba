// What a warp's instructions do, by name. Functions say what the PTX manual calls them.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int WARP = 32;
constexpr u32 EVERY = 0xffffffff;  // lanes

// Floats whose bits, as an integer, are those of MAGIC and the number itself: of whole numbers below 2^22.
constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23
constexpr int MAGIC_BITS = 0x4b400000;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Where this lane stands: rows lane / 4 and that plus 8 of a product, and which of the four lanes that hold them.
struct Lane {
  int row, part;
};

// Calls `act` with every number below COUNT, as a constant.
template <int COUNT, int I = 0, typename Act>
__device__ __forceinline__ void unrolled(Act&& act) {
  if constexpr (I < COUNT) {
    act.template operator()<I>();
    unrolled<COUNT, I + 1>(act);
  }
}

// COUNT words; those of all lanes begin at multiples of STEP.
template <int COUNT, int STEP = COUNT>
__device__ __forceinline__ void load(const u32* from, u32* to) {
  if constexpr (COUNT % 4 == 0 && STEP % 4 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  } else if constexpr (COUNT % 2 == 0 && STEP % 2 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(from + i);
      to[i] = two.x, to[i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = from[i];
  }
}

// The same of 1, 2 or 4 that nobody else reads: they do not push out of the nearest cache what others do.
template <int COUNT>
__device__ __forceinline__ void load_once(const u32* from, u32* to) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4);
  if constexpr (COUNT == 1) asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(*to) : "l"(from));
  if constexpr (COUNT == 2)
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
  if constexpr (COUNT == 4)
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "l"(from));
}

// Four bytes of `low` and `high`, by the nibbles of a selector.
__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 selector) {
  u32 found;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(found) : "r"(low), "r"(high), "r"(selector));
  return found;
}

__device__ __forceinline__ u32 permute(u64 table, u32 selector) { return permute(u32(table), u32(table >> 32), selector); }

// Bits of `a` where those of `mask` are set, else of `b`.
__device__ __forceinline__ u32 select(u32 mask, u32 a, u32 b) { return (a & mask) | (b & ~mask); }

__device__ __forceinline__ float exp2_of(float x) {
  float found;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}
__device__ __forceinline__ float log2_of(float x) {
  float found;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}
__device__ __forceinline__ float inverse(float x) {
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}

// The halves of a word of two float16.
__device__ __forceinline__ void from_halves(u32 word, float& low, float& high) {
  asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}" : "=f"(low), "=f"(high) : "r"(word));
}
// Two bfloat16 in a word.
__device__ __forceinline__ u32 to_bf16(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// a b + c: 16 rows of 32 bytes, and 8 columns of as many. A lane holds rows lane / 4 and that plus 8, of c columns 2 (lane % 4)
// and the next; of the sum's indices, in each of the words a[0] and b0, a[2] and b1, four of its own. Without `b1` there are 16.
struct alignas(16) Sums32 {
  int of[4];
};

#define MULTIPLY(A, B)                                                                                                          \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." A "." B ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" \
      : "=r"(d.of[0]), "=r"(d.of[1]), "=r"(d.of[2]), "=r"(d.of[3])                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c.of[0]), "r"(c.of[1]), "r"(c.of[2]), "r"(c.of[3]))
#define MULTIPLY_HALF(A, B)                                                                                            \
  asm("mma.sync.aligned.m16n8k16.row.col.s32." A "." B ".s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};" \
      : "=r"(d.of[0]), "=r"(d.of[1]), "=r"(d.of[2]), "=r"(d.of[3])                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(c.of[0]), "r"(c.of[1]), "r"(c.of[2]), "r"(c.of[3]))

enum class Bytes { SIGNED, UNSIGNED };

template <Bytes A, Bytes B>
__device__ __forceinline__ Sums32 multiply(const u32 (&a)[4], u32 b0, u32 b1, const Sums32& c) {
  Sums32 d;
  if constexpr (A == Bytes::SIGNED && B == Bytes::SIGNED) MULTIPLY("s8", "s8");
  if constexpr (A == Bytes::SIGNED && B == Bytes::UNSIGNED) MULTIPLY("s8", "u8");
  if constexpr (A == Bytes::UNSIGNED && B == Bytes::SIGNED) MULTIPLY("u8", "s8");
  if constexpr (A == Bytes::UNSIGNED && B == Bytes::UNSIGNED) MULTIPLY("u8", "u8");
  return d;
}
template <Bytes A, Bytes B>
__device__ __forceinline__ Sums32 multiply(const u32 (&a)[4], u32 b0, const Sums32& c) {
  static_assert(A == Bytes::SIGNED, "only columns of keys come in sixteens");
  Sums32 d;
  if constexpr (B == Bytes::SIGNED) MULTIPLY_HALF("s8", "s8");
  if constexpr (B == Bytes::UNSIGNED) MULTIPLY_HALF("s8", "u8");
  return d;
}
#undef MULTIPLY
#undef MULTIPLY_HALF

// c += a b, of 16 bfloat16, two to a word.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exchanged(float x, int lanes) { return __shfl_xor_sync(EVERY, x, lanes); }
// Over the four lanes that hold a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, exchanged(x, 1));
  return fmaxf(x, exchanged(x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += exchanged(x, 1);
  return x + exchanged(x, 2);
}

// 16 bytes to shared memory, without waiting for them; copies are counted in groups.
__device__ __forceinline__ void copy_ahead(u32* to, const u32* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(u32(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Until all groups of this lane but the last PENDING are here.
template <int PENDING>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}
