"""A GGUF file's tokenizer as a Hugging Face folder, with the ids of transformers."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError

Metadata = Mapping[str, Any]
KEY = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4
"""Values of ``token_type``: special, and taken whole but not special."""
REMEDY = "give the model's own tokenizer folder with --tokenizer"
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Tokens that end an answer: of a text, of a turn, of a message."""
BROKEN = (Exception, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What building from broken lists raises, of no class below these."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_LIKE = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "dbrx",
    "smaug-bpe",
)
SPLITS = {
    **dict.fromkeys(LLAMA3_LIKE, LLAMA3_SPLIT),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), QWEN2_SPLIT
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie"), GPT4O_SPLIT),
    "tekken": TEKKEN_SPLIT,
}
"""``pre`` -> how text is cut before it is merged; others: as in GPT-2."""
GPT2_LIKE = ("gpt-2", "phi-2", "olmo", "mpt")


def write_tokenizer(
    metadata: Metadata, folder: Path, where: str, say: Callable[[str], object]
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of a GGUF file."""
    kind = metadata.get(f"{KEY}model")
    tokens = metadata.get(f"{KEY}tokens")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list):
        raise UserError(
            f"{where}: tokenizer.ggml.model = {kind!r} is not supported; known: gpt2, "
            f"llama; {REMEDY}"
        )
    config = tokenizer_config(metadata, where)
    try:
        _check_lengths(metadata)
        backend = _byte_level(metadata) if kind == "gpt2" else _sentencepiece(metadata)
        _add_special(backend, metadata, config)
    except Exception as error:  # the tokenizers package raises nothing more special
        if type(error) not in BROKEN:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{where}: its tokenizer is broken ({reason}); {REMEDY}"
        ) from None
    for sentence in _doubts(metadata):
        say(f"{where}: {sentence}")
    backend.save(str(folder / "tokenizer.json"))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _check_lengths(metadata: Metadata) -> None:
    """Raise `ValueError` unless lists of one entry for each token are as long."""
    count = len(metadata[f"{KEY}tokens"])
    for name in ("token_type", "scores"):
        if (found := len(metadata.get(f"{KEY}{name}", ())) or count) != count:
            raise ValueError(f"{name} has {found} entries for {count} tokens")


def tokenizer_config(metadata: Metadata, where: str) -> dict[str, Any]:
    """Return ``tokenizer_config.json``: special tokens, BOS rule, chat template."""
    tokens, kind = metadata[f"{KEY}tokens"], metadata[f"{KEY}model"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get(f"{KEY}add_bos_token", kind == "llama"),
        "add_eos_token": metadata.get(f"{KEY}add_eos_token", False),
    }
    for name, key in SPECIAL.items():
        if (token := metadata.get(f"{KEY}{key}")) is None:
            continue
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise UserError(
                f"{where}: {KEY}{key} = {token}, but there are {len(tokens)} tokens"
            )
        config[name] = tokens[token]
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """Return ``generation_config.json``: every token that ends an answer."""
    ids = [metadata.get(f"{KEY}{name}") for name in ENDS]
    return {"eos_token_id": list(dict.fromkeys(x for x in ids if x is not None))}


def check_tokens(metadata: Metadata, tokens: Sequence[str | None], where: str) -> None:
    """Raise `UserError` where another tokenizer's tokens are not those of the file."""
    wanted = metadata.get(f"{KEY}tokens", ())
    pairs = [(n, a, b) for n, (a, b) in enumerate(zip(wanted, tokens)) if a != b]
    if len(pairs) > len(wanted) // 50:
        at, here, there = pairs[0]
        raise UserError(
            f"{where}: the tokenizer is another model's: {len(pairs)} of {len(wanted)} "
            f"tokens differ, token {at} is {here!r} in the file and {there!r} there"
        )


def _byte_level(metadata: Metadata) -> Any:
    """Return byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if f"{KEY}merges" not in metadata:
        raise ValueError("it has no merges")
    merges = [tuple(pair.split(" ")) for pair in metadata[f"{KEY}merges"]]
    backend = Tokenizer(models.BPE(vocab=_byte_spelled(metadata), merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split := SPLITS.get(metadata.get(f"{KEY}pre", "")):
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_spelled(metadata: Metadata) -> dict[str, int]:
    """Return ``{token: id}``; what is not spelled in the alphabet of bytes becomes so.

    A special token keeps its spelling.
    """
    alphabet, special = byte_alphabet(), _special_ids(metadata)
    letters, vocab = set(alphabet.values()), {}
    for index, token in enumerate(metadata[f"{KEY}tokens"]):
        if index not in special and not set(token) <= letters:
            token = "".join(alphabet[byte] for byte in token.encode("utf-8"))
        vocab[token] = index
    return vocab


@functools.cache
def byte_alphabet() -> dict[int, str]:
    """Return the letter that byte-level BPE writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    return letters | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _sentencepiece(metadata: Metadata) -> Any:
    """Return SentencePiece's BPE, as Llama 2, Mistral and Gemma have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens, gemma = metadata[f"{KEY}tokens"], _is_gemma(metadata)
    if gemma:  # runs of spaces are stored as spaces
        tokens = ["▁" * len(t) if " " in t and not t.strip() else t for t in tokens]
    vocab = {token: index for index, token in enumerate(tokens)}
    scores = {token: -index for index, token in enumerate(tokens)}
    if not gemma and f"{KEY}merges" not in metadata:
        scores = dict(zip(tokens, metadata[f"{KEY}scores"], strict=True))
    merges = [tuple(pair.split(" ")) for pair in metadata.get(f"{KEY}merges", ())]
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges or merges_of(vocab, scores),
            fuse_unk=True,
            byte_fallback=True,
            unk_token="<unk>" if gemma else None,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        spaced = metadata.get(f"{KEY}add_space_prefix", True)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first" if spaced else "never", split=False
        )
        steps += [decoders.Strip(" ", left=1, right=0)] if spaced else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def merges_of(
    vocab: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Return the merges that scores of tokens imply, the best first."""
    found = []
    for token, score in scores.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [(a, b) for a, b in cuts if a in vocab and b in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(score, len(a), len(b), a, b) for a, b in known]
    found.sort(key=lambda row: row[:3], reverse=True)
    return [(a, b) for *_, a, b in found]


def _is_gemma(metadata: Metadata) -> bool:
    return str(metadata.get("general.architecture")).startswith("gemma")


def _special_ids(metadata: Metadata) -> set[int]:
    """Return the ids of special tokens: control tokens in angle or square brackets.

    Byte-level files mark some ordinary tokens as control tokens too.
    """
    letters = set(byte_alphabet().values())
    kinds = metadata.get(f"{KEY}token_type", ())
    pairs = zip(metadata[f"{KEY}tokens"], kinds)
    return {
        n
        for n, (token, kind) in enumerate(pairs)
        if kind == CONTROL
        and (set(token) <= letters or token[0] + token[-1] in ("<>", "[]"))
    }


def _add_special(backend: Any, metadata: Metadata, config: Mapping[str, Any]) -> None:
    """Let special and user-defined tokens stay whole, and BOS and EOS be added."""
    from tokenizers import AddedToken, processors

    tokens = metadata[f"{KEY}tokens"]
    kinds = metadata.get(f"{KEY}token_type", ())
    if metadata[f"{KEY}model"] == "gpt2":
        special = sorted(_special_ids(metadata))
    else:
        special = [n for n, kind in enumerate(kinds) if kind == CONTROL]
    backend.add_special_tokens(
        [AddedToken(tokens[n], normalized=False, special=True) for n in special]
    )
    own = [n for n, kind in enumerate(kinds) if kind == USER_DEFINED]
    vocab = backend.get_vocab()
    whole = [tokens[n] for n in own if tokens[n] in vocab]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in whole])
    bos = config.get("bos_token") if config["add_bos_token"] else None
    eos = config.get("eos_token") if config["add_eos_token"] else None
    around = [[one] if one else [] for one in (bos, eos)]
    ids = {token: tokens.index(token) for side in around for token in side}
    backend.post_processor = processors.TemplateProcessing(
        single=[*around[0], "$A", *around[1]],
        pair=[*around[0], "$A:0", *around[1], *around[0], "$B:1", *around[1]],
        special_tokens=list(ids.items()),
    )


def _doubts(metadata: Metadata) -> list[str]:
    """Return what a file leaves open and llama.cpp reads otherwise."""
    said: list[str] = []
    pre = metadata.get(f"{KEY}pre")
    if metadata[f"{KEY}model"] != "gpt2":
        return said
    if pre not in SPLITS and pre not in GPT2_LIKE:
        said.append(
            f"tokenizer.ggml.pre = {pre!r} is read as GPT-2's, as transformers does; "
            "where spaces or line ends stand before digits, the model may have "
            f"learned other ids; {REMEDY}"
        )
    if pre in LLAMA3_LIKE and f"{KEY}add_bos_token" not in metadata:
        said.append(
            "it does not say whether a text begins with the BOS token; as in "
            f"transformers, none is added, in llama.cpp one is; {REMEDY}"
        )
    return said
