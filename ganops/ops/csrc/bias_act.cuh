// clamp(gain * activation(x * scale + noise + bias)) and its first two derivatives by the activation's argument.
// Bound by memory: one read of each input, one write. ganops/ops/bias_act.py holds the definition.
#pragma once

#include "kernel.cuh"

namespace ganops {

enum Activation { kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// x is seen as [samples, channels, pixels], or [samples, pixels, channels] where channels_last.
struct BiasActArguments {
    const void* x;        // order 0: the input. Order 1: its output (linear, relu, lrelu), or the input (all others)
    const void* scale;    // [samples, channels] or null
    const void* noise;    // [pixels], or [samples, pixels] where noise_per_sample; or null
    const void* bias;     // [channels] or null
    const void* gradient; // orders 1 and 2: like x; is multiplied by the derivative
    void* y;              // like x
    int64_t samples, channels, pixels;
    bool channels_last, noise_per_sample;
    int activation, order;
    double alpha, gain;
    double clamp;  // below zero: none
};

struct BiasActLaunch {
    BiasActArguments a;
    uint32_t packs;
    Divisor sample, channel, pixel;  // elements of a sample; channels; pixels
};

constexpr double kSeluAlpha = 1.6732632423543772848170429916717;  // Klambauer et al. 2017
constexpr double kSeluScale = 1.0507009873554804934193349852946;

// The activation (order 0) or its derivative of order 1 or 2 at u.
template <typename M>
__device__ __forceinline__ M activate(int activation, int order, M u) {
    switch (activation) {
        case kTanh: {
            const M t = tanh(u);
            return order == 0 ? t : order == 1 ? 1 - t * t : -2 * t * (1 - t * t);
        }
        case kSigmoid: {
            const M s = 1 / (1 + exp(-u));
            return order == 0 ? s : order == 1 ? s * (1 - s) : s * (1 - s) * (1 - 2 * s);
        }
        case kElu:
            return u > 0 ? (order == 0 ? u : M(order == 1)) : order == 0 ? expm1(u) : exp(u);
        case kSelu:
            return u > 0 ? M(kSeluScale) * (order == 0 ? u : M(order == 1))
                         : M(kSeluScale * kSeluAlpha) * (order == 0 ? expm1(u) : exp(u));
        case kSoftplus: {
            const M s = 1 / (1 + exp(-u));
            return order == 0 ? (u > 20 ? u : log1p(exp(u))) : order == 1 ? s : s * (1 - s);
        }
        default: {  // swish
            const M s = 1 / (1 + exp(-u)), slope = s * (1 - s);
            return order == 0 ? u * s : order == 1 ? s + u * slope : slope * (2 + u * (1 - 2 * s));
        }
    }
}

template <typename M>
__device__ __forceinline__ M clamped(M value, M limit) {  // NaN stays NaN
    return value < -limit ? -limit : value > limit ? limit : value;
}

// `Rectifier`: linear, relu and lrelu, whose slope the sign of the output tells; alpha is the slope below zero.
template <typename T, int V, bool Rectifier>
__global__ void bias_act_kernel(const BiasActLaunch launch) {
    using M = typename Math<T>::type;
    const BiasActArguments& a = launch.a;
    const M alpha = M(a.alpha), gain = M(a.gain);
    // The limit as the tensor can hold it: a result in half precision stands at the rounded limit.
    const bool limited = a.clamp >= 0;
    const M limit = to_math(from_math<T>(M(a.clamp)));
    const uint32_t stride = gridDim.x * blockDim.x;
    for (uint32_t pack = blockIdx.x * blockDim.x + threadIdx.x; pack < launch.packs; pack += stride) {
        const uint32_t i = pack * V;
        const uint32_t n = launch.sample.divide(i), rest = i - n * launch.sample.value;
        const uint32_t row = a.channels_last ? launch.channel.divide(rest) : launch.pixel.divide(rest);
        const uint32_t column = rest - row * (a.channels_last ? launch.channel.value : launch.pixel.value);
        const uint32_t c = a.channels_last ? column : row, p = a.channels_last ? row : column;

        const Pack<T, V> x = load<T, V>(static_cast<const T*>(a.x) + i);
        M u[V];
#pragma unroll
        for (int k = 0; k < V; ++k) u[k] = to_math(x.values[k]);
        if (a.scale) {
            const T* scale = static_cast<const T*>(a.scale) + n * launch.channel.value + c;
            if (a.channels_last) {
                const Pack<T, V> factors = load<T, V>(scale);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] *= to_math(factors.values[k]);
            } else {
                const M factor = to_math(*scale);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] *= factor;
            }
        }
        if (a.noise) {
            const T* noise = static_cast<const T*>(a.noise) + (a.noise_per_sample ? n * launch.pixel.value : 0) + p;
            if (a.channels_last) {
                const M term = to_math(*noise);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] += term;
            } else {
                const Pack<T, V> terms = load<T, V>(noise);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] += to_math(terms.values[k]);
            }
        }
        if (a.bias) {
            const T* bias = static_cast<const T*>(a.bias) + c;
            if (a.channels_last) {
                const Pack<T, V> terms = load<T, V>(bias);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] += to_math(terms.values[k]);
            } else {
                const M term = to_math(*bias);
#pragma unroll
                for (int k = 0; k < V; ++k) u[k] += term;
            }
        }

        Pack<T, V> y;
        if (a.order == 0) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                M value;
                if (Rectifier) {
                    const M below = alpha == 0 && u[k] == u[k] ? M(0) : u[k] * alpha;  // relu of -inf is 0, of NaN is NaN
                    value = u[k] > 0 ? u[k] : below;
                } else {
                    value = activate<M>(a.activation, 0, u[k]);
                }
                value *= gain;
                y.values[k] = from_math<T>(limited ? clamped(value, limit) : value);
            }
        } else {
            const Pack<T, V> gradient = load<T, V>(static_cast<const T*>(a.gradient) + i);
#pragma unroll
            for (int k = 0; k < V; ++k) {
                const M value = Rectifier || !limited ? u[k] : gain * activate<M>(a.activation, 0, u[k]);
                const M slope = Rectifier ? (u[k] > 0 ? M(1) : alpha) : activate<M>(a.activation, a.order, u[k]);
                const bool passes = !limited || (value < limit && value > -limit);
                y.values[k] = from_math<T>(passes ? to_math(gradient.values[k]) * gain * slope : M(0));
            }
        }
        store<T, V>(static_cast<T*>(a.y) + i, y);
    }
}

