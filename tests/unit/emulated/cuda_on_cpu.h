// Runs CUDA kernels as plain loops, one thread after the other: enough for kernels without shared memory and barriers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

using std::exp;
using std::expm1;
using std::fabs;
using std::log1p;
using std::max;
using std::min;
using std::tanh;

#define __launch_bounds__(...)

inline uint3 blockIdx, threadIdx;
inline dim3 gridDim, blockDim;

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

#define GANOPS_LAUNCH(kernel, grid, block, stream, ...)                             \
    do {                                                                            \
        (void)(stream);                                                             \
        gridDim = grid;                                                             \
        blockDim = block;                                                           \
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)                  \
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)              \
                for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)      \
                    kernel(__VA_ARGS__);                                            \
    } while (false)
