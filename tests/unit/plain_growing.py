"""The growing networks once more, in plain numpy, one tap, channel and sample at a time: what the tests compare with.

Written from the papers' formulas, with nothing of ganops in it but the names of the weights. Float64. An image is
[N, C, H, W]; `p` holds a network's weights by name. Sizes of levels come from the constants' and noises' shapes alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def lrelu(x: Array) -> Array:
    return np.where(x > 0, x, 0.2 * x)


def add(x: Array, bias: Array) -> Array:
    return x + bias[None, :, None, None]


def conv(x: Array, weight: Array, pad: int, stride: int = 1) -> Array:
    """Correlation, tap by tap."""
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    kh, kw = weight.shape[2:]
    height, width = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    y = np.zeros([len(x), len(weight), height, width])
    for i in range(kh):
        for j in range(kw):
            y += np.einsum("nchw,oc->nohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return y[:, :, ::stride, ::stride]


def equalised(weight: Array, gain: float) -> Array:
    """Times gain / sqrt(fan_in)."""
    return weight * gain / np.sqrt(np.prod(weight.shape[1:]))


def double(x: Array) -> Array:
    return np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)


def halve(x: Array) -> Array:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def fir(x: Array, taps: list[float], pad: int, gain: float) -> Array:
    """Each channel filtered with the outer product of the taps, which are the same from both sides."""
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2 * gain
    channels = [conv(x[:, c : c + 1], kernel[None, None], pad) for c in range(x.shape[1])]
    return np.concatenate(channels, axis=1)


def normalise(x: Array, epsilon: float = 1e-8) -> Array:
    """Mean square 1 over the second axis."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon)


def mix(new: Array, old: Array, share: float) -> Array:
    return new * (1 - share) + old * share


def joint_mapping(p: Weights, z: Array, c: Array, layers: int, early: bool) -> Array:
    """StyleGAN1 (early): sqrt(2) in the weights; StyleGAN2: behind the activation. Learning rate multiplier 0.01."""
    x = z if "mapping.embed.weight" not in p else np.concatenate([z, c @ p["mapping.embed.weight"]], axis=1)
    x = normalise(x)
    for i in range(layers):
        weight, bias = (
            0.01 * p[f"mapping.layers.{i}.weight"] / np.sqrt(x.shape[1]),
            0.01 * p[f"mapping.layers.{i}.bias"],
        )
        if early:
            x = lrelu(np.sqrt(2) * (x @ weight.T) + bias)
        else:
            x = np.sqrt(2) * lrelu(x @ weight.T + bias)
    return x


def affine(p: Weights, name: str, w: Array) -> Array:
    weight = p[f"{name}.weight"]
    return w @ weight.T / np.sqrt(weight.shape[1]) + p[f"{name}.bias"]


def grown(
    names: list[str], lod: float, run: Callable[[int, Array | None], Array], rgb: Callable[[int, Array], Array]
) -> Array:
    """The image of a generator: only levels that exist at `lod`, the topmost one faded in."""
    top = len(names) - 1 - int(lod)
    features: list[Array] = []
    for level in range(top + 1):
        features.append(run(level, features[-1] if features else None))
    share = lod - int(lod)
    img = rgb(top, features[top])
    return img if share == 0 else mix(img, double(rgb(top - 1, features[top - 1])), share)


def stylegan1_epilogue(p: Weights, name: str, x: Array, w: Array) -> Array:
    """Noise, bias, leaky ReLU, then AdaIN sample by sample and channel by channel."""
    strength, noise = p[f"{name}.noise_strength"], p[f"{name}.noise_const"]
    styles = affine(p, f"{name}.affine", w)
    y = np.zeros_like(x)
    channels = x.shape[1]
    for n in range(len(x)):
        for ch in range(channels):
            features = lrelu(x[n, ch] + strength[ch] * noise + p[f"{name}.bias"][ch])
            features = (features - features.mean()) / np.sqrt(features.var() + 1e-8)
            y[n, ch] = features * (1 + styles[n, ch]) + styles[n, channels + ch]
    return y


def stylegan1_synthesis(p: Weights, names: list[str], ws: Array, lod: float) -> Array:
    def run(level: int, x: Array | None) -> Array:
        block = f"synthesis.blocks.{names[level]}"
        if x is None:
            const = np.repeat(p[f"{block}.const"][None], len(ws), axis=0)
            x = stylegan1_epilogue(p, f"{block}.epilogue", const, ws[:, 0])
        else:
            x = conv(double(x), equalised(p[f"{block}.conv0_up.conv.weight"], np.sqrt(2)), 1)
            x = stylegan1_epilogue(p, f"{block}.conv0_up.epilogue", fir(x, [1, 2, 1], 1, 1), ws[:, 2 * level])
        x = conv(x, equalised(p[f"{block}.conv1.conv.weight"], np.sqrt(2)), 1)
        return stylegan1_epilogue(p, f"{block}.conv1.epilogue", x, ws[:, 2 * level + 1])

    return grown(names, lod, run, lambda level, x: plain_rgb(p, f"synthesis.blocks.{names[level]}.to_rgb", x))


def plain_rgb(p: Weights, name: str, x: Array) -> Array:
    return add(conv(x, equalised(p[f"{name}.weight"], 1), 0), p[f"{name}.bias"])


