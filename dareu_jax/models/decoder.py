"""One decoder by configuration, for all families; layers scanned."""

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
    """Shape and dtypes of a decoder; letters as in ``[L, D, N, K, H, F, V]``.

    Attributes:
      activation: of the feed-forward layer, which is ``gated`` or of two products.
      norm: ``rms``, ``rms_plus_one`` (scale 1 + w) or ``layer``, with a bias.
      norm_place: ``before`` a block, ``after`` it, or ``both``.
      parallel_residual: attention and feed-forward layer read the same stream.
      qk_norm: queries and keys are normalised, each head or ``qk_norm_whole`` alike.
      rotary_share: of a head's dimensions, those that positions rotate.
      rotated: which layers know positions at all; None: every layer.
      windowed: which layers have the ``sliding_window``; None: every layer.
      window_rope_theta: of windowed layers, where they have their own.
      score_dim: attention scores are divided by its root; None: ``head_dim``.
      score_softcap: c of c tanh(score / c); ``logit_softcap``: of the logits.
      scaled_embedding: embeddings are multiplied by the root of ``embed``.
      family: whose folder it was read from; export writes the same.
    """

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
    activation: str = "silu"
    gated: bool = True
    norm: str = "rms"
    norm_place: str = "before"
    parallel_residual: bool = False
    qk_norm_whole: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    rotary_share: float = 1.0
    rotated: tuple[bool, ...] | None = None
    windowed: tuple[bool, ...] | None = None
    window_rope_theta: float | None = None
    score_dim: int | None = None
    score_softcap: float | None = None
    logit_softcap: float | None = None
    scaled_embedding: bool = False
    family: str | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        """Raises `UserError` when the heads cannot be grouped or rotated."""
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.heads = {self.heads} must divide by model.kv_heads = "
                f"{self.kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim = {self.head_dim} must be even")
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise UserError(
                f"model.rotary_share = {self.rotary_share} of {self.head_dim} "
                "dimensions must be an even number of them"
            )
        check_rope_scaling(self.rope_scaling)
        _check_choices(self)

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that positions rotate."""
        return int(self.head_dim * self.rotary_share)

    def first(self, layers: int) -> "DecoderConfig":
        """Return the decoder of the first ``layers`` alone."""
        rotated, windowed = (x and x[:layers] for x in (self.rotated, self.windowed))
        return dataclasses.replace(
            self, layers=layers, rotated=rotated, windowed=windowed
        )


CHOICES = {
    "activation": tuple(layers.ACTIVATIONS),
    "norm": ("rms", "rms_plus_one", "layer"),
    "norm_place": ("before", "after", "both"),
}


def _check_choices(cfg: DecoderConfig) -> None:
    """Raise `UserError` for an unknown name, or layers without a word about them."""
    for name, known in CHOICES.items():
        if (value := getattr(cfg, name)) not in known:
            raise UserError(f"model.{name} = {value!r}; known: {', '.join(known)}")
    for name in ("rotated", "windowed"):
        if len(getattr(cfg, name) or range(cfg.layers)) != cfg.layers:
            raise UserError(f"model.{name} must say something of {cfg.layers} layers")
    if cfg.windowed is not None and cfg.sliding_window is None:
        raise UserError("model.windowed needs model.sliding_window")


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


def attend(
    q: Array,
    k: Array,
    v: Array,
    visible: Array,
    score_dim: int | None = None,
    softcap: float | None = None,
) -> Array:
    """softmax(q k / sqrt(H)) v ``[B, T, N, H]`` with grouped keys; float32 softmax.

    The weights are divided by their sum behind the product with v, where it is smaller
    (Dao et al., 2022), and queries that share keys are rows of one product. ``q [B, T,
    N, H]``; ``k, v [B, K, S, H]`` with N = K G; ``visible [B, T, S]`` bool. The root
    is that of ``score_dim`` where it is given; ``softcap`` bounds the scores.
    """
    b, t, n, h = q.shape
    kv, s = k.shape[1:3]
    q = jnp.moveaxis(q.reshape(b, t, kv, -1, h), 1, 3).reshape(b, kv, -1, h)
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, kv, -1, t, s) / jnp.sqrt(jnp.float32(score_dim or h))
    scores = layers.softcapped(scores, softcap)
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


def norm_of(cfg: DecoderConfig, name: str | None = None) -> nn.Module:
    """The normalisation that this decoder has everywhere."""
    if cfg.norm == "layer":
        return layers.LayerNorm(cfg.norm_eps, cfg.param_dtype, name=name)
    plus_one = cfg.norm == "rms_plus_one"
    return layers.RMSNorm(cfg.norm_eps, cfg.param_dtype, plus_one, name=name)


def frequencies(cfg: DecoderConfig, layer: Array) -> Array:
    """Rotary frequencies ``[R/2]`` of a layer, all 0 where it knows no positions."""
    freq = layers.rope_frequencies(cfg.rotary_dim, cfg.rope_theta, cfg.rope_scaling)
    if cfg.window_rope_theta is not None and cfg.sliding_window is not None:
        own = layers.rope_frequencies(cfg.rotary_dim, cfg.window_rope_theta, None)
        windowed = cfg.windowed or (True,) * cfg.layers
        freq = jnp.where(jnp.asarray(windowed)[layer], own, freq)
    if cfg.rotated is not None:
        freq = jnp.where(jnp.asarray(cfg.rotated)[layer], freq, 0.0)
    return freq


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
            if cfg.qk_norm and cfg.qk_norm_whole and name != "v":
                y = norm_of(cfg, f"{name}_norm")(y)
            return y.reshape(*x.shape[:2], count, cfg.head_dim)

        q = heads("q", cfg.heads)
        k, v = heads("k", cfg.kv_heads), heads("v", cfg.kv_heads)
        if cfg.qk_norm and not cfg.qk_norm_whole:
            q, k = norm_of(cfg, "q_norm")(q), norm_of(cfg, "k_norm")(k)
        freq = frequencies(cfg, layer)
        q, k = layers.rotate(q, positions, freq), layers.rotate(k, positions, freq)
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None:
            cache = cache.put(k, v, layer, slot)
            if visible.shape[-1] > x.shape[1]:
                k, v = cache.of_layer(layer)
        if cfg.windowed is not None and cfg.sliding_window is not None:
            whole = ~jnp.asarray(cfg.windowed)[layer]
            visible &= in_window(cfg.sliding_window, visible.shape[1:], slot) | whole
        mixed = attend(q, k, v, visible, cfg.score_dim, cfg.score_softcap)
        out = linear(cfg.embed, cfg.o_bias, scale=0.5 / cfg.layers, name="o")
        return out(mixed.reshape(*x.shape[:2], -1)), cache


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); norms where the shape says."""

    cfg: DecoderConfig
    op: layers.DenseOp = layers.dense

    @nn.compact
    def __call__(self, carry, layer, positions, visible, slot):
        """Returns ``((x [B, T, D], cache), None)`` for a scan over layers."""
        cfg, (x, cache) = self.cfg, carry

        def norm(name: str, y: Array) -> Array:
            skipped = "after" if name.endswith("_norm") else "before"
            return y if cfg.norm_place == skipped else norm_of(cfg, name)(y)

        still = cfg.dropout == 0.0 or not self.has_rng("dropout")
        drop = nn.Dropout(cfg.dropout, deterministic=still, name="drop")
        attention = Attention(cfg, self.op, name="attention")
        mixed, cache = attention(
            norm("attention_norm", x), positions, visible, cache, layer, slot
        )
        mixed = along_batch(x + drop(norm("attention_norm_after", mixed)))
        read = x if cfg.parallel_residual else mixed
        mlp = feed_forward(cfg, self.op)(norm("mlp_norm", read))
        return (along_batch(mixed + drop(norm("mlp_norm_after", mlp))), cache), None


