"""Tiny GGUF files of the models of make_golden.py, written as llama.cpp writes them."""

import json

import gguf
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from make_golden import shapes_of, tensor

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
EOS = "<|im_end|>"
TOKENS = ["<pad>", "<bos>", EOS, "<|im_start|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def gguf_name(name):
    """The GGUF name of a Hugging Face tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def permuted(value, heads):
    """Rows as convert_hf_to_gguf.py orders those of llama's queries and keys."""
    rows = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return rows.swapaxes(1, 2).reshape(value.shape)


def stored(value, kind):
    """A tensor's bytes in the file, and what they are worth."""
    if kind == Kind.F32:
        return value, value
    data = quantize(value, kind)
    return data, dequantize(data, kind)


def kinds_of(names, kinds):
    """One of ``kinds`` after the other for matrices; vectors are F32."""
    matrices = [n for n in names if not n.endswith(("norm.weight", "bias"))]
    return {n: kinds[i % len(kinds)] for i, n in enumerate(matrices)}


def byte_level():
    """A byte-level vocabulary and the pairs that merge, trained on a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["user assistant the model says what the reader knows in 1999 and 2024"]
    backend.train_from_iterator(text * 20, trainer)
    held = json.loads(backend.to_str())["model"]
    tokens = sorted(held["vocab"], key=held["vocab"].get)
    return tokens, held["merges"]


def add_metadata(writer, config, tokens, **changes):
    """The keys that llama.cpp writes for ``config``; None leaves a key out."""
    arch = ARCHITECTURES[config["model_type"]]
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    keys = {
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": float(theta),
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.vocab_size": config["vocab_size"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.token_type": [3] * len(TOKENS) + [1] * (len(tokens) - 4),
        "tokenizer.ggml.tokens": tokens,
        **changes,
    }
    write = {
        bool: "bool",
        int: "uint32",
        float: "float32",
        str: "string",
        list: "array",
    }
    for key, value in keys.items():
        if value is not None:
            getattr(writer, f"add_{write[type(value)]}")(key, value)


def make_gguf(
    path,
    config,
    kinds=(Kind.F32,),
    arch=None,
    extra=(),
    drop=(),
    vocabulary=None,
    **changes,
):
    """Write a GGUF file of ``config``; return what its tensors are worth, by HF name.

    ``extra`` are more tensors by GGUF name, ``drop`` names of those left out,
    ``vocabulary`` tokens and pairs that merge, and ``changes`` keys of the metadata.
    """
    arch = arch or ARCHITECTURES[config["model_type"]]
    tokens, pairs = vocabulary or byte_level()
    tokens = tokens + [f"unused{n}" for n in range(config["vocab_size"] - len(tokens))]
    merges = [" ".join(pair) for pair in pairs]
    writer = gguf.GGUFWriter(str(path), arch)
    held = {"tokenizer.ggml.merges": merges, **changes}
    add_metadata(writer, config, tokens[: config["vocab_size"]], **held)
    shapes, worth = shapes_of(config), {}
    kind_of = kinds_of(shapes, kinds)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, shape in shapes.items():
        kind, value = kind_of.get(name, Kind.F32), tensor(name, shape)
        _, worth[name] = stored(value, kind)
        side = name.split(".")[-2].removesuffix("_proj")
        if config["model_type"] == "llama" and side in heads:
            value = permuted(value, heads[side])
        if gguf_name(name) not in drop:
            data, _ = stored(value, kind)
            writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    for name, value in dict(extra).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth
