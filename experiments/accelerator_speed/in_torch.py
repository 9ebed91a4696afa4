"""The same work in transformers on torch; called by benchmark.py.

The model is a `LlamaForCausalLM` of the same sizes in bfloat16, attention `sdpa`. AdamW
is torch's fused one, in bfloat16, without float32 copies. A DareU iteration has no
classifier and no prior here: rollout, policy and reference over the answers, then S
times a clipped policy gradient and a distillation on as many rows.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn.functional import kl_div, log_softmax

GIB = 2**30
ROPE = {"rope_theta": 500_000.0, "rope_type": "llama3", "factor": 32.0}
ROPE |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_of(shape):
    """A decoder with random weights."""
    torch.manual_seed(0)
    sizes = shape["model"]
    config = transformers.LlamaConfig(
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["embed"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate_size=sizes["ffn"],
        vocab_size=shape["vocab"],
        tie_word_embeddings=True,
        rope_parameters=ROPE,
        max_position_embeddings=131_072,
        attn_implementation="sdpa",
    )
    with torch.device(DEVICE):
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def batch_of(shape, response):
    """Random tokens ``[B, P + T]``."""
    size = (shape["rows"], shape["prompt"] + response)
    return torch.randint(3, shape["vocab"], size, device=DEVICE)


def logits_of(model, tokens, prompt):
    """Those of the response ``[B, T, V]``, float32."""
    keep = tokens.shape[1] - prompt + 1
    return model(input_ids=tokens, logits_to_keep=keep).logits[:, :-1].float()


def logps_of(model, tokens, prompt):
    """Log-probabilities of the response ``[B, T]``."""
    logps = log_softmax(logits_of(model, tokens, prompt), dim=-1)
    return logps.gather(-1, tokens[:, prompt:, None])[..., 0]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE == "cuda")


def learn(model, optimiser, loss):
    """One step with the gradient clipped."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def finetune(model, shape):
    tokens, optimiser = batch_of(shape, shape["response"]), adamw(model)
    count = tokens.numel()

    def step():
        learn(model, optimiser, -logps_of(model, tokens, shape["prompt"]).mean())

    return step, count


@torch.inference_mode()
def answers_of(model, shape, asked):
    new = shape["new_tokens"]
    return model.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        do_sample=True,
        top_k=0,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
        eos_token_id=shape["vocab"] - 1,
    )


def rollout(model, shape):
    asked = batch_of(shape, 0)
    count = shape["rows"] * shape["new_tokens"]
    return lambda: answers_of(model, shape, asked), count


def scoring(model, shape):
    tokens = batch_of(shape, shape["response"])

    @torch.inference_mode()
    def step():
        return logps_of(model, tokens, shape["prompt"])

    return step, tokens.numel()


def dareu(model, shape):
    asked, retain = batch_of(shape, 0), batch_of(shape, shape["new_tokens"])
    reference, prompt, optimiser = model_of(shape), shape["prompt"], adamw(model)

    def step():
        tokens = answers_of(model, shape, asked).clone()
        with torch.no_grad():
            old = logps_of(model, tokens, prompt)
            rewards = old - logps_of(reference, tokens, prompt)
        for _ in range(shape["updates"]):
            ratio = (logps_of(model, tokens, prompt) - old).exp()
            clipped = ratio.clamp(0.8, 1.2) * rewards
            learn(model, optimiser, -torch.minimum(ratio * rewards, clipped).mean())
            with torch.no_grad():
                taught = log_softmax(logits_of(reference, retain, prompt), dim=-1)
            own = log_softmax(logits_of(model, retain, prompt), dim=-1)
            loss = kl_div(own, taught, reduction="batchmean", log_target=True)
            learn(model, optimiser, loss / retain.shape[1])

    return step, None


def kernel(model, shape):
    """A gradient of every text, one after the other; nothing is kept of them."""
    tokens = batch_of(shape, shape["response"])

    def step():
        for row in tokens:
            logps_of(model, row[None], shape["prompt"]).mean().backward()
            model.zero_grad(set_to_none=True)

    return step, tokens.numel()


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measured(part, shape):
    """Median seconds of a call, after a first one; the peak of memory."""
    step, tokens = part(model_of(shape), shape)
    times = []
    for _ in range(1 + shape["calls"]):
        wait()
        begun = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begun)
    seconds = statistics.median(times[1:])
    peak = torch.cuda.max_memory_allocated() / GIB if DEVICE == "cuda" else None
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": seconds,
        "tokens_per_s": tokens and tokens / seconds,
        "peak_memory_gib": peak,
    }


if __name__ == "__main__":
    shape, name, out = sys.argv[1:]
    parts = {x.__name__: x for x in (finetune, rollout, scoring, dareu, kernel)}
    found = measured(parts[name], json.loads(shape))
    Path(out).write_text(json.dumps(found))
