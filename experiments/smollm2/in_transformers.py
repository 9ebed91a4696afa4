"""The same file in transformers on torch; called by against_transformers.py."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def chat(tokenizer, question, answer=None):
    """Token ids of a conversation in the file's own template."""
    said = [{"role": "user", "content": question}]
    said += [] if answer is None else [{"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=answer is None
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if answer is not None:  # up to the token that ends the answer
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    return ids


@torch.inference_mode()
def main(file, asked, out):
    asked, folder = json.loads(Path(asked).read_text()), Path(out)
    given = {"gguf_file": Path(file).name}
    tokenizer = AutoTokenizer.from_pretrained(Path(file).parent, **given)
    model = AutoModelForCausalLM.from_pretrained(
        Path(file).parent, dtype=torch.float32, **given
    ).eval()
    answers, losses, ids = [], [], []
    for question in asked["questions"]:
        prompt = torch.tensor([chat(tokenizer, question)])
        said = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=asked["new_tokens"],
            pad_token_id=tokenizer.pad_token_id,
        )[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(said, skip_special_tokens=True))
    for n, (question, answer) in enumerate(asked["rows"]):
        start = len(chat(tokenizer, question))
        ids.append(chat(tokenizer, question, answer))
        whole = torch.tensor([ids[-1]])
        logits = model(input_ids=whole).logits[0].float()
        loss = torch.nn.functional.cross_entropy(
            logits[start - 1 : -1], whole[0, start:]
        )
        losses.append(float(loss))
        if n < asked["with_logits"]:
            np.save(folder / f"logits_{n}.npy", logits.numpy())
    texts = [tokenizer(text)["input_ids"] for text in asked["texts"]]
    held = {"answers": answers, "losses": losses, "ids": ids, "texts": texts}
    (folder / "theirs.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
