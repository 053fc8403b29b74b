// Zero-insertion, padding, FIR and decimation of images. ganops/ops/upfirdn2d.py holds the definition.
// Images are [N, H, W, C]; those that stand as [N, C, H, W] in memory are [N * C, H, W, 1].
#pragma once

#include <cstring>
#include <type_traits>

#include "kernel.cuh"

namespace ganops {

struct UpfirdnArguments {
    const void* x;     // [images, in_height, in_width, channels]
    void* y;           // [images, out_height, out_width, channels]
    const void* taps;  // [filter_height, filter_width]; separable: [filter_width], for both axes; of type Math<T>
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
    Divisor channel, column, height;  // threads for the channels of a pixel, for the pixels of a row, for the rows
    // Of the fast form:
    int strip;           // steps of a thread downwards
    int skip_x, skip_y;  // outputs left out at the left and at the top: 0 or 1
    bool wide;           // whether a thread may store its outputs of a row at once
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

// What follows is the fast form, for separable filters of four taps. It is to keep up with the memory, so its loop
// holds little but loads, arithmetic and stores.

// V numbers as words. Numbers of 16 bits that are loaded on a condition would be moved one by one otherwise.
template <typename T, int V>
struct Words {
    using Word = typename std::conditional<V * sizeof(T) % 4 == 0, uint32_t, uint16_t>::type;
    using type = Pack<Word, V * sizeof(T) / sizeof(Word)>;
};

// One step along an axis gives `Up` outputs of the inputs at(0), at(1), ... in its window, and moves the window on by
// `Down` inputs. If Up is 2, an output meets two inputs only, the other taps inserted zeros; the padding is even.
template <int Up, typename At>
__device__ __forceinline__ float filter(int output, const float* f, At at) {
    if constexpr (Up == 1) {
        return f[0] * at(0) + f[1] * at(1) + f[2] * at(2) + f[3] * at(3);
    } else {
        return output == 0 ? f[0] * at(0) + f[2] * at(1) : f[1] * at(1) + f[3] * at(2);
    }
}

#ifndef GANOPS_ENOUGH_THREADS
#define GANOPS_ENOUGH_THREADS (1 << 18)  // about what a GPU of 2024 holds at once
#endif
constexpr int kFastThreads = 64;  // of a block; with 128, more of the registers of an SM would be left over

// A thread walks down a strip of the image, with V channels of X steps side by side. An input row
//   1. is read kAhead rows before it is needed, so that the memory is busy while threads compute;
//   2. is filtered along x, once, into the place in `rows` of a row that is no longer needed;
//   3. waits there until all output rows that need it are done.
// By calculation, for an H200: to move 4.3 TB/s, if a load takes 0.8 us, a filter needs 13 KiB of loads on their way to
// an SM; as many threads as its registers suffice for have 16 to 36 KiB.
// V == 1 and X > 1 are for images of one channel only: then the distance of two columns is known here.
template <typename T, int V, int X, int Up, int Down>
__global__ void __launch_bounds__(kFastThreads) upfirdn2d_fast_kernel(const UpfirdnLaunch launch) {
    constexpr int kWindow = Up == 1 ? 4 : 3, kAhead = Up == 1 ? 2 : 3;
    constexpr int kColumns = (X - 1) * Down + kWindow, kOutputs = X * Up;  // of a row: pixels read and written
    constexpr bool kOneChannel = V == 1 && X > 1;
    const UpfirdnArguments& a = launch.a;
    const uint32_t lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= launch.lanes) return;
    const uint32_t column = launch.channel.divide(lane), strip = launch.column.divide(column);
    const uint32_t n = launch.height.divide(strip);
    const int c = int(lane - column * launch.channel.value) * V;
    const int step_x = int(column - strip * launch.column.value) * X;
    const int step_y = int(strip - n * launch.height.value) * launch.strip;

    float along_x[4], along_y[4];  // the gain is in the latter, where it costs nothing
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        along_x[k] = static_cast<const float*>(a.taps)[a.flip ? k : 3 - k];
        along_y[k] = along_x[k] * float(a.gain);
    }

    // Where to read and where to write next; nothing is read or written where that is outside of the image.
    const int channels = kOneChannel ? 1 : a.channels;
    const int in_stride = a.in_width * channels, out_stride = a.out_width * channels;
    const int ix = step_x * Down - a.pad_left / Up, ox = step_x * Up - launch.skip_x;
    int iy = step_y * Down - a.pad_top / Up, oy = step_y * Up - launch.skip_y;
    const T* from = static_cast<const T*>(a.x) + (int64_t(n) * a.in_height + iy) * in_stride;
    T* to = static_cast<T*>(a.y) + (int64_t(n) * a.out_height + oy) * out_stride;
    from += int64_t(ix) * channels + c;
    to += int64_t(ox) * channels + c;
    // No row is read that no output of this strip needs.
    const int end_iy = max(0, min(a.in_height, iy + (launch.strip - 1) * Down + kWindow));
    const int end_oy = min(a.out_height, oy + launch.strip * Up);
    uint32_t inside = 0;  // bit m: column m is in the image
#pragma unroll
    for (int m = 0; m < kColumns; ++m) inside |= uint32_t(uint32_t(ix + m) < uint32_t(a.in_width)) << m;

    using Raw = typename Words<T, V>::type;
    Raw ahead[kAhead][kColumns];
    auto read_row = [&](Raw (&raw)[kColumns]) {
        const uint32_t readable = uint32_t(iy) < uint32_t(end_iy) ? inside : 0;
        const T* pixel = from;
#pragma unroll
        for (int m = 0; m < kColumns; ++m, pixel += channels) {
            raw[m] = {};
            if (readable >> m & 1) raw[m] = *reinterpret_cast<const Raw*>(pixel);
        }
        from += in_stride;
        ++iy;
    };

