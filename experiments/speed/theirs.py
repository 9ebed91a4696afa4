"""The other side in torch and transformers; called by compare.py as `ours.py` is."""

import json
import os
import random
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from clock import Clock, Orders, serve
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

UNSAID = 3
"""As in `ours.py`: a token that ends no answer."""


def load(work):
    """The model in float32, attention by ``scaled_dot_product_attention``."""
    return AutoModelForCausalLM.from_pretrained(
        work / "hf", dtype=torch.float32, attn_implementation="sdpa"
    )


def with_adapters(model, lora):
    """The model, or the same under adapters of rank 8 on every dense layer."""
    if not lora:
        return model
    from peft import get_peft_model

    return get_peft_model(model, lora_config())


def lora_config():
    from peft import LoraConfig

    return LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"
    )


def optimiser_of(model, rate=1.5e-4):
    """AdamW in torch's fused kernel: foreach takes five times as long on one core."""
    weights = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(weights, lr=rate, weight_decay=0.01, fused=True)


def step(model, optimiser, loss):
    """One clipped update."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def ids_of(work):
    return json.loads((work / "ids.json").read_text())


def padded(rows, left=False, width=None):
    """Token ids and their mask, as wide as the longest row."""
    width = width or max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, at], mask[n, at] = torch.tensor(row), 1
    return ids, mask


def collated(rows):
    """What DataCollatorForSeq2Seq makes of records: prompts have no label."""
    ids, mask = padded([p + a for p, a in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for n, (prompt, _) in enumerate(rows):
        labels[n, : len(prompt)] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def finetune(work, batch, lora, records=48):
    """Steps on ``records`` records drawn anew for every round."""
    model = with_adapters(load(work), lora).train()
    optimiser, rows = optimiser_of(model), ids_of(work)["records"]

    def steps(chosen):
        tokens = 0
        for start in range(0, len(chosen), batch):
            made = collated(chosen[start : start + batch])
            loss = model(**made).loss
            step(model, optimiser, loss)
            tokens += int(made["attention_mask"].sum())
        return tokens, loss.item()

    def run(number):
        chosen = random.Random(number).sample(rows, records)
        with Clock() as clock:
            tokens, loss = steps(chosen)
        return clock.facts(tokens=tokens, loss=loss)

    steps(rows[:batch])
    return run


def padding(work, batch):
    """Share of slots that hold a token in one epoch."""
    rows = ids_of(work)["records"]

    def run(number):
        order = random.Random(number).sample(rows, len(rows))
        batches = [order[n : n + batch] for n in range(0, len(order), batch)]
        masks = [collated(rows)["attention_mask"] for rows in batches]
        used = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
        return {"used": used, "shapes": len({m.shape for m in masks})}

    return run


def generate(work, batch, temperature, new_tokens=48):
    """Answers of ``new_tokens`` tokens to TOFU's questions."""
    model = load(work).eval()
    ids, mask = padded(ids_of(work)["prompts"][:batch], left=True)
    how = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

    @torch.inference_mode()
    def run(number):
        torch.manual_seed(number)
        with Clock() as clock:
            said = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                pad_token_id=0,
                eos_token_id=UNSAID,
                **how,
            )
        return clock.facts(tokens=said[:, ids.shape[1] :].numel())

    run(0)
    return run


def by_length(rows, size):
    """Places of rows, those of like length together."""
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    return [order[n : n + size] for n in range(0, len(order), size)]


def losses(work):
    """Losses of right and wrong answers to TOFU's questions."""
    model, pairs = load(work).eval(), ids_of(work)["pairs"]
    whole = [p + a for p, a in pairs]

    @torch.inference_mode()
    def run(number):
        out = [0.0] * len(pairs)
        with Clock() as clock:
            for rows in by_length(whole, 16):
                ids, mask = padded([whole[n] for n in rows])
                logits = model(input_ids=ids, attention_mask=mask).logits
                for at, n in enumerate(rows):
                    start, end = len(pairs[n][0]), len(whole[n])
                    said = logits[at, start - 1 : end - 1]
                    out[n] = float(cross_entropy(said, ids[at, start:end]))
        return clock.facts(mean=sum(out) / len(out))

    run(0)
    return run


def answers(work):
    """Greedy answers of at most 16 tokens to TOFU's questions."""
    model, found = load(work).eval(), ids_of(work)
    prompts, ends = found["questions"], found["stop_ids"]
    tokenizer = AutoTokenizer.from_pretrained(work / "hf")

    @torch.inference_mode()
    def run(number):
        out = [""] * len(prompts)
        with Clock() as clock:
            for rows in by_length(prompts, 16):
                ids, mask = padded([prompts[n] for n in rows], left=True)
                said = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=16,
                    pad_token_id=0,
                    eos_token_id=ends,
                )
                for n, row in zip(rows, said[:, ids.shape[1] :]):
                    out[n] = tokenizer.decode(row, skip_special_tokens=True).strip()
        return clock.facts(first=out[0])

    run(0)
    return run


def dareu(work, lora, length):
    """One iteration of a plain PPO of the same work."""
    from ppo import iteration_of

    return iteration_of(work, lora, length)


def facts(work):
    """Versions of what runs here."""
    names = ("torch", "transformers", "peft", "trl", "accelerate")
    return lambda number: {name: version(name) for name in names}


def convert(file, out):
    """Write a GGUF file, or a Hugging Face folder, as a float32 folder."""
    file = Path(file)
    given = (file.parent, {"gguf_file": file.name}) if file.is_file() else (file, {})
    AutoTokenizer.from_pretrained(given[0], **given[1]).save_pretrained(out)
    read = AutoModelForCausalLM.from_pretrained(
        given[0], dtype=torch.float32, **given[1]
    )
    plain = type(read).config_class.from_dict(read.config.to_dict())
    plain.__dict__.pop("quantization_config", None)
    model = type(read)(plain)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)


ROWS = {
    f.__name__: f for f in (finetune, padding, generate, losses, answers, dareu, facts)
}


def main(work, row, settings):
    orders = Orders()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    serve(ROWS[row](Path(work), **json.loads(settings)), orders)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
