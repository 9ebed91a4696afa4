"""One decoder by configuration: Llama, Mistral, Qwen shapes; layers scanned."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dareu_jax.errors import UserError
from dareu_jax.models import layers
from dareu_jax.parallel import along_batch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and dtypes of a decoder; letters as in ``[L, D, N, K, H, F, V]``."""

    vocab: int
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10_000.0
    rope_scaling: tuple | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = True
    sliding_window: int | None = None
    norm_eps: float = 1e-6
    dropout: float = 0.0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    remat: bool = False
    param_dtype: str = "float32"
    compute_dtype: str = "float32"

    def __post_init__(self):
        """Raises `UserError` when the heads cannot be grouped or rotated."""
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.heads = {self.heads} must divide by model.kv_heads = "
                f"{self.kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim = {self.head_dim} must be even")
        check_rope_scaling(self.rope_scaling)


LLAMA3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position"}
ROPE_SCALING = {"linear": {"factor"}, "llama3": LLAMA3}


def check_rope_scaling(scaling: tuple | None) -> None:
    """Raises `UserError` unless the fields are those of a known rule, as numbers."""
    if scaling is None:
        return
    rule = dict(scaling)
    wanted = ROPE_SCALING.get(str(rule.pop("type", None)))
    numbers = all(isinstance(value, int | float) for value in rule.values())
    if rule.keys() != wanted or not numbers:
        known = "; ".join(f"{k}: {sorted(v)}" for k, v in ROPE_SCALING.items())
        raise UserError(
            f"model.rope_scaling = {dict(scaling)} fits no known type with its "
            f"numbers; known: {known}"
        )


class KVCache(NamedTuple):
    """Keys and values of every layer, ``[L, B, K, S, H]``, written in place."""

    k: Array
    v: Array

    @classmethod
    def empty(cls, cfg: DecoderConfig, batch: int, slots: int) -> "KVCache":
        """Returns a cache of zeros with room for ``slots`` tokens."""
        shape = (cfg.layers, batch, cfg.kv_heads, slots, cfg.head_dim)
        dtype = jnp.dtype(cfg.compute_dtype)
        return cls(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    def put(self, k: Array, v: Array, layer: Array, slot: Array | int) -> "KVCache":
        """Writes ``k, v [B, K, T, H]`` of one layer from ``slot`` on."""
        at = (layer, 0, 0, slot, 0)
        put = jax.lax.dynamic_update_slice
        return KVCache(put(self.k, k[None], at), put(self.v, v[None], at))

    def of_layer(self, layer: Array) -> tuple[Array, Array]:
        """Keys and values ``[B, K, S, H]`` of one layer."""
        take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        return take(self.k, layer), take(self.v, layer)


def attend(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """softmax(q k / sqrt(H)) v ``[B, T, N, H]`` with grouped keys; float32 softmax.

    The weights are divided by their sum behind the product with v, where it is smaller
    (Dao et al., 2022), and queries that share keys are rows of one product. ``q [B, T,
    N, H]``; ``k, v [B, K, S, H]`` with N = K G; ``visible [B, T, S]`` bool.
    """
    b, t, n, h = q.shape
    kv, s = k.shape[1:3]
    q = jnp.moveaxis(q.reshape(b, t, kv, -1, h), 1, 3).reshape(b, kv, -1, h)
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, kv, -1, t, s) / jnp.sqrt(jnp.float32(h))
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest).reshape(b, kv, -1, s)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype).reshape(b, kv, -1, t, h)
    return jnp.moveaxis(out, 3, 1).reshape(b, t, n, h)


def in_window(window: int, shape: tuple[int, int], slot: Array | int) -> Array:
    """``[1, T, S]`` bool: true where a key is at most ``window - 1`` tokens back.

    As in Mistral (Jiang et al., 2023). Slots of one row are contiguous, so their
    distance is the tokens' distance; ``slot`` is that of the first of the T tokens.
    """
    t, s = (jnp.arange(size, dtype=jnp.int32) for size in shape)
    return ((slot + t)[:, None] - s[None, :] < window)[None]


