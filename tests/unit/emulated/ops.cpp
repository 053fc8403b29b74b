// The kernels of ganops/ops/csrc on the CPU, for ctypes. dtype: 0 float32, 1 float16, 2 bfloat16, 3 float64.
#include "cuda_on_cpu.h"

#include "bias_act.cuh"
#include "upfirdn2d.cuh"

extern "C" int run_bias_act(int dtype, const void* x, const void* scale, const void* noise, const void* bias,
                            const void* gradient, void* y, int64_t samples, int64_t channels, int64_t pixels,
                            int channels_last, int noise_per_sample, int activation, int order, double alpha,
                            double gain, double clamp) {
    const ganops::BiasActArguments a{x, scale, noise, bias, gradient, y, samples, channels, pixels, channels_last != 0,
                                     noise_per_sample != 0, activation, order, alpha, gain, clamp};
    switch (dtype) {
        case 0: return ganops::bias_act<float>(a, 0);
        case 1: return ganops::bias_act<__half>(a, 0);
        case 2: return ganops::bias_act<__nv_bfloat16>(a, 0);
        default: return ganops::bias_act<double>(a, 0);
    }
}

extern "C" int run_upfirdn2d(int dtype, const void* x, void* y, const void* taps, int64_t images, const int* sizes,
                             int separable, int flip, double gain) {
    const ganops::UpfirdnArguments a{x, y, taps, images, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
                                     sizes[6], sizes[7], sizes[8], sizes[9], sizes[10], sizes[11], sizes[12],
                                     separable != 0, flip != 0, gain};
    switch (dtype) {
        case 0: return ganops::upfirdn2d<float>(a, 0);
        case 1: return ganops::upfirdn2d<__half>(a, 0);
        case 2: return ganops::upfirdn2d<__nv_bfloat16>(a, 0);
        default: return ganops::upfirdn2d<double>(a, 0);
    }
}

extern "C" uint32_t divide(uint32_t n, uint32_t divisor) { return ganops::Divisor(divisor).divide(n); }
