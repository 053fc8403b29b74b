// Zero-insertion, padding, FIR and decimation of images. ganops/ops/upfirdn2d.py holds the definition.
// Images are [N, H, W, C]; those that stand as [N, C, H, W] in memory are [N * C, H, W, 1].
#pragma once

#include "kernel.cuh"

namespace ganops {

struct UpfirdnArguments {
    const void* x;     // [images, in_height, in_width, channels]
    void* y;           // [images, out_height, out_width, channels]
    const void* taps;  // [filter_height, filter_width]; separable: [filter_width], for both axes; in the type of Math<T>
    int64_t images;
    int in_height, in_width, out_height, out_width, channels;
    int filter_height, filter_width, up_x, up_y, down_x, down_y, pad_left, pad_top;
    bool separable;
    bool flip;  // true: correlation, false: convolution
    double gain;
};

struct UpfirdnLaunch {
    UpfirdnArguments a;
    uint32_t lanes;                   // threads along grid.x that have work
    Divisor channel, column, height;  // channels or packs of them; columns of outputs or steps of them; rows of outputs
    int strip;                        // fast form: steps of a thread downwards
};

__device__ __forceinline__ int floor_divide(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Any factors, any filter: one thread per output, each tap from memory (cached).
template <typename T>
__global__ void upfirdn2d_kernel(const UpfirdnLaunch launch) {
    using M = typename Math<T>::type;
    const UpfirdnArguments& a = launch.a;
    const M* taps = static_cast<const M*>(a.taps);
    const uint32_t stride = gridDim.x * blockDim.x;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < launch.lanes; i += stride) {
        uint32_t rest = launch.channel.divide(i);
        const int c = int(i - rest * launch.channel.value);
        const uint32_t row = launch.column.divide(rest);
        const int ox = int(rest - row * launch.column.value);
        const uint32_t n = launch.height.divide(row);
        const int oy = int(row - n * launch.height.value);

        // Where the filter stands in the enlarged image, and the first pixel under it that is not an inserted zero.
        const int top = oy * a.down_y - a.pad_top, left = ox * a.down_x - a.pad_left;
        const int first_y = floor_divide(top + a.up_y - 1, a.up_y), first_x = floor_divide(left + a.up_x - 1, a.up_x);
        const T* image = static_cast<const T*>(a.x) + int64_t(n) * a.in_height * a.in_width * a.channels;
        M sum = 0;
        for (int iy = first_y, ky = first_y * a.up_y - top; ky < a.filter_height; ++iy, ky += a.up_y) {
            if (iy < 0 || iy >= a.in_height) continue;
            for (int ix = first_x, kx = first_x * a.up_x - left; kx < a.filter_width; ++ix, kx += a.up_x) {
                if (ix < 0 || ix >= a.in_width) continue;
                const int fy = a.flip ? ky : a.filter_height - 1 - ky, fx = a.flip ? kx : a.filter_width - 1 - kx;
                const M tap = a.separable ? taps[fy] * taps[fx] : taps[fy * a.filter_width + fx];
                sum += tap * to_math(image[(int64_t(iy) * a.in_width + ix) * a.channels + c]);
            }
        }
        static_cast<T*>(a.y)[i] = from_math<T>(sum * M(a.gain));
    }
}

// One axis of the fast form, which has a separable filter of four taps: a step takes `kAdvance` new inputs into a
// window of `kWindow`, and gives `kOutputs` outputs.
template <int Up, int Down, bool Odd>
struct Axis {  // Up == 1
    static constexpr int kWindow = 4, kOutputs = 1, kAdvance = Down;
    __device__ static __forceinline__ int first(int step, int pad) { return step * Down - pad; }
    template <typename M>
    __device__ static __forceinline__ M filter(int, const M* f, M a, M b, M c, M d) {
        return f[0] * a + f[1] * b + f[2] * c + f[3] * d;
    }
};
// Twice as large: an output meets two inputs, by taps 0 and 2 or 1 and 3; which, tells its parity with the padding's.
template <>
struct Axis<2, 1, false> {
    static constexpr int kWindow = 3, kOutputs = 2, kAdvance = 1;
    __device__ static __forceinline__ int first(int step, int pad) { return step - pad / 2; }
    template <typename M>
    __device__ static __forceinline__ M filter(int output, const M* f, M a, M b, M c, M) {
        return output == 0 ? f[0] * a + f[2] * b : f[1] * b + f[3] * c;
    }
};
template <>
struct Axis<2, 1, true> {
    static constexpr int kWindow = 2, kOutputs = 2, kAdvance = 1;
    __device__ static __forceinline__ int first(int step, int pad) { return step - (pad - 1) / 2; }
    template <typename M>
    __device__ static __forceinline__ M filter(int output, const M* f, M a, M b, M, M) {
        return output == 0 ? f[1] * a + f[3] * b : f[0] * a + f[2] * b;
    }
};

// A thread walks down a strip of the image with V channels: each input row is read and filtered along x once, and
// waits in registers until all output rows that need it are done.
template <typename T, int V, int Up, int Down, bool Odd>
__global__ void upfirdn2d_fast_kernel(const UpfirdnLaunch launch) {
    using M = typename Math<T>::type;
    using A = Axis<Up, Down, Odd>;
    constexpr int kRows = 4;  // registers of unused rows are optimised away
    const UpfirdnArguments& a = launch.a;
    const uint32_t lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= launch.lanes) return;
    const uint32_t rest = launch.channel.divide(lane);
    const uint32_t c = (lane - rest * launch.channel.value) * V;
    const uint32_t n = launch.column.divide(rest);
    const int step_x = int(rest - n * launch.column.value);

