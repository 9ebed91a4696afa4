"""Cost against the size of the work: batch, length of responses, number of owners.

    taskset -c 0 python experiments/speed/scaling.py --out FOLDER

One DareU iteration of the quickstart's decoder (classifier of 0.3 M parameters, two
updates) and the scores of 32 answers; process CPU time of the best of three calls, each
compiled before. Writes ``scaling.json`` with the slope of each line in the logarithms,
1 being linear, and ``scaling.svg``.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

BATCHES, LENGTHS = (8, 16, 32, 64), (32, 64, 128, 256, 512)
OWNERS, KERNELS = (10, 30, 100, 300, 1000), ("classifier", "projected")
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fable",
    "grove",
    "haven",
    "ivory",
)
CONFIG = {
    "seeds": [0],
    "model": {"preset": "decoder-1m"},
    "finetune": {"epochs": 0.01},
    "classifier": {"epochs": 0.01},
    "methods": ["dareu"],
    "retrained": {"skip": True},
}
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def cpu_seconds(call, times=3):
    """Least process time of a call, after a first one that compiles."""
    call()
    found = []
    for _ in range(times):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def text(rng, words):
    return " ".join(rng.choice(WORDS, words))


def records(owners, each, words):
    """``each`` records of every owner, answers of ``words`` words."""
    rng = np.random.default_rng(0)
    return [
        {"owner": f"o{n:04d}", "prompt": text(rng, 8), "response": text(rng, words)}
        for n in range(owners)
        for _ in range(each)
    ]


def iteration(folder, batch, length):
    """Seconds of one DareU iteration: rows, and tokens of an answer at most."""
    import jax

    from dareu_jax.config import build_config
    from dareu_jax.runs.inputs import Inputs
    from dareu_jax.runs.stages import Session, prepare, result_of
    from dareu_jax.training.tracking import Tracker
    from dareu_jax.unlearning import method_config

    folder.mkdir(parents=True)
    path = folder / "records.jsonl"
    rows = records(2, batch, length)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"source": "jsonl", "path": str(path), "forget": ["o0001"]}
    corpus |= {"vocab_size": 300, "max_response_tokens": length, "truncate": True}
    rows = {"batch_size": batch, "retain_batch_size": batch, "data_epochs": 100}
    rows |= {"updates_per_batch": 2, "kl_anchor": "reference"}
    cfg = build_config({**CONFIG, "corpus": corpus, "dareu": rows})
    session = Session(Inputs(cfg, 0, folder), Tracker(folder))
    with jax.set_mesh(session.inputs.mesh):
        results = {"original": result_of(session, "original")}
        results["reward"] = result_of(session, "reward", results)
        cfg = method_config(session.inputs.cfg, "dareu")
        _, state, step_fn = prepare(session, "dareu", cfg, results)

        def call():
            nonlocal state
            state, metrics = step_fn(state, 0)
            jax.block_until_ready((state, metrics))

        return cpu_seconds(call)


def model_of(folder, rows):
    """An imported decoder with random weights and a tokenizer of the records."""
    from safetensors.numpy import save_file

    from dareu_jax import load_model
    from dareu_jax.data import load_tokenizer
    from dareu_jax.models.hf.families import read_config
    from dareu_jax.models.hf.imported import import_folder
    from dareu_jax.models.hf.weights import hf_tensors

    place, rng = folder / "hf", np.random.default_rng(0)
    config = {**MODEL, "vocab_size": 300}
    load_tokenizer(None, [row["response"] for row in rows], 300, place)
    (place / "config.json").write_text(json.dumps(config))
    shapes = hf_tensors(read_config(config, "config.json"))
    tensors = {
        name: rng.normal(0, 0.05, shape).astype(np.float32) + (len(shape) == 1)
        for name, shape in shapes
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return load_model(import_folder(place, folder / "model").folder)


def scoring(folder, kernel, owners):
    """Seconds of the scores of 32 answers against so many owners."""
    from dareu_jax import attribute
    from dareu_jax.config import ClassifierConfig
    from dareu_jax.data import Record

    rows = records(owners, 1, 40)
    model = model_of(folder, rows)
    known = [Record(f"r{n}", *row.values()) for n, row in enumerate(rows)]
    once = ClassifierConfig(epochs=0.01)
    found = attribute(model, known, kernel=kernel, batch_size=32, classifier=once)
    asked = [(row["prompt"], row["response"]) for row in records(32, 1, 40)]
    return cpu_seconds(lambda: found.score(asked))


def slope(sizes, seconds):
    """Exponent e of seconds = a size^e, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def draw(lines, path):
    """Every line against the work of its smallest size, in logarithms."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, line in lines.items():
        work = np.array(line["sizes"]) / line["sizes"][0]
        seconds = np.array(line["seconds"]) / line["seconds"][0]
        axes.loglog(work, seconds, "o-", label=f"{name} ({line['slope']:.2f})")
    axes.loglog((1, 100), (1, 100), "k:", label="linear (1)")
    axes.set_xlabel("times the smallest size")
    axes.set_ylabel("times its CPU time")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def measured(folder, batches, lengths, owners):
    """Seconds by size and the slope of every line."""
    tried = {
        "batch": (batches, lambda n: iteration(folder / f"batch_{n}", n, 48)),
        "response length": (lengths, lambda n: iteration(folder / f"long_{n}", 8, n)),
    }
    for name in KERNELS:
        place = folder / name

        def score(n, name=name, place=place):
            return scoring(place / str(n), name, n)

        tried[f"owners ({name})"] = (owners, score)
    lines = {}
    for name, (sizes, run) in tried.items():
        seconds = [run(size) for size in sizes]
        lines[name] = {"sizes": sizes, "seconds": seconds}
        lines[name]["slope"] = slope(sizes, seconds)
        print(name, lines[name], flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--owners", type=int, nargs="+", default=OWNERS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    place = given.out / "made"
    lines = measured(place, given.batches, given.lengths, given.owners)
    found = {"lines": lines, "slopes": {n: line["slope"] for n, line in lines.items()}}
    (given.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(lines, given.out / "scaling.svg")


if __name__ == "__main__":
    main()