template <typename T>
const void* offset(const void* pointer, int64_t elements) {
    return pointer ? static_cast<const T*>(pointer) + elements : nullptr;
}

// All samples, in launches of less than 2^31 elements; false where a single sample is larger.
template <typename T, typename Stream>
bool bias_act(BiasActArguments a, Stream stream) {
    const int64_t sample = a.channels * a.pixels;
    if (sample >= kMaxElements) return false;
    const int64_t samples = a.samples;
    const int64_t part = sample ? (kMaxElements - 1) / sample : samples;
    for (int64_t first = 0; first < samples && sample; first += part) {
        BiasActLaunch launch;
        launch.a = a;
        launch.a.samples = samples - first < part ? samples - first : part;
        launch.a.x = offset<T>(a.x, first * sample);
        launch.a.gradient = offset<T>(a.gradient, first * sample);
        launch.a.y = static_cast<T*>(a.y) + first * sample;
        launch.a.scale = offset<T>(a.scale, first * a.channels);
        launch.a.noise = offset<T>(a.noise, a.noise_per_sample ? first * a.pixels : 0);
        launch.sample = Divisor(sample);
        launch.channel = Divisor(a.channels);
        launch.pixel = Divisor(a.pixels);
        constexpr int kPack = 16 / sizeof(T);
        // Without scale, noise and bias a pack may hold anything.
        const bool indexed = a.scale || a.noise || a.bias;
        const int64_t line = !indexed ? launch.a.samples * sample : a.channels_last ? a.channels : a.pixels;
        const bool packed = line % kPack == 0 && is_aligned(launch.a.x) && is_aligned(launch.a.y) &&
                            is_aligned(launch.a.gradient) && is_aligned(launch.a.scale) &&
                            is_aligned(launch.a.noise) && is_aligned(launch.a.bias);
        launch.packs = uint32_t(launch.a.samples * sample / (packed ? kPack : 1));
        const dim3 block(256), grid(uint32_t(divide_up(launch.packs, 256)));
        const bool rectifier = a.activation <= kLrelu;
        if (packed && rectifier) {
            GANOPS_LAUNCH((bias_act_kernel<T, kPack, true>), grid, block, stream, launch);
        } else if (packed) {
            GANOPS_LAUNCH((bias_act_kernel<T, kPack, false>), grid, block, stream, launch);
        } else if (rectifier) {
            GANOPS_LAUNCH((bias_act_kernel<T, 1, true>), grid, block, stream, launch);
        } else {
            GANOPS_LAUNCH((bias_act_kernel<T, 1, false>), grid, block, stream, launch);
        }
    }
    return true;
}

}  // namespace ganops
