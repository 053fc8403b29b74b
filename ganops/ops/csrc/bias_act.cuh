// clamp(gain * activation(x * scale + noise + bias)) and its first two derivatives by the activation's argument.
// ganops/ops/bias_act.py holds the definition. One read of each input, one write; and few instructions, so that linear,
// relu and lrelu wait for memory alone: in the time in which an H200 copies 16 bytes per thread (4.3 TB/s) it can issue
// 250, and they take 60 to 130 for as much, 30 to 80 for the derivative (counted in the code for sm_90).
#pragma once

#include <limits>

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

// The same for the kernels, with all that the host can work out. To them x is [samples, lines, packs of a line]; a pack
// is 16 bytes or one number, a line is a channel, or a pixel where channels_last.
template <typename T>
struct BiasActLaunch {
    using M = typename Math<T>::type;
    const T *x, *scale, *noise, *bias, *gradient;
    T* y;
    uint32_t packs;
    Divisor line, sample;           // packs of a line; lines of a sample
    uint32_t channels, noise_step;  // from one sample to the next in scale; in noise
    int activation, order;
    bool channels_last, limited;
    M gain, above, below;  // above and below: of linear, relu and lrelu, the factor on either side of zero
    T low, high;           // limits of the result; infinite where it is not limited
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

constexpr uint32_t kThreads = 256;  // of a block
constexpr int kPacks = 4;           // of a rectifier's thread: read all at once, and what they share is done once

// NaN stays NaN. Limiting after rounding gives the same as before it, for the limits are of type T, and for 16-bit
// numbers it takes two instructions for a pair instead of eight.
template <typename T, int V>
__device__ __forceinline__ Pack<T, V> clamped(Pack<T, V> pack, T low, T high) {
    if constexpr (sizeof(T) == 2 && V > 1) {
        using Pair = decltype(round_pair(T(), 0, 0));
#pragma unroll
        for (int k = 0; k < V; k += 2) {
            Pair pair(pack.values[k], pack.values[k + 1]);
            pair = __hmax2_nan(__hmin2_nan(pair, Pair(high, high)), Pair(low, low));
            pack.values[k] = pair.x;
            pack.values[k + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int k = 0; k < V; ++k) {
            if (to_math(pack.values[k]) < to_math(low)) pack.values[k] = low;
            if (to_math(pack.values[k]) > to_math(high)) pack.values[k] = high;
        }
    }
    return pack;
}

// V numbers that lie along a line, or V times the one number that a line has.
template <bool Along, typename T, int V>
__device__ __forceinline__ void read(const T* from, typename Math<T>::type (&values)[V]) {
    if constexpr (Along) {
        unpack(load<T, V>(from), values);
    } else {
        const typename Math<T>::type value = to_math(*from);
#pragma unroll
        for (int k = 0; k < V; ++k) values[k] = value;
    }
}

// x * scale + noise + bias of N packs. A branch on an input goes around the work of all N: around that of one, ptxas
// makes predicates of it, and the instructions are issued whether there is such an input or not.
template <bool ChannelsLast, typename T, int V, int N>
__device__ __forceinline__ void argument(const BiasActLaunch<T>& a, const uint32_t (&packs)[N],
                                         typename Math<T>::type (&u)[N][V]) {
    Pack<T, V> x[N];
    uint32_t n[N], c[N], p[N];  // sample, channel and pixel where a pack begins
    typename Math<T>::type terms[V];
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = load<T, V>(a.x + size_t(packs[i]) * V);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t row = a.line.divide(packs[i]), column = (packs[i] - row * a.line.value) * V;
        n[i] = a.sample.divide(row);
        const uint32_t line = row - n[i] * a.sample.value;
        c[i] = ChannelsLast ? column : line;
        p[i] = ChannelsLast ? line : column;
        unpack(x[i], u[i]);
    }
    if (a.scale) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            read<ChannelsLast>(a.scale + (n[i] * a.channels + c[i]), terms);
#pragma unroll
            for (int k = 0; k < V; ++k) u[i][k] *= terms[k];
        }
    }
    if (a.noise) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            read<!ChannelsLast>(a.noise + (n[i] * a.noise_step + p[i]), terms);
