"""SmolLM2-135M from its GGUF file, here and in transformers: are they one model?

``python experiments/smollm2/against_transformers.py FILE.gguf TOFU_FOLDER
--torch PYTHON --out results.json``. PYTHON is an interpreter that has torch,
transformers, accelerate and gguf. One model is in memory at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from dareu_jax.models import hidden_states, logits_of
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model

SPLITS = ("forget10", "retain90", "real_authors", "world_facts")
QUESTIONS, ROWS, NEW_TOKENS, WITH_LOGITS = 4, 16, 64, 16
"""A split's questions and rows; tokens of an answer; texts whose logits are kept."""
THEIRS = Path(__file__).with_name("in_transformers.py")


def rows_of(folder, split):
    """``[(question, answer)]`` of a file of TOFU."""
    lines = (folder / f"{split}.json").read_text().splitlines()
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


def what_to_ask(folder):
    """Questions to answer, rows to score, and texts to tokenise."""
    splits = [rows_of(folder, split) for split in SPLITS]
    apart = [rows[:: len(rows) // ROWS][:ROWS] for rows in splits]
    return {
        "questions": [q for rows in apart for q, _ in rows[:QUESTIONS]],
        "rows": [row for rows in zip(*apart) for row in rows],
        "texts": [text for rows in splits for row in rows for text in row],
        "new_tokens": NEW_TOKENS,
        "with_logits": WITH_LOGITS,
    }


def compare(model, asked, theirs, folder):
    """The largest differences, and how many ids and answers are the same."""
    logps = model.logps(*zip(*asked["rows"]))
    losses = np.array([-float(np.mean(row)) for row in logps])
    wanted = np.array(theirs["losses"])
    answers = model.generate(asked["questions"], NEW_TOKENS)
    said = zip(answers, map(str.strip, theirs["answers"]), strict=True)
    ids = [model.tokenizer.hf(text)["input_ids"] for text in asked["texts"]]
    off, same, positions = 0.0, 0, 0
    for n in range(WITH_LOGITS):
        tokens = np.array([theirs["ids"][n]], np.int32)
        found = logits(model, tokens)
        golden = np.load(folder / f"logits_{n}.npy")
        off = max(off, float(np.abs(found - golden).max()))
        same += int((found.argmax(-1) == golden.argmax(-1)).sum())
        positions += len(golden)
    return {
        "texts": len(ids),
        "texts with the same ids": sum(a == b for a, b in zip(ids, theirs["texts"])),
        "largest difference of a logit": off,
        "positions": positions,
        "positions with the same argmax": same,
        "answers": len(answers),
        "same answers": sum(a == b for a, b in said),
        "rows": len(losses),
        "largest difference of a loss": float(np.abs(losses - wanted).max()),
        "mean loss": float(losses.mean()),
        "mean loss in transformers": float(wanted.mean()),
        "first answer": answers[0],
    }


def logits(model, tokens):
    """``[T, V]`` of one text, as wide as it is."""
    mask = np.ones(tokens.shape, bool)
    run = jax.jit(
        lambda params: logits_of(
            model.decoder, params, hidden_states(model.decoder, params, tokens, mask)
        )
    )
    return np.asarray(run(model.params))[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("tofu", type=Path)
    parser.add_argument("--torch", required=True, help="an interpreter with torch")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, asked = Path(scratch), what_to_ask(given.tofu)
        (folder / "asked.json").write_text(json.dumps(asked))
        command = [given.torch, THEIRS, given.file, folder / "asked.json", folder]
        subprocess.run([str(part) for part in command], check=True)
        theirs = json.loads((folder / "theirs.json").read_text())
        made = import_folder(given.file, folder / "model")
        found = compare(load_model(made.folder), asked, theirs, folder)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
