// The little of torch that the ops need, through its stable ABI: one binary for torch 2.11 and all later ones.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <optional>

namespace ganops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& x) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "ganops::", op, ": ", cudaGetErrorString(error));
}

// Whether [N, C, H, W] stands in memory as [N, H, W, C]; where both orders are the same, it counts as [N, C, H, W].
inline bool is_channels_last(const Tensor& x) {
    if (x.dim() != 4 || x.is_contiguous()) return false;
    int64_t expected = 1;
    for (const int axis : {1, 3, 2, 0}) {
        if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
        expected *= x.size(axis);
    }
    return true;
}

inline Tensor empty_image(const Tensor& like, const std::array<int64_t, 4>& sizes, bool channels_last) {
    const int64_t C = sizes[1], H = sizes[2], W = sizes[3];
    const std::array<int64_t, 4> strides = channels_last ? std::array<int64_t, 4>{H * W * C, 1, W * C, C}
                                                         : std::array<int64_t, 4>{C * H * W, H * W, W, 1};
    int32_t dtype, device;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        4, sizes.data(), strides.data(), dtype, device, like.get_device_index(), &handle));
    return Tensor(handle);
}

}  // namespace ganops

// Calls `function<T>(...)` with T the type of x's numbers.
#define GANOPS_DISPATCH(op, x, T, ...)                                                                      \
    switch ((x).scalar_type()) {                                                                            \
        case torch::headeronly::ScalarType::Float: { using T = float; __VA_ARGS__; break; }                 \
        case torch::headeronly::ScalarType::Half: { using T = __half; __VA_ARGS__; break; }                 \
        case torch::headeronly::ScalarType::BFloat16: { using T = __nv_bfloat16; __VA_ARGS__; break; }      \
        case torch::headeronly::ScalarType::Double: { using T = double; __VA_ARGS__; break; }               \
        default: STD_TORCH_CHECK(false, "ganops::" op ": dtype must be float32, float16, bfloat16 or float64"); \
    }
