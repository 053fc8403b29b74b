// What all kernels share: numbers in memory and in registers, packs of 16 bytes, division by a constant, launching.
// No torch header is included here or in the kernels: they compile in seconds, and on a CPU with
// tests/unit/emulated/cuda_on_cpu.h.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef GANOPS_LAUNCH
#include <cuda_runtime.h>
#define GANOPS_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

namespace ganops {

#ifndef GANOPS_MAX_ELEMENTS
#define GANOPS_MAX_ELEMENTS (int64_t(1) << 31)
#endif
constexpr int64_t kMaxElements = GANOPS_MAX_ELEMENTS;  // of one launch: indices are 32 bits, larger tensors go in parts

// Numbers are computed in float, doubles in double.
template <typename T>
struct Math {
    using type = float;
};
template <>
struct Math<double> {
    using type = double;
};

__host__ __device__ __forceinline__ double to_math(double x) { return x; }
__host__ __device__ __forceinline__ float to_math(float x) { return x; }
__host__ __device__ __forceinline__ float to_math(__half x) { return __half2float(x); }
__host__ __device__ __forceinline__ float to_math(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__host__ __device__ __forceinline__ T from_math(typename Math<T>::type x);
template <>
__host__ __device__ __forceinline__ double from_math<double>(double x) { return x; }
template <>
__host__ __device__ __forceinline__ float from_math<float>(float x) { return x; }
template <>
__host__ __device__ __forceinline__ __half from_math<__half>(float x) { return __float2half_rn(x); }
template <>
__host__ __device__ __forceinline__ __nv_bfloat16 from_math<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// V consecutive numbers, moved by one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T values[V];
};

template <typename T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* from) {
    return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <typename T, int V>
__device__ __forceinline__ void store(T* to, const Pack<T, V>& pack) {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// The numbers of a pack as those that are computed with, and back.
template <typename T, int V>
__device__ __forceinline__ void unpack(const Pack<T, V>& pack, typename Math<T>::type (&values)[V]) {
#pragma unroll
    for (int k = 0; k < V; ++k) values[k] = to_math(pack.values[k]);
}

__host__ __device__ __forceinline__ __half2 round_pair(__half, float a, float b) { return __floats2half2_rn(a, b); }
__host__ __device__ __forceinline__ __nv_bfloat162 round_pair(__nv_bfloat16, float a, float b) {
    return __floats2bfloat162_rn(a, b);
}

template <typename T, int V>
__device__ __forceinline__ Pack<T, V> round_pack(const typename Math<T>::type (&values)[V]) {
    Pack<T, V> pack;
    if constexpr (sizeof(T) == 2 && V > 1) {  // one instruction for two
#pragma unroll
        for (int k = 0; k < V; k += 2) {
            const auto pair = round_pair(T(), values[k], values[k + 1]);
            pack.values[k] = pair.x;
            pack.values[k + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int k = 0; k < V; ++k) pack.values[k] = from_math<T>(values[k]);
    }
    return pack;
}

// Whether a pointer may be read 16 bytes at a time; null pointers are not read.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Division of numbers below 2^31 by a constant, without a division: Granlund and Montgomery 1994, figure 4.1.
struct Divisor {
    uint32_t value = 1, multiplier = 1, shift = 0;

    Divisor() = default;
    explicit Divisor(int64_t divisor) : value(uint32_t(divisor)) {
        while ((uint64_t(1) << shift) < value) ++shift;
        multiplier = uint32_t((((uint64_t(1) << shift) - value) << 32) / value + 1);
    }
    __device__ __forceinline__ uint32_t divide(uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ganops
