r"""Seconds of TOFU's evaluation here and in transformers, same weights, same rows.

    python experiments/evaluation_speed/benchmark.py TOFU_FOLDER \
        --torch PYTHON --out results.json [--model FOLDER]

PYTHON is an interpreter with torch and transformers, FOLDER a Hugging Face folder.
Without one: a decoder of TOFU-small's shape with random weights, float32, which ends no
answer, so that every answer has 64 tokens.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 224,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
NEW_TOKENS, BATCH = 64, 32


def work_of(folder):
    """Pairs whose losses are wanted, those with gold answers: TOFU's four sets."""
    from dareu_jax.data.tofu_questions import tofu_questions

    sets = tofu_questions(folder, "forget10", folder)
    gold, pairs = [], []
    for rows in sets[:4]:
        gold += [(q.prompt, q.answer) for q in rows]
        pairs += [(q.prompt, q.answer) for q in rows]
        pairs += [(q.prompt, q.right) for q in rows if q.right != q.answer]
        pairs += [(q.prompt, text) for q in rows for text in q.wrong]
    return pairs, gold


def make_model(folder, texts):
    """A Hugging Face folder with random weights and a tokenizer of the texts."""
    import numpy as np
    from safetensors.numpy import save_file

    from dareu_jax.data import load_tokenizer

    load_tokenizer(None, texts, CONFIG["vocab_size"], folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng, d, f = np.random.default_rng(0), CONFIG["hidden_size"], 640
    shapes = {"model.embed_tokens.weight": (4096, d), "model.norm.weight": (d,)}
    for n in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{n}"
        shapes |= {f"{at}.self_attn.{x}_proj.weight": (d, d) for x in "qkvo"}
        shapes |= {f"{at}.mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, f)
        for norm in ("input", "post_attention"):
            shapes[f"{at}.{norm}_layernorm.weight"] = (d,)
    tensors = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.normal(0, 0.06, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ours(folder, pairs, gold):
    """Losses, answers and seconds here, twice: with and without compilation."""
    from dareu_jax.cli.startup import prepare_jax
    from dareu_jax.data import Wording
    from dareu_jax.evaluation.suites.measure import (
        Reading,
        answer_losses,
        guesses,
        own_answers,
    )
    from dareu_jax.models.hf.imported import import_folder
    from dareu_jax.models.loaded import load_model

    prepare_jax()
    with tempfile.TemporaryDirectory() as out:
        model = load_model(import_folder(folder, Path(out) / "model").folder)
    reading = Reading(Wording(), BATCH, NEW_TOKENS)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        found = answer_losses(model, reading, pairs)
        between = time.perf_counter()
        lead = dict(zip(pairs, found.lead, strict=True))
        size = [lead[pair] for pair in gold]
        guessed = guesses(model, reading, gold, size)
        said, _ = own_answers(model, reading, [text for text, _ in gold], guessed)
        seconds.append((between - begun, time.perf_counter() - between))
    return found.loss.tolist(), said, seconds, int(sum(size))


def compared(python, data, model):
    """Both, one after the other, and how far apart their losses are."""
    pairs, gold = work_of(data)
    asked = [question for question, _ in gold]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "hf" if model is None else model
        if model is None:
            make_model(place, [text for pair in pairs for text in pair])
        work = Path(scratch) / "work.json"
        work.write_text(json.dumps({"pairs": pairs, "asked": asked}))
        losses, said, seconds, known = ours(place, pairs, gold)
        script = Path(__file__).with_name("in_transformers.py")
        command = [python, script, place, work, Path(scratch) / "theirs.json"]
        subprocess.run(command, check=True)
        theirs = json.loads((Path(scratch) / "theirs.json").read_text())
    gap = max(abs(a - b) for a, b in zip(losses, theirs["losses"], strict=True))
    same = sum(a == b for a, b in zip(said, theirs["said"], strict=True))
    return {
        "rows": len(asked),
        "losses": len(pairs),
        "scored_tokens": theirs["scored_tokens"],
        "answer_tokens": theirs["answer_tokens"],
        "answer_tokens_known_from_losses": known,
        "largest_gap_of_losses": gap,
        "answers_equal": same,
        "here_first_time_s": seconds[0],
        "here_s": seconds[1],
        "transformers_s": theirs["seconds"],
        "transformers_by_length_s": theirs["by_length_seconds"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--torch", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    found = compared(args.torch, args.data, args.model)
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")