    float rows[kWindow][kOutputs][V];
    // Row i of the strip, or a later one that has its places: out of `ahead`, where the next one is then on its way.
    auto filter_row = [&](int i) {
        float pixels[kColumns][V];
#pragma unroll
        for (int m = 0; m < kColumns; ++m) {
            Pack<T, V> pack;
            memcpy(&pack, &ahead[i % kAhead][m], sizeof(pack));
            unpack(pack, pixels[m]);
        }
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
#pragma unroll
            for (int v = 0; v < V; ++v)
                rows[i % kWindow][o][v] =
                    filter<Up>(o % Up, along_x, [&](int k) { return pixels[o / Up * Down + k][v]; });
        read_row(ahead[i % kAhead]);
    };

#pragma unroll
    for (int i = 0; i < kAhead; ++i) read_row(ahead[i]);
#pragma unroll
    for (int i = 0; i < kWindow - Down; ++i) filter_row(i);
    // A turn of this loop ends when all rows are back in the same places. So these are known here, and are registers.
    static_assert(kWindow % Down == 0 && kWindow % kAhead == 0, "or they are not back");
    while (true) {
#pragma unroll
        for (int i = 0; i < kWindow; i += Down) {
            if (oy >= end_oy) return;
#pragma unroll
            for (int m = kWindow - Down; m < kWindow; ++m) filter_row(i + m);
#pragma unroll
            for (int s = 0; s < Up; ++s) {
                if (Up == 1 || uint32_t(oy) < uint32_t(end_oy)) {
                    float y[kOutputs][V];
#pragma unroll
                    for (int o = 0; o < kOutputs; ++o)
#pragma unroll
                        for (int v = 0; v < V; ++v)
                            y[o][v] = filter<Up>(s, along_y, [&](int k) { return rows[(i + k) % kWindow][o][v]; });
                    if (kOneChannel && launch.wide) {
                        store(to, round_pack<T, kOutputs * V>(reinterpret_cast<float(&)[kOutputs * V]>(y)));
                    } else {
#pragma unroll
                        for (int o = 0; o < kOutputs; ++o)
                            if (kOutputs == 1 || uint32_t(ox + o) < uint32_t(a.out_width))
                                store(to + o * channels, round_pack<T, V>(y[o]));
                    }
                }
                to += out_stride;
                ++oy;
            }
        }
    }
}

template <typename T, int V, int X, int Up, int Down, typename Stream>
void launch_fast(UpfirdnLaunch launch, Stream stream) {
    UpfirdnArguments& a = launch.a;
    // Of an enlarged image, an odd padding is the even one that is larger by 1, without its first output.
    launch.skip_x = Up == 2 ? a.pad_left & 1 : 0;
    launch.skip_y = Up == 2 ? a.pad_top & 1 : 0;
    a.pad_left += launch.skip_x;
    a.pad_top += launch.skip_y;
    const int64_t packs = a.channels / V, columns = divide_up(a.out_width + launch.skip_x, X * Up);
    const int64_t steps_y = divide_up(a.out_height + launch.skip_y, Up);
    const int64_t threads_across = a.images * columns * packs;
    launch.strip = 32;  // long strips read fewer rows twice, short ones make more threads
    while (launch.strip > 2 && threads_across * divide_up(steps_y, launch.strip) < GANOPS_ENOUGH_THREADS)
        launch.strip /= 2;
    const int64_t strips = divide_up(steps_y, launch.strip);
    launch.channel = Divisor(packs);
    launch.column = Divisor(columns);
    launch.height = Divisor(strips);
    launch.lanes = uint32_t(threads_across * strips);
    launch.wide = a.out_width % (X * Up) == 0 && launch.skip_x == 0 && is_aligned(a.y);
    const dim3 block(kFastThreads), grid(uint32_t(divide_up(launch.lanes, kFastThreads)));
    GANOPS_LAUNCH((upfirdn2d_fast_kernel<T, V, X, Up, Down>), grid, block, stream, launch);
}

// X steps side by side need fewer loads and instructions, but more registers, so that fewer threads run at once.
template <typename T, int V, int X, int XResampled, typename Stream>
void launch_fast(const UpfirdnLaunch& launch, Stream stream) {
    const UpfirdnArguments& a = launch.a;
    if (a.up_x == 2) {
        launch_fast<T, V, XResampled, 2, 1>(launch, stream);
    } else if (a.down_x == 2) {
        launch_fast<T, V, XResampled, 1, 2>(launch, stream);
    } else {
        launch_fast<T, V, X, 1, 1>(launch, stream);
    }
}

template <typename T>
bool has_fast_form(const UpfirdnArguments& a) {
    const bool equal = a.up_x == a.up_y && a.down_x == a.down_y;
    const bool known = (a.up_x == 1 && a.down_x <= 2) || (a.up_x == 2 && a.down_x == 1);
    return sizeof(T) <= 4 && a.separable && a.filter_width == 4 && equal && known;
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
            if (has_fast_form<T>(a)) {
                const bool aligned = is_aligned(launch.a.x) && is_aligned(launch.a.y);
                if (a.channels == 1) {
                    launch_fast<T, 1, 4, 2>(launch, stream);
                } else if (a.channels % 4 == 0 && aligned) {
                    launch_fast<T, 4, sizeof(T) == 2 ? 2 : 1, 1>(launch, stream);
                } else {
                    launch_fast<T, 1, 1, 1>(launch, stream);
                }
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