    M f[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) f[k] = static_cast<const M*>(a.taps)[a.flip ? k : 3 - k];
    const M gain = M(a.gain);
    const T* image = static_cast<const T*>(a.x) + int64_t(n) * a.in_height * a.in_width * a.channels + c;
    T* result = static_cast<T*>(a.y) + int64_t(n) * a.out_height * a.out_width * a.channels + c;
    const int first_x = A::first(step_x, a.pad_left);

    M rows[kRows][A::kOutputs][V];  // [window][output along x][channel]
    auto read_row = [&](int iy, M(&row)[A::kOutputs][V]) {
        M window[4][V];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const int ix = first_x + m;
            const bool inside = m < A::kWindow && iy >= 0 && iy < a.in_height && ix >= 0 && ix < a.in_width;
            Pack<T, V> pack;
            if (inside) pack = load<T, V>(image + (int64_t(iy) * a.in_width + ix) * a.channels);
#pragma unroll
            for (int v = 0; v < V; ++v) window[m][v] = inside ? to_math(pack.values[v]) : M(0);
        }
#pragma unroll
        for (int o = 0; o < A::kOutputs; ++o)
#pragma unroll
            for (int v = 0; v < V; ++v)
                row[o][v] = A::filter(o, f, window[0][v], window[1][v], window[2][v], window[3][v]);
    };

    const int first_step = int(blockIdx.y) * launch.strip;
    int iy = A::first(first_step, a.pad_top);
#pragma unroll
    for (int m = A::kAdvance; m < A::kWindow; ++m) read_row(iy++, rows[m]);
    const int last_step = first_step + launch.strip;
    for (int step = first_step; step < last_step && step * A::kOutputs < a.out_height; ++step) {
#pragma unroll
        for (int m = 0; m + A::kAdvance < A::kWindow; ++m)
#pragma unroll
            for (int o = 0; o < A::kOutputs; ++o)
#pragma unroll
                for (int v = 0; v < V; ++v) rows[m][o][v] = rows[m + A::kAdvance][o][v];
#pragma unroll
        for (int m = A::kWindow - A::kAdvance; m < A::kWindow; ++m) read_row(iy++, rows[m]);
#pragma unroll
        for (int s = 0; s < A::kOutputs; ++s) {
            const int oy = step * A::kOutputs + s;
#pragma unroll
            for (int o = 0; o < A::kOutputs; ++o) {
                const int ox = step_x * A::kOutputs + o;
                if (oy >= a.out_height || ox >= a.out_width) continue;
                Pack<T, V> pack;
#pragma unroll
                for (int v = 0; v < V; ++v)
                    pack.values[v] = from_math<T>(
                        gain * A::filter(s, f, rows[0][o][v], rows[1 % A::kWindow][o][v], rows[2 % A::kWindow][o][v],
                                         rows[3 % A::kWindow][o][v]));
                store<T, V>(result + (int64_t(oy) * a.out_width + ox) * a.channels, pack);
            }
        }
    }
}

