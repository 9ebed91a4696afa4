"""What transformers says of texts: a program for an interpreter that has torch.

``python peer.py FOLDER``, in a folder that holds ``request.json``. It writes there
``logits_0.npy``, ... ``[T, V]`` float32, and ``said.json``. It stands alone, and runs
no code of FOLDER and reads no pickle.
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def load(folder, gguf):
    """Return the tokenizer and the float32 model of a folder, or of its GGUF file."""
    safe = {"local_files_only": True, "trust_remote_code": False}
    if gguf is not None:
        safe["gguf_file"] = gguf
    major = int(transformers.__version__.split(".")[0])
    dtype = {"dtype" if major >= 5 else "torch_dtype": torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    if gguf is None:
        safe["use_safetensors"] = True
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", **dtype, **safe
    )
    return tokenizer, model.eval()


def ids_of(tokenizer, text, is_chat, date):
    """Return the ids of a text, in the chat template where one is asked and there."""
    if not (is_chat and tokenizer.chat_template):
        return list(tokenizer(text)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
        date_string=date,
    )
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def loss_of(logits, ids):
    """Return the mean of -log p of every token but the first, in nats."""
    if len(ids) < 2:
        return 0.0
    logps = torch.log_softmax(logits[:-1], dim=-1)
    return float(-logps.gather(1, torch.tensor(ids[1:])[:, None]).mean())


def answer_of(model, tokens, new_tokens):
    """Return the likeliest tokens behind `tokens`, the end of text included."""
    out = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones(tokens.shape, dtype=torch.int64),
        max_new_tokens=new_tokens,
    )
    return out[0, tokens.shape[1] :].tolist()


def plain_greedy(model):
    """Make the model decode greedily, without penalties that its folder asks for."""
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=0
    )


def say(tokenizer, model, request, number):
    """Return ids, loss and answer of a text; its logits become a file."""
    text, is_chat = request["texts"][number]
    ids = ids_of(tokenizer, text, is_chat, request["date"])
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits[0].float()
        answer = answer_of(model, tokens, request["new_tokens"])
    np.save(f"logits_{number}.npy", logits.numpy())
    return ids, loss_of(logits, ids), answer


def main(folder):
    """Answer the request in this folder."""
    with open("request.json", encoding="utf-8") as file:
        request = json.load(file)
    tokenizer, model = load(folder, request["gguf"])
    plain_greedy(model)
    rows = [say(tokenizer, model, request, n) for n in range(len(request["texts"]))]
    said = dict(zip(("ids", "losses", "answers"), zip(*rows)))
    said["versions"] = transformers.__version__, torch.__version__
    with open("said.json", "w", encoding="utf-8") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main(sys.argv[1])