#pragma unroll
            for (int k = 0; k < V; ++k) u[i][k] += terms[k];
        }
    }
    if (a.bias) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            read<ChannelsLast>(a.bias + c[i], terms);
#pragma unroll
            for (int k = 0; k < V; ++k) u[i][k] += terms[k];
        }
    }
}

template <bool ChannelsLast, typename T, int V>
__device__ __forceinline__ void rectify(const BiasActLaunch<T>& a) {
    const uint32_t first = blockIdx.x * (kPacks * kThreads) + threadIdx.x;
    uint32_t packs[kPacks];  // behind the end: the last one again, to read but not to write
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs[i] = min(first + i * kThreads, a.packs - 1);
    typename Math<T>::type u[kPacks][V];
    argument<ChannelsLast>(a, packs, u);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if (first + i * kThreads >= a.packs) return;
#pragma unroll
        for (int k = 0; k < V; ++k) u[i][k] *= u[i][k] > 0 ? a.above : a.below;
        store<T, V>(a.y + size_t(packs[i]) * V, clamped(round_pack<T, V>(u[i]), a.low, a.high));
    }
}

// linear, relu and lrelu.
template <typename T, int V>
__global__ void rectifier_kernel(const BiasActLaunch<T> a) {
    if (a.channels_last) {
        rectify<true, T, V>(a);
    } else {
        rectify<false, T, V>(a);
    }
}

// The gradient times their derivative. x is the result: its sign tells the slope, and its size whether it was cut.
template <typename T, int V>
__global__ void rectifier_slope_kernel(const BiasActLaunch<T> a) {
    const uint32_t first = blockIdx.x * (kPacks * kThreads) + threadIdx.x;
    const size_t begin = size_t(first) * V;
    const typename Math<T>::type limit = to_math(a.high);
    Pack<T, V> x[kPacks], gradient[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if (first + i * kThreads < a.packs) {
            x[i] = load<T, V>(a.x + begin + i * kThreads * V);
            gradient[i] = load<T, V>(a.gradient + begin + i * kThreads * V);
        }
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if (first + i * kThreads >= a.packs) return;
        typename Math<T>::type value[V], product[V];
        unpack(x[i], value);
        unpack(gradient[i], product);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            const bool passes = !a.limited || fabs(value[k]) < limit;
            product[k] = passes ? product[k] * (value[k] > 0 ? a.above : a.below) : 0;
        }
        store<T, V>(a.y + begin + i * kThreads * V, round_pack<T, V>(product));
    }
}

// All other functions, in all orders: one pack per thread, for their arithmetic takes longer than their memory.
template <typename T, int V>
__global__ void smooth_kernel(const BiasActLaunch<T> a) {
    using M = typename Math<T>::type;
    const uint32_t packs[1] = {blockIdx.x * kThreads + threadIdx.x};
    if (packs[0] >= a.packs) return;
    const size_t begin = size_t(packs[0]) * V;
    M arguments[1][V];
    if (a.channels_last) {
        argument<true>(a, packs, arguments);
    } else {
        argument<false>(a, packs, arguments);
    }
    M(&u)[V] = arguments[0];
    if (a.order == 0) {
#pragma unroll
        for (int k = 0; k < V; ++k) u[k] = a.gain * activate<M>(a.activation, 0, u[k]);
        store<T, V>(a.y + begin, clamped(round_pack<T, V>(u), a.low, a.high));
    } else {
        M gradient[V];
        unpack(load<T, V>(a.gradient + begin), gradient);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            const bool passes = !a.limited || fabs(a.gain * activate<M>(a.activation, 0, u[k])) < to_math(a.high);
            u[k] = passes ? gradient[k] * a.gain * activate<M>(a.activation, a.order, u[k]) : 0;
        }
        store<T, V>(a.y + begin, round_pack<T, V>(u));
    }
}