template <typename T, int V, int Up, int Down, bool Odd, typename Stream>
void launch_fast(UpfirdnLaunch launch, Stream stream) {
    using A = Axis<Up, Down, Odd>;
    const UpfirdnArguments& a = launch.a;
    const int64_t steps_x = divide_up(a.out_width, A::kOutputs), steps_y = divide_up(a.out_height, A::kOutputs);
    launch.channel = Divisor(a.channels / V);
    launch.column = Divisor(steps_x);
    launch.lanes = uint32_t(a.images * steps_x * (a.channels / V));
    // Long strips read less twice, short ones make more threads: at least 2^18, more than a GPU of 2024 holds at once.
    launch.strip = 16;
    while (launch.strip > 2 && launch.lanes * divide_up(steps_y, launch.strip) < (1 << 18)) launch.strip /= 2;
    while (divide_up(steps_y, launch.strip) > 65535) launch.strip *= 2;  // grid.y holds no more
    const dim3 block(128), grid(uint32_t(divide_up(launch.lanes, 128)), uint32_t(divide_up(steps_y, launch.strip)));
    GANOPS_LAUNCH((upfirdn2d_fast_kernel<T, V, Up, Down, Odd>), grid, block, stream, launch);
}

template <typename T, int V, typename Stream>
void launch_fast(const UpfirdnLaunch& launch, Stream stream) {
    const UpfirdnArguments& a = launch.a;
    if (a.up_x == 1 && a.down_x == 1) {
        launch_fast<T, V, 1, 1, false>(launch, stream);
    } else if (a.up_x == 1) {
        launch_fast<T, V, 1, 2, false>(launch, stream);
    } else if (a.pad_left % 2 == 0) {
        launch_fast<T, V, 2, 1, false>(launch, stream);
    } else {
        launch_fast<T, V, 2, 1, true>(launch, stream);
    }
}

template <typename T>
bool has_fast_form(const UpfirdnArguments& a) {
    const bool equal = a.up_x == a.up_y && a.down_x == a.down_y;
    const bool known = (a.up_x == 1 && a.down_x <= 2) || (a.up_x == 2 && a.down_x == 1);
    const bool parity = a.up_x == 1 || (a.pad_left - a.pad_top) % 2 == 0;
    return sizeof(T) <= 4 && a.separable && a.filter_width == 4 && equal && known && parity;
}

// All images, in launches of less than 2^31 outputs; false where a single image is larger.
template <typename T, typename Stream>
bool upfirdn2d(const UpfirdnArguments& a, Stream stream) {
    const int64_t input = int64_t(a.in_height) * a.in_width * a.channels;
    const int64_t output = int64_t(a.out_height) * a.out_width * a.channels;
    if (input >= kMaxElements || output >= kMaxElements) return false;
    const int64_t part = output ? (kMaxElements - 1) / output : a.images;
    for (int64_t first = 0; first < a.images && output; first += part) {
        UpfirdnLaunch launch;
        launch.a = a;
        launch.a.images = a.images - first < part ? a.images - first : part;
        launch.a.x = static_cast<const T*>(a.x) + first * input;
        launch.a.y = static_cast<T*>(a.y) + first * output;
        if constexpr (sizeof(T) <= 4) {
            constexpr int kPack = 16 / sizeof(T);
            const bool packed = a.channels % kPack == 0 && is_aligned(launch.a.x) && is_aligned(launch.a.y);
            if (has_fast_form<T>(a) && packed) {
                launch_fast<T, kPack>(launch, stream);
                continue;
            }
            if (has_fast_form<T>(a)) {
                launch_fast<T, 1>(launch, stream);
                continue;
            }
        }
        launch.channel = Divisor(a.channels);
        launch.column = Divisor(a.out_width);
        launch.height = Divisor(a.out_height);
        launch.lanes = uint32_t(launch.a.images * output);
        const dim3 block(256), grid(uint32_t(divide_up(launch.lanes, 256)));
        GANOPS_LAUNCH((upfirdn2d_kernel<T>), grid, block, stream, launch);
    }
    return true;
}

}  // namespace ganops
