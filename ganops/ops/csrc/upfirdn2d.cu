#include "stable.h"
#include "upfirdn2d.cuh"

namespace ganops {

Tensor upfirdn2d_cuda(Tensor given, Tensor given_taps, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                      int64_t left, int64_t right, int64_t top, int64_t bottom, bool flip, double gain) {
    const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
    const bool channels_last = is_channels_last(given);
    const Tensor x = channels_last ? given : torch::stable::contiguous(given);
    const ScalarType math = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(given_taps.scalar_type() == math && given_taps.get_device_index() == x.get_device_index(),
                    "ganops::upfirdn2d: taps must be float32 (float64 for float64 images), on the images' device");
    const Tensor taps = torch::stable::contiguous(given_taps);

    const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
    const int64_t kw = taps.size(taps.dim() - 1), kh = taps.size(0);
    const int64_t height = H * up_y + top + bottom - kh, width = W * up_x + left + right - kw;
    STD_TORCH_CHECK(height >= 0 && width >= 0, "ganops::upfirdn2d: the padded image is smaller than the filter");
    Tensor y = empty_image(x, {N, C, height / down_y + 1, width / down_x + 1}, channels_last);
    UpfirdnArguments a;
    a.x = x.data_ptr();
    a.y = y.data_ptr();
    a.taps = taps.data_ptr();
    a.images = channels_last ? N : N * C;
    a.channels = channels_last ? int(C) : 1;
    a.in_height = int(H);
    a.in_width = int(W);
    a.out_height = int(y.size(2));
    a.out_width = int(y.size(3));
    a.filter_height = int(kh);
    a.filter_width = int(kw);
    a.up_x = int(up_x);
    a.up_y = int(up_y);
    a.down_x = int(down_x);
    a.down_y = int(down_y);
    a.pad_left = int(left);
    a.pad_top = int(top);
    a.separable = taps.dim() == 1;
    a.flip = flip;
    a.gain = gain;
    const cudaStream_t stream = current_stream(x);
    bool fits = false;
    GANOPS_DISPATCH("upfirdn2d", x, T, fits = upfirdn2d<T>(a, stream));
    STD_TORCH_CHECK(fits, "ganops::upfirdn2d: an image has 2^31 elements or more; smaller ones are needed");
    check_launch("upfirdn2d");
    return y;
}

}  // namespace ganops

STABLE_TORCH_LIBRARY_IMPL(ganops, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&ganops::upfirdn2d_cuda)); }
