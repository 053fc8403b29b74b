#include "bias_act.cuh"
#include "stable.h"

namespace ganops {

const void* pointer(const std::optional<Tensor>& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

void check(const std::optional<Tensor>& tensor, const Tensor& x, int64_t numel, const char* rule) {
    STD_TORCH_CHECK(!tensor || (tensor->numel() == numel && tensor->scalar_type() == x.scalar_type() &&
                                tensor->get_device_index() == x.get_device_index()),
                    "ganops::bias_act: ", rule, ", of x's dtype, on its device");
}

Tensor run(const Tensor& given, const std::optional<Tensor>& given_scale, const std::optional<Tensor>& given_noise,
           const std::optional<Tensor>& given_bias, const std::optional<Tensor>& given_gradient, int64_t dim,
           int64_t activation, int64_t order, double alpha, double gain, double clamp) {
    const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
    const bool channels_last = is_channels_last(given);
    const Tensor x = channels_last ? given : torch::stable::contiguous(given);
    Tensor y = torch::stable::empty_like(x);
    std::optional<Tensor> gradient;
    if (given_gradient) {
        if (channels_last && is_channels_last(*given_gradient)) {
            gradient = *given_gradient;
        } else if (channels_last) {
            gradient = torch::stable::empty_like(x);
            torch::stable::copy_(*gradient, *given_gradient);
        } else {
            gradient = torch::stable::contiguous(*given_gradient);
        }
    }
    const auto scale = dense(given_scale), noise = dense(given_noise), bias = dense(given_bias);
    BiasActArguments a;
    a.samples = a.pixels = 1;
    for (int64_t axis = 0; axis < x.dim(); ++axis) (axis < dim ? a.samples : a.pixels) *= axis == dim ? 1 : x.size(axis);
    a.channels = x.dim() ? x.size(dim) : 1;
    a.channels_last = channels_last;
    a.noise_per_sample = noise && noise->numel() != a.pixels;
    check(scale, x, a.samples * a.channels, "scale must be [N, C]");
    check(noise, x, a.noise_per_sample ? a.samples * a.pixels : a.pixels, "noise must be [H, W] or [N, 1, H, W]");
    check(bias, x, a.channels, "bias must be [x.shape[dim]]");
    check(gradient, x, x.numel(), "gradient must be like x");
    a.x = x.data_ptr();
    a.y = y.data_ptr();
    a.scale = pointer(scale);
    a.noise = pointer(noise);
    a.bias = pointer(bias);
    a.gradient = pointer(gradient);
    a.activation = int(activation);
    a.order = int(order);
    a.alpha = alpha;
    a.gain = gain;
    a.clamp = clamp;
    const cudaStream_t stream = current_stream(x);
    bool fits = false;
    GANOPS_DISPATCH("bias_act", x, T, fits = bias_act<T>(a, stream));
    STD_TORCH_CHECK(fits, "ganops::bias_act: a sample has 2^31 elements or more; smaller ones are needed");
    check_launch("bias_act");
    return y;
}

Tensor bias_act_cuda(Tensor x, std::optional<Tensor> bias, std::optional<Tensor> scale, std::optional<Tensor> noise,
                     int64_t dim, int64_t activation, double alpha, double gain, double clamp) {
    return run(x, scale, noise, bias, std::nullopt, dim, activation, 0, alpha, gain, clamp);
}

Tensor bias_act_slope_cuda(Tensor gradient, Tensor x, std::optional<Tensor> bias, int64_t dim, int64_t activation,
                           int64_t order, double alpha, double gain, double clamp) {
    return run(x, std::nullopt, std::nullopt, bias, gradient, dim, activation, order, alpha, gain, clamp);
}

}  // namespace ganops

STABLE_TORCH_LIBRARY_IMPL(ganops, CUDA, m) {
    m.impl("bias_act", TORCH_BOX(&ganops::bias_act_cuda));
    m.impl("bias_act_slope", TORCH_BOX(&ganops::bias_act_slope_cuda));
}