def modulated(x: Array, weight: Array, styles: Array, demodulate: bool, up: bool) -> Array:
    """Sample by sample, with kernels of its own each. An enlarging one spreads every pixel over a 3x3 kernel."""
    images = []
    for image, style in zip(x, styles, strict=True):
        kernel = weight * style[None, :, None, None]
        if demodulate:
            kernel = kernel / np.sqrt((kernel**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        if not up:
            images.append(conv(image[None], kernel, kernel.shape[2] // 2))
            continue
        height, width = image.shape[1:]
        y = np.zeros([1, len(kernel), 2 * height + 1, 2 * width + 1])
        for i in range(3):
            for j in range(3):
                spread = np.einsum("chw,oc->ohw", image, kernel[:, :, i, j])
                y[0, :, i : i + 2 * height : 2, j : j + 2 * width : 2] += spread
        images.append(fir(y, [1, 3, 3, 1], 1, 4))
    return np.concatenate(images)


def stylegan2_synthesis(p: Weights, names: list[str], ws: Array, lod: float) -> Array:
    def layer(name: str, x: Array, w: Array, up: bool) -> Array:
        x = modulated(x, p[f"{name}.weight"], affine(p, f"{name}.affine", w), True, up)
        x = x + p[f"{name}.noise_strength"] * p[f"{name}.noise_const"]
        return np.sqrt(2) * lrelu(add(x, p[f"{name}.bias"]))

    def run(level: int, x: Array | None) -> Array:
        block = f"synthesis.blocks.{names[level]}"
        if x is None:
            return layer(f"{block}.conv", np.repeat(p[f"{block}.const"][None], len(ws), axis=0), ws[:, 0], False)
        x = layer(f"{block}.conv0_up", x, ws[:, 2 * level - 1], True)
        return layer(f"{block}.conv1", x, ws[:, 2 * level], False)

    def rgb(level: int, x: Array) -> Array:
        name = f"synthesis.blocks.{names[level]}.to_rgb"
        styles = affine(p, f"{name}.affine", ws[:, 2 * level + 1]) / np.sqrt(x.shape[1])
        return add(modulated(x, p[f"{name}.weight"], styles, False, False), p[f"{name}.bias"])

    return grown(names, lod, run, rgb)


def pggan_synthesis(p: Weights, names: list[str], w: Array, lod: float) -> Array:
    def layer(name: str, x: Array) -> Array:
        x = conv(x, equalised(p[f"{name}.weight"], np.sqrt(2)), 1)
        return normalise(lrelu(add(x, p[f"{name}.bias"])))

    def run(level: int, x: Array | None) -> Array:
        block = f"synthesis.blocks.{names[level]}"
        if x is None:
            height, width = map(int, names[0].split("x"))
            x = w @ equalised(p[f"{block}.dense.weight"], np.sqrt(2) / 4).T
            x = add(x.reshape(len(w), -1, height, width), p[f"{block}.dense.bias"])
            return layer(f"{block}.conv", normalise(lrelu(x)))
        return layer(f"{block}.conv1", layer(f"{block}.conv0_up", double(x)))

    return grown(names, lod, run, lambda level, x: plain_rgb(p, f"synthesis.blocks.{names[level]}.to_rgb", x))


def minibatch_std(x: Array, group: int) -> Array:
    """One map: members of a group are N / group apart."""
    N = len(x)
    group = min(group, N)
    maps = np.zeros([N, 1, *x.shape[2:]])
    for n in range(N):
        members = x[[m for m in range(N) if (m - n) % (N // group) == 0]]
        maps[n] = np.sqrt(members.var(axis=0) + 1e-8).mean()
    return np.concatenate([x, maps], axis=1)


def discriminator_outputs(p: Weights, names: list[str], img: Array, lod: float, kind: str) -> Array:
    """All outputs of a growing D, names from the image down; `kind` is "pggan", "stylegan1" or "stylegan2"."""

    def activate(x: Array, name: str) -> Array:
        if kind == "stylegan2":
            return np.sqrt(2) * lrelu(add(x, p[f"{name}.bias"]))
        return lrelu(add(x, p[f"{name}.bias"]))

    def kernel(name: str) -> Array:
        return equalised(p[f"{name}.weight"], 1 if kind == "stylegan2" else np.sqrt(2))

    def look(level: int, img: Array) -> Array:
        name = "head.from_rgb" if level == len(names) - 1 else f"blocks.{names[level]}.from_rgb"
        return activate(conv(img, kernel(name), 0), name)

    def block(level: int, x: Array) -> Array:
        name = f"blocks.{names[level]}"
        x = activate(conv(x, kernel(f"{name}.conv0"), 1), f"{name}.conv0")
        down = kernel(f"{name}.conv1_down")
        if kind == "stylegan2":
            x = conv(fir(x, [1, 3, 3, 1], 2, 1), down, 0, stride=2)
        elif kind == "stylegan1":
            x = halve(conv(fir(x, [1, 2, 1], 1, 1), down, 1))
        else:
            x = halve(conv(x, down, 1))
        return activate(x, f"{name}.conv1_down")

    top, share = int(lod), lod - int(lod)
    x = look(top, img)
    for level in range(top, len(names) - 1):
        x = block(level, x)
        if level == top and share:
            x = mix(x, look(level + 1, halve(img)), share)
    x = activate(conv(minibatch_std(x, 4), kernel("head.conv"), 1), "head.conv")
    x = x.reshape(len(x), -1) @ kernel("head.dense0").T
    x = activate(x[:, :, None, None], "head.dense0")[:, :, 0, 0]
    return x @ equalised(p["output.weight"], 1).T + p["output.bias"]
