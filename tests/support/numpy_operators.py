"""ONNX operators in plain numpy, fp32, for the independent interpreter. Only what the zoo needs, written for clarity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
F32 = np.float32


def _axes(x: Array, inputs: list[Any], attributes: dict[str, Any]) -> tuple[int, ...]:
    given = attributes.get("axes")
    if given is None and len(inputs) > 1 and inputs[1] is not None:
        given = [int(axis) for axis in inputs[1]]
    return tuple(range(x.ndim)) if not given else tuple(axis % x.ndim for axis in given)


def total(x: Array, inputs: list[Any], attributes: dict[str, Any]) -> tuple[Array, int]:
    """Return the sum that a reduction holds, and over how many elements."""
    axes = _axes(x, inputs, attributes)
    count = math.prod(x.shape[axis] for axis in axes)
    return x.sum(axis=axes, keepdims=bool(attributes.get("keepdims", 1)), dtype=F32), count


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(F32)


def _windows(x: Array, kernel: list[int], a: dict[str, Any], fill: float) -> Array:
    """Return [N, C, H', W', kh, kw]."""
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(x, tuple(kernel), axis=(2, 3))
    down, across = a.get("strides", [1, 1])
    return views[:, :, ::down, ::across]


def conv(x: Array, w: Array, b: Array | None, a: dict[str, Any]) -> Array:
    groups = a.get("group", 1)
    views = _windows(x, list(w.shape[2:]), a, 0.0)
    parts = []
    for view, kernel in zip(np.split(views, groups, 1), np.split(w, groups, 0), strict=True):
        flat = view.transpose(0, 2, 3, 1, 4, 5).reshape(*view.shape[:1], *view.shape[2:4], -1)
        parts.append(flat @ kernel.reshape(kernel.shape[0], -1).T)
    y = np.concatenate(parts, -1).transpose(0, 3, 1, 2)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


Step = Callable[[Array], Array]


def lstm(x: Array, w: Array, r: Array, b: Array, enter: Step, step: Step, hidden: int) -> tuple[Array, ...]:
    """`enter`: what a state becomes where it is multiplied; `step`: what it becomes where it is written."""
    ys, hs, cs = [], [], []
    for way in range(w.shape[0]):
        h = c = np.zeros((x.shape[1], hidden), F32)
        out: list[Any] = [None] * x.shape[0]
        for t in range(x.shape[0]) if way == 0 else reversed(range(x.shape[0])):
            gates = x[t] @ w[way].T + enter(h) @ r[way].T + b[way, : 4 * hidden] + b[way, 4 * hidden :]
            i, o, f, g = np.split(gates, 4, -1)
            fresh = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            c, h = step(fresh), step(sigmoid(o) * np.tanh(fresh))
            out[t] = h
        ys.append(np.stack(out))
        hs.append(h)
        cs.append(c)
    return np.stack(ys, 1), np.stack(hs), np.stack(cs)


def gru(x: Array, w: Array, r: Array, b: Array, enter: Step, step: Step, hidden: int) -> tuple[Array, ...]:
    """With `linear_before_reset`, as torch trains it."""
    ys, hs = [], []
    for way in range(w.shape[0]):
        h = np.zeros((x.shape[1], hidden), F32)
        out: list[Any] = [None] * x.shape[0]
        for t in range(x.shape[0]) if way == 0 else reversed(range(x.shape[0])):
            z1, r1, n1 = np.split(x[t] @ w[way].T + b[way, : 3 * hidden], 3, -1)
            z2, r2, n2 = np.split(enter(h) @ r[way].T + b[way, 3 * hidden :], 3, -1)
            z, reset = sigmoid(z1 + z2), sigmoid(r1 + r2)
            h = step((1 - z) * np.tanh(n1 + reset * n2) + z * h)
            out[t] = h
        ys.append(np.stack(out))
        hs.append(h)
    return np.stack(ys, 1), np.stack(hs)


def resize(x: Array, scales: Array, mode: str) -> Array:
    """Nearest is asymmetric with floor, linear is half_pixel; both per axis."""
    for axis, scale in enumerate(scales):
        size, made = x.shape[axis], int(x.shape[axis] * scale)
        if size == made:
            continue
        if mode == "nearest":
            x = np.take(x, np.floor(np.arange(made) / scale).astype(int), axis)
            continue
        at = np.clip((np.arange(made) + 0.5) / scale - 0.5, 0, size - 1).astype(F32)
        low = np.floor(at).astype(int)
        part = (at - low).astype(F32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, size - 1), axis) * part
    return x


def _normalise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + F32(epsilon))


def _gemm(i: list[Any], a: dict[str, Any]) -> Array:
    left = i[0].T if a.get("transA") else i[0]
    right = i[1].T if a.get("transB") else i[1]
    y = F32(a.get("alpha", 1.0)) * (left @ right)
    return y if len(i) < 3 else y + F32(a.get("beta", 1.0)) * i[2]


def _batch_norm(i: list[Any], a: dict[str, Any]) -> Array:
    x, scale, bias, mean, variance = i
    scale, bias, mean, variance = (item.reshape(1, -1, *[1] * (x.ndim - 2)) for item in (scale, bias, mean, variance))
    return (x - mean) / np.sqrt(variance + F32(a.get("epsilon", 1e-5))) * scale + bias


def _instance_norm(i: list[Any], a: dict[str, Any]) -> Array:
    shape = (1, -1, *[1] * (i[0].ndim - 2))
    y = _normalise(i[0], tuple(range(2, i[0].ndim)), a.get("epsilon", 1e-5))
    return y * i[1].reshape(shape) + i[2].reshape(shape)


def _slice(i: list[Any], a: dict[str, Any]) -> Array:
    cut = [slice(None)] * i[0].ndim
    for start, end, axis in zip(i[1], i[2], i[3], strict=True):
        cut[int(axis)] = slice(int(start), int(end))
    return i[0][tuple(cut)]


def _pad(i: list[Any], a: dict[str, Any]) -> Array:
    half = len(i[1]) // 2
    widths = [(int(i[1][k]), int(i[1][half + k])) for k in range(half)]
    return np.pad(i[0], widths, constant_values=i[2])


def _reshape(i: list[Any], a: dict[str, Any]) -> Array:
    return i[0].reshape([i[0].shape[k] if size == 0 else int(size) for k, size in enumerate(i[1])])


def _squeeze(i: list[Any], a: dict[str, Any]) -> Array:
    return np.squeeze(i[0], tuple(int(axis) for axis in i[1]))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(F32(alpha) * x + F32(beta), 0, 1)


def _clip(i: list[Any], a: dict[str, Any]) -> Array:
    low = i[1] if len(i) > 1 and i[1] is not None else -np.inf
    high = i[2] if len(i) > 2 and i[2] is not None else np.inf
    return np.minimum(np.maximum(i[0], low), high).astype(F32)


OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Abs": lambda i, a: np.abs(i[0]),
    "Add": lambda i, a: i[0] + i[1],
    "ArgMax": lambda i, a: np.expand_dims(np.argmax(i[0], a["axis"]), a["axis"]),
    "AveragePool": lambda i, a: _windows(i[0], a["kernel_shape"], a, 0.0).mean((-1, -2), dtype=F32),
    "BatchNormalization": _batch_norm,
    "Cast": lambda i, a: i[0].astype(F32),
    "Clip": _clip,
    "Concat": lambda i, a: np.concatenate(i, a["axis"]),
    "Conv": lambda i, a: conv(i[0], i[1], i[2] if len(i) > 2 else None, a),
    "Div": lambda i, a: i[0] / i[1],
    "Elu": lambda i, a: np.where(i[0] > 0, i[0], np.expm1(np.minimum(i[0], 0))),
    "Equal": lambda i, a: np.equal(i[0], i[1]),
    "Erf": lambda i, a: np.vectorize(math.erf, otypes=[F32])(i[0]),
    "Exp": lambda i, a: np.exp(i[0]),
    "Expand": lambda i, a: i[0] * np.ones([int(size) for size in i[1]], i[0].dtype),
    "Flatten": lambda i, a: i[0].reshape(i[0].shape[0], -1),
    "Gather": lambda i, a: np.take(i[0], i[1], a.get("axis", 0)),
    "GatherElements": lambda i, a: np.take_along_axis(i[0], i[1], a["axis"]),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, a: i[0].mean(tuple(range(2, i[0].ndim)), keepdims=True, dtype=F32),
    "Greater": lambda i, a: np.greater(i[0], i[1]),
    "HardSigmoid": lambda i, a: _hard_sigmoid(i[0], a["alpha"], a["beta"]),
    "HardSwish": lambda i, a: i[0] * _hard_sigmoid(i[0], 1 / 6, 0.5),
    "Identity": lambda i, a: i[0],
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": lambda i, a: _normalise(i[0], (-1,), a["epsilon"]) * i[1] + i[2],
    "LeakyRelu": lambda i, a: np.where(i[0] < 0, F32(a["alpha"]) * i[0], i[0]),
    "Less": lambda i, a: np.less(i[0], i[1]),
    "MatMul": lambda i, a: i[0] @ i[1],
    "Max": lambda i, a: np.maximum(i[0], i[1]),
    "MaxPool": lambda i, a: _windows(i[0], a["kernel_shape"], a, -np.inf).max((-1, -2)),
    "Mod": lambda i, a: np.mod(i[0], i[1]),
    "Mul": lambda i, a: i[0] * i[1],
    "Neg": lambda i, a: -i[0],
    "Pad": _pad,
    "Pow": lambda i, a: np.power(i[0], i[1]),
    "ReduceL2": lambda i, a: np.sqrt(total(i[0] * i[0], i, a)[0]),
    "ReduceMean": lambda i, a: total(i[0], i, a)[0] / F32(total(i[0], i, a)[1]),
    "ReduceSum": lambda i, a: total(i[0], i, a)[0],
    "Relu": lambda i, a: np.maximum(i[0], 0),
    "Reshape": _reshape,
    "Resize": lambda i, a: resize(i[0], i[2], a["mode"].decode()),
    "Sigmoid": lambda i, a: sigmoid(i[0]),
    "Slice": _slice,
    "Softmax": lambda i, a: softmax(i[0], a.get("axis", -1)),
    "Split": lambda i, a: np.split(i[0], a["num_outputs"], a["axis"]),
    "Sqrt": lambda i, a: np.sqrt(i[0]),
    "Squeeze": _squeeze,
    "Sub": lambda i, a: i[0] - i[1],
    "Tanh": lambda i, a: np.tanh(i[0]),
    "Transpose": lambda i, a: np.transpose(i[0], a["perm"]),
    "Unsqueeze": lambda i, a: np.expand_dims(i[0], tuple(int(axis) for axis in i[1])),
    "Where": lambda i, a: np.where(i[0], i[1], i[2]),
}