template <typename T, int V, typename Stream>
void launch_bias_act(const BiasActLaunch<T>& a, Stream stream) {
    const bool rectifier = a.activation <= kLrelu;
    const dim3 block(kThreads), grid(uint32_t(divide_up(a.packs, kThreads * (rectifier ? kPacks : 1))));
    if (!rectifier) {
        GANOPS_LAUNCH((smooth_kernel<T, V>), grid, block, stream, a);
    } else if (a.order == 0) {
        GANOPS_LAUNCH((rectifier_kernel<T, V>), grid, block, stream, a);
    } else {
        GANOPS_LAUNCH((rectifier_slope_kernel<T, V>), grid, block, stream, a);
    }
}

template <typename T>
const T* offset(const void* pointer, int64_t elements) {
    return pointer ? static_cast<const T*>(pointer) + elements : nullptr;
}

// All samples, in launches of less than 2^31 elements; false where a single sample is larger.
template <typename T, typename Stream>
bool bias_act(const BiasActArguments& a, Stream stream) {
    using M = typename Math<T>::type;
    constexpr int kPack = 16 / sizeof(T);
    const int64_t sample = a.channels * a.pixels;
    if (sample >= kMaxElements) return false;
    const int64_t part = sample ? (kMaxElements - 1) / sample : a.samples;
    for (int64_t first = 0; first < a.samples && sample; first += part) {
        const int64_t samples = a.samples - first < part ? a.samples - first : part;
        BiasActLaunch<T> launch;
        launch.x = offset<T>(a.x, first * sample);
        launch.gradient = offset<T>(a.gradient, first * sample);
        launch.y = static_cast<T*>(a.y) + first * sample;
        launch.scale = offset<T>(a.scale, first * a.channels);
        launch.noise = offset<T>(a.noise, a.noise_per_sample ? first * a.pixels : 0);
        launch.bias = offset<T>(a.bias, 0);
        launch.channels = uint32_t(a.channels);
        launch.noise_step = a.noise_per_sample ? uint32_t(a.pixels) : 0;
        launch.activation = a.activation;
        launch.order = a.order;
        launch.channels_last = a.channels_last;
        launch.gain = launch.above = M(a.gain);
        launch.below = M(a.gain * a.alpha);
        // The limit as the tensor can hold it: a result in half precision stands at the rounded limit.
        launch.limited = a.clamp >= 0;
        const M limit = launch.limited ? M(a.clamp) : std::numeric_limits<M>::infinity();
        launch.low = from_math<T>(-limit);
        launch.high = from_math<T>(limit);
        if (a.activation <= kLrelu && a.order == 0 && M(a.alpha) == 0) {
            // relu limits at zero, where a slope of 0 would turn -inf into NaN.
            launch.below = launch.above;
            (a.gain < 0 ? launch.high : launch.low) = from_math<T>(0);
        }
        // Without scale, noise and bias a pack may hold anything.
        const bool placed = a.scale || a.noise || a.bias;
        const int64_t line = !placed ? samples * sample : a.channels_last ? a.channels : a.pixels;
        const bool packed = line % kPack == 0 && is_aligned(launch.x) && is_aligned(launch.y) &&
                            is_aligned(launch.gradient) && is_aligned(launch.scale) && is_aligned(launch.noise) &&
                            is_aligned(launch.bias);
        launch.packs = uint32_t(samples * sample / (packed ? kPack : 1));
        launch.line = Divisor(packed ? line / kPack : line);
        launch.sample = Divisor(placed ? sample / line : 1);
        if (packed) {
            launch_bias_act<T, kPack>(launch, stream);
        } else {
            launch_bias_act<T, 1>(launch, stream);
        }
    }
    return true;
}

}  // namespace ganops
