"""The same evaluation in transformers on torch; called by benchmark.py."""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NEW_TOKENS, BATCH = 64, 32
TEMPLATE = "Question: {prompt}\nAnswer:"


def padded(rows, left=False):
    """Token ids and their mask as tensors."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), None
    mask = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, at], mask[n, at] = torch.tensor(row), 1
    return ids, mask


def batches(rows, by_length):
    """Places of rows, 32 at a time."""
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]) if by_length else n)
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


@torch.inference_mode()
def losses_of(model, prompts, answers, by_length):
    """Mean loss of every answer, end of text included."""
    whole, out = [p + a for p, a in zip(prompts, answers)], [0.0] * len(prompts)
    for rows in batches(whole, by_length):
        ids, mask = padded([whole[n] for n in rows])
        logits = model(input_ids=ids, attention_mask=mask).logits
        for at, n in enumerate(rows):
            start, end = len(prompts[n]), len(whole[n])
            loss = torch.nn.functional.cross_entropy(
                logits[at, start - 1 : end - 1].float(), ids[at, start:end]
            )
            out[n] = float(loss)
    return out


@torch.inference_mode()
def answers_of(model, prompts, tokenizer, by_length):
    """Greedy answers of at most 64 tokens, and how many tokens they have."""
    out, count = [""] * len(prompts), 0
    for rows in batches(prompts, by_length):
        ids, mask = padded([prompts[n] for n in rows], left=True)
        said = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        for n, row in zip(rows, said[:, ids.shape[1] :]):
            out[n] = tokenizer.decode(row, skip_special_tokens=True).strip()
            count += int((row != tokenizer.pad_token_id).sum())
    return out, count


def main(folder, work, out):
    """Times both halves, in the given order and by length."""
    torch.set_num_threads(2)
    asked = json.loads(Path(work).read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def question(text):
        return [1, *encode(TEMPLATE.replace("{prompt}", text))]

    prompts = [question(q) for q, _ in asked["pairs"]]
    answers = [[*encode(" " + a), 2] for _, a in asked["pairs"]]
    queries = [question(q) for q in asked["asked"]]
    found = {"scored_tokens": sum(map(len, prompts)) + sum(map(len, answers))}
    for name, by_length in (("seconds", False), ("by_length_seconds", True)):
        begun = time.perf_counter()
        found["losses"] = losses_of(model, prompts, answers, by_length)
        between = time.perf_counter()
        found["said"], found["answer_tokens"] = answers_of(
            model, queries, tokenizer, by_length
        )
        found[name] = (between - begun, time.perf_counter() - between)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