def feed_forward(cfg: DecoderConfig, op: layers.DenseOp) -> nn.Module:
    """The feed-forward layer, gated or plain."""
    kind = layers.GatedMLP if cfg.gated else layers.PlainMLP
    linear = functools.partial(linear_of(cfg, op), use_bias=cfg.mlp_bias)
    return kind(cfg.ffn, 0.5 / cfg.layers, linear, cfg.activation, name="mlp")


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
            check_constancy_invariants=False,  # which would trace a layer twice
        )
        self.layers = stack(cfg, self.op)
        self.final_norm = norm_of(cfg)
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
        cfg = self.cfg
        if cfg.sliding_window is not None and cfg.windowed is None:
            visible &= in_window(cfg.sliding_window, visible.shape[1:], slot)
        x = jnp.take(self.embed.embedding, tokens, axis=0)
        x = along_batch(x.astype(jnp.dtype(cfg.compute_dtype)))
        if cfg.scaled_embedding:
            x = x * jnp.asarray(cfg.embed**0.5, x.dtype)
        numbers = jnp.arange(cfg.layers, dtype=jnp.int32)
        (x, cache), _ = self.layers((x, cache), numbers, positions, visible, slot)
        return x, cache

    def unembed(self, hidden: Array) -> Array:
        """Maps hidden states ``[..., D]`` to float32 logits ``[..., V]``."""
        if self.cfg.tied:
            kernel = self.embed.embedding.astype(hidden.dtype).T
            logits = self.op(hidden, kernel, None)
        else:
            logits = self.lm_head(hidden).astype(jnp.float32)
        return layers.softcapped(logits, self.cfg.logit_softcap)

    def init_all(self, tokens, positions, visible):
        """Touches every parameter once; used to initialise."""
        return self.unembed(self(tokens, positions, visible)[0])
