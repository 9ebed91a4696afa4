"""TRL's GRPO on the same rows; called by compare.py as `ours.py` is.

Equal to one DareU iteration: 20 answers of at most as many tokens at temperature 1,
the reference's log-probabilities, eight optimiser steps on 20 rows each, float32, AdamW
in torch's fused kernel, clipping of gradients, no recomputation. Not equal: GRPO takes
10 prompts twice, its reward is a function that costs nothing, it has no value head, and
all eight steps are on the sampled answers where DareU's second four are on retain text.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from clock import Clock, Orders, peak_mib
from datasets import Dataset
from theirs import load, lora_config
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ROWS, STEPS = 20, 8


class Rounds(TrainerCallback):
    """Waits for an order before each iteration, and answers after it."""

    def __init__(self, orders):
        self.orders, self.clock, self.tokens = orders, None, 0

    def on_step_begin(self, args, state, control, **_):
        if state.global_step % STEPS == 0:
            if not self.orders.await_one():
                sys.exit()
            self.clock, self.tokens = Clock(), 0
            self.clock.__enter__()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % STEPS == 0:
            self.clock.__exit__()
            facts = self.clock.facts(sampled=self.tokens, peak_MiB=peak_mib())
            self.orders.answer(facts)


def prompts_of(work):
    """Questions of the records, worded as in `ours.py`."""
    lines = (work / "records.jsonl").read_text().splitlines()
    asked = [json.loads(line)["prompt"] for line in lines]
    return [f"Question: {prompt}\nAnswer:" for prompt in asked]


def config_of(folder, length):
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        fp16=False,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        num_generations=2,
        num_iterations=STEPS,
        max_completion_length=length,
        temperature=1.0,
        beta=0.3,
        learning_rate=1.5e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        max_steps=10**4,
        save_strategy="no",
        logging_steps=10**6,
        report_to=[],
        disable_tqdm=True,
    )


def main(work, row, settings):
    orders, work, given = Orders(), Path(work), json.loads(settings)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rounds = Rounds(orders)

    def short(completion_ids, **_):
        """A reward that costs nothing; it also counts the tokens."""
        rounds.tokens += sum(map(len, completion_ids))
        return [float(len(ids) % 7) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=load(work),
            reward_funcs=short,
            args=config_of(folder, given["length"]),
            train_dataset=Dataset.from_dict({"prompt": prompts_of(work)[-ROWS:]}),
            processing_class=AutoTokenizer.from_pretrained(work / "hf"),
            peft_config=lora_config() if given["lora"] else None,
            callbacks=[rounds],
        )
        orders.answer({"ready": True, "peak_MiB": peak_mib()})
        trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
