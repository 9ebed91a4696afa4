"""Layers of the decoder: dense, norms, rotary embedding, feed-forward layers."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array
DenseOp = Callable[[Array, Array, Any], Array]
SLOTS, HELD = "slots", "held"
"""Variable collections by the kernel's path: what a product's op is given of one layer,
and what it is given whole, of every layer."""


PRODUCT = "product"
"""The name, for a remat policy, of what a dense layer returns."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


def dense(x: Array, kernel: Array, slot: Any = None) -> Array:
    """y = x W in float32 for ``x [..., D]``, ``kernel [D, F]``: the one product op.

    Every attributed matrix product of the model goes through this function's
    signature, so that a gradient kernel can put its own in its place; ``slot`` is what
    such an op reads and, by its cotangent, writes.
    """
    del slot
    return jnp.einsum("...d,df->...f", x, kernel, preferred_element_type=jnp.float32)


class Dense(nn.Module):
    """A matrix product with optional bias, plus that of adapters where it has some."""

    features: int
    use_bias: bool = False
    scale: float = 1.0
    param_dtype: str = "float32"
    op: DenseOp = dense
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``x [..., D]`` to ``[..., F]`` in the dtype of ``x``."""
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "normal")
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.dtype(self.param_dtype))
        y = self._product(x, kernel, "kernel")
        if self.use_bias:
            zeros, dtype = nn.initializers.zeros, jnp.dtype(self.param_dtype)
            bias = self.param("bias", zeros, (self.features,), dtype)
            y = y + bias.astype(x.dtype)
        if self.has_variable("params", "lora_a"):
            y = y + self._low_rank(x)
        return checkpoint_name(y, PRODUCT)

    def _product(self, x: Array, kernel: Array, name: str) -> Array:
        """The product with the parameter ``name``, in the dtype of ``x``."""
        own: Any = self.get_variable(SLOTS, name)
        slot: Any = None if own is None else (self.get_variable(HELD, name), own)
        return self.op(x, kernel.astype(x.dtype), slot).astype(x.dtype)

    def _low_rank(self, x: Array) -> Array:
        """(alpha / r) x A B, with dropout on x when a ``dropout`` rng is given."""
        a: Array = self.get_variable("params", "lora_a")
        b: Array = self.get_variable("params", "lora_b")
        still = self.lora_dropout == 0.0 or not self.has_rng("dropout")
        drop = nn.Dropout(self.lora_dropout, deterministic=still, name="lora_drop")
        scale = self.lora_alpha / a.shape[-1]
        low = self._product(drop(x), a, "lora_a")
        return (self._product(low, b, "lora_b") * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 (Zhang and Sennrich, 2019).

    With ``plus_one`` the factor is 1 + scale, as in Gemma.
    """

    eps: float = 1e-6
    param_dtype: str = "float32"
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of ``x``; returns the dtype of ``x``."""
        init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(self.param_dtype))
        wide = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        normed, factor = wide * rms, scale.astype(jnp.float32)
        return (normed * (1.0 + factor if self.plus_one else factor)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * scale + bias, computed in float32 (Ba et al., 2016)."""

    eps: float = 1e-5
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of ``x``; returns the dtype of ``x``."""
        (size, dtype), init = (
            (x.shape[-1:], jnp.dtype(self.param_dtype)),
            nn.initializers,
        )
        scale = self.param("scale", init.ones, size, dtype).astype(jnp.float32)
        bias = self.param("bias", init.zeros, size, dtype).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        std = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (wide * std * scale + bias).astype(x.dtype)


def softcapped(x: Array, cap: float | None) -> Array:
    """c tanh(x / c), or ``x`` where there is no cap (Bello et al., 2016)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, 2020)."""

    ffn: int
    out_scale: float
    linear: Callable[..., Dense] = Dense
    activation: str = "silu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``x [B, T, D]`` to ``[B, T, D]``."""
        gate = ACTIVATIONS[self.activation](self.linear(self.ffn, name="gate")(x))
        up = self.linear(self.ffn, name="up")(x)
        down = self.linear(x.shape[-1], scale=self.out_scale, name="down")
        return down(gate * up)


class PlainMLP(nn.Module):
    """down(act(up(x))) (Vaswani et al., 2017)."""

    ffn: int
    out_scale: float
    linear: Callable[..., Dense] = Dense
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``x [B, T, D]`` to ``[B, T, D]``."""
        up = self.linear(self.ffn, name="up")(x)
        down = self.linear(x.shape[-1], scale=self.out_scale, name="down")
        return down(ACTIVATIONS[self.activation](up))


def rope_frequencies(head_dim: int, theta: float, scaling: tuple | None) -> Array:
    """Returns the rotary frequencies ``[H/2]``: theta^(-2i/H), scaled.

    ``scaling`` is None, ``(("type", "linear"), ("factor", f))`` or the four ``llama3``
    fields (factor, low_freq_factor, high_freq_factor, original_max_position).
    """
    freq = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return freq
    rule = dict(scaling)
    if rule["type"] == "linear":
        return freq / rule["factor"]
    wavelength = 2 * math.pi / freq
    low = rule["original_max_position"] / rule["low_freq_factor"]
    high = rule["original_max_position"] / rule["high_freq_factor"]
    smooth = (rule["original_max_position"] / wavelength - rule["low_freq_factor"]) / (
        rule["high_freq_factor"] - rule["low_freq_factor"]
    )
    blended = (1 - smooth) * freq / rule["factor"] + smooth * freq
    scaled = jnp.where(wavelength > low, freq / rule["factor"], blended)
    return jnp.where(wavelength < high, freq, scaled)


def rotate(x: Array, positions: Array, freq: Array) -> Array:
    """Rotate ``x [B, T, N, H]`` at ``positions [B, T]`` by ``freq [R/2]``.

    Rotary embedding (Su et al., 2021), half-split layout as in Llama. Dimensions from
    R on stay as they are.
    """
    if (size := 2 * len(freq)) < x.shape[-1]:
        turned = rotate(x[..., :size], positions, freq)
        return jnp.concatenate([turned, x[..., size:]], axis=-1)
    angle = positions[..., None].astype(jnp.float32) * freq  # [B, T, H/2]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return out.astype(x.dtype)