def linear_of(cfg: DecoderConfig, op: layers.DenseOp) -> functools.partial:
    """`Dense` as every layer of this decoder has it."""
    return functools.partial(
        layers.Dense,
        param_dtype=cfg.param_dtype,
        op=op,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
    )


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional cache."""

    cfg: DecoderConfig
    op: layers.DenseOp = layers.dense

    @nn.compact
    def __call__(self, x, positions, visible, cache, layer, slot):
        """Returns ``([B, T, D], cache)``; new keys go to ``layer`` and ``slot``."""
        cfg = self.cfg
        linear = linear_of(cfg, self.op)

        def heads(name: str, count: int) -> Array:
            y = linear(count * cfg.head_dim, cfg.qkv_bias, name=name)(x)
            return y.reshape(*x.shape[:2], count, cfg.head_dim)

        q = heads("q", cfg.heads)
        k, v = heads("k", cfg.kv_heads), heads("v", cfg.kv_heads)
        if cfg.qk_norm:
            q = layers.RMSNorm(cfg.norm_eps, cfg.param_dtype, name="q_norm")(q)
            k = layers.RMSNorm(cfg.norm_eps, cfg.param_dtype, name="k_norm")(k)
        freq = layers.rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        q, k = layers.rotate(q, positions, freq), layers.rotate(k, positions, freq)
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None:
            cache = cache.put(k, v, layer, slot)
            if visible.shape[-1] > x.shape[1]:
                k, v = cache.of_layer(layer)
        mixed = attend(q, k, v, visible).reshape(*x.shape[:2], -1)
        out = linear(cfg.embed, scale=0.5 / cfg.layers, name="o")
        return out(mixed), cache


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    cfg: DecoderConfig
    op: layers.DenseOp = layers.dense

    @nn.compact
    def __call__(self, carry, layer, positions, visible, slot):
        """Returns ``((x [B, T, D], cache), None)`` for a scan over layers."""
        cfg, (x, cache) = self.cfg, carry

        def norm(name: str) -> layers.RMSNorm:
            return layers.RMSNorm(cfg.norm_eps, cfg.param_dtype, name=name)

        still = cfg.dropout == 0.0 or not self.has_rng("dropout")
        drop = nn.Dropout(cfg.dropout, deterministic=still, name="drop")
        attention = Attention(cfg, self.op, name="attention")
        mixed, cache = attention(
            norm("attention_norm")(x), positions, visible, cache, layer, slot
        )
        x = along_batch(x + drop(mixed))
        linear = linear_of(cfg, self.op)
        mlp = layers.GatedMLP(cfg.ffn, 0.5 / cfg.layers, linear, name="mlp")
        return (along_batch(x + drop(mlp(norm("mlp_norm")(x)))), cache), None


class Decoder(nn.Module):
    """Token embedding, scanned layers, final norm, (tied) unembedding."""

    cfg: DecoderConfig
    op: layers.DenseOp = layers.dense

    def setup(self):
        """Declares the embedding, the layer stack, the norm and the head."""
        cfg = self.cfg
        self.embed = nn.Embed(
            cfg.vocab,
            cfg.embed,
            param_dtype=jnp.dtype(cfg.param_dtype),
            embedding_init=nn.initializers.normal(cfg.embed**-0.5),
        )
        body = nn.remat(Layer, prevent_cse=False) if cfg.remat else Layer
        stack = nn.scan(
            body,
            variable_axes={"params": 0, layers.SLOTS: 0},
            variable_broadcast=layers.HELD,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.layers,
        )
        self.layers = stack(cfg, self.op)
        self.final_norm = layers.RMSNorm(cfg.norm_eps, cfg.param_dtype)
        if not cfg.tied:
            self.lm_head = linear_of(cfg, self.op)(cfg.vocab)

    def __call__(self, tokens, positions, visible, cache=None, slot=0):
        """Return ``(hidden [B, T, D], cache)``; dropout is on with its rng.

        ``visible [B, T, S]`` says which slots each token may look at; where S = T the
        tokens look at each other alone. With a cache, this call's keys go to ``slot``.
        """
        x, cache = self.stream(tokens, positions, visible, cache, slot)
        return self.final_norm(x), cache

    def stream(self, tokens, positions, visible, cache=None, slot=0):
        """Runs the layers alone: hidden states before the final norm, and the cache."""
        if self.cfg.sliding_window is not None:
            visible &= in_window(self.cfg.sliding_window, visible.shape[1:], slot)
        x = jnp.take(self.embed.embedding, tokens, axis=0)
        x = along_batch(x.astype(jnp.dtype(self.cfg.compute_dtype)))
        numbers = jnp.arange(self.cfg.layers, dtype=jnp.int32)
        (x, cache), _ = self.layers((x, cache), numbers, positions, visible, slot)
        return x, cache

    def unembed(self, hidden: Array) -> Array:
        """Maps hidden states ``[..., D]`` to float32 logits ``[..., V]``."""
        if self.cfg.tied:
            kernel = self.embed.embedding.astype(hidden.dtype).T
            return self.op(hidden, kernel, None)
        return self.lm_head(hidden).astype(jnp.float32)

    def init_all(self, tokens, positions, visible):
        """Touches every parameter once; used to initialise."""
        return self.unembed(self(tokens, positions, visible)[0])
