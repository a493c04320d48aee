"""Activation functions, of one number and of a row."""

from __future__ import annotations

import math

from segue.kernels.cpu.ops.base import HALF, ONE, TWO, ZERO, f32, fast
from segue.kernels.cpu.program import (
    ELU1,
    EXP,
    GELU,
    GELU_TANH,
    LOG_SIGMOID,
    RECIPROCAL,
    RELU,
    RELU2,
    SIGMOID,
    SILU,
    SOFTPLUS,
    TANH,
)
from segue.kernels.cpu.simd import exp, floats

ROOT_HALF, TANH_SCALE, TANH_CUBE = f32(math.sqrt(0.5)), f32(math.sqrt(2 / math.pi)), f32(0.044715)


@fast
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@fast
def tanh(x):
    return ONE - TWO / (ONE + exp(TWO * x))


@fast
def softplus(x):
    """log(1 + e^x): log(1 + z) is 2 atanh(z / (2 + z)), whose series converges fast for z = e^-|x|."""
    z = exp(-abs(x))
    s = z / (TWO + z)
    q = s * s
    series = f32(1 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = series * q + f32(1 / odd)
    return max(x, ZERO) + TWO * s * series


@fast
def erf(x):
    """Abramowitz and Stegun 7.1.26, absolute error below 2e-7."""
    z = abs(x)
    t = ONE / (ONE + f32(0.3275911) * z)
    p = ((((f32(1.061405429) * t - f32(1.453152027)) * t + f32(1.421413741)) * t - f32(0.284496736)) * t
         + f32(0.254829592)) * t
    y = ONE - p * exp(-z * z)
    return y if x >= ZERO else -y


@fast
def activate(address, size, kind):
    """In place."""
    y = floats(address, size)
    if kind == SILU:
        for j in range(size):
            y[j] = y[j] * sigmoid(y[j])
    elif kind == GELU:
        for j in range(size):
            y[j] = HALF * y[j] * (ONE + erf(y[j] * ROOT_HALF))
    elif kind == GELU_TANH:
        for j in range(size):
            y[j] = y[j] * sigmoid(TWO * TANH_SCALE * (y[j] + TANH_CUBE * y[j] * y[j] * y[j]))
    elif kind == RELU:
        for j in range(size):
            y[j] = max(y[j], ZERO)
    elif kind == RELU2:
        for j in range(size):
            y[j] = max(y[j], ZERO) * max(y[j], ZERO)
    elif kind == SIGMOID:
        for j in range(size):
            y[j] = sigmoid(y[j])
    elif kind == TANH:
        for j in range(size):
            y[j] = tanh(y[j])
    elif kind == EXP:
        for j in range(size):
            y[j] = exp(y[j])
    elif kind == SOFTPLUS:
        for j in range(size):
            y[j] = softplus(y[j])
    elif kind == LOG_SIGMOID:
        for j in range(size):
            y[j] = -softplus(-y[j])
    elif kind == ELU1:
        for j in range(size):
            y[j] = exp(min(y[j], ZERO)) + max(y[j], ZERO)
    elif kind == RECIPROCAL:
        for j in range(size):
            y[j] = ONE / y[j]
