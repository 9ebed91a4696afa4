"""A plain PPO in torch that does the work of one DareU iteration; see `theirs.py`.

The same 20 prompts, one answer to each with a cache; an owner classifier of the shape
of ours scores every prefix in one pass; reference log-probabilities; a value head on
the policy's trunk and GAE; then four times an update of the clipped surrogate, the
value loss and KL to the reference over the vocabulary, and a distillation of the
reference on 20 retain records.
"""

import random

import torch
from clock import Clock
from theirs import ids_of, load, optimiser_of, padded, step, with_adapters
from torch import nn
from transformers import LlamaConfig, LlamaModel

ROWS, UPDATES, SLICES = 20, 4, 15
CLIP, VALUE_COEF, KL_COEF, LAMBDA, DISTIL, C_SEG = 0.2, 0.2, 0.3, 0.95, 2.0, 1.05


class OwnerClassifier(nn.Module):
    """p(owner | y[:t]) of every prefix: the shape of ``decoder-300k``."""

    def __init__(self, vocab, owners):
        super().__init__()
        shape = LlamaConfig(
            vocab_size=vocab,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=6,
            attn_implementation="sdpa",
        )
        self.trunk, self.head = LlamaModel(shape), nn.Linear(96, owners)

    def forward(self, ids, mask):
        hidden = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head(hidden).softmax(-1)


class Policy(nn.Module):
    """The language model and a value head on its trunk."""

    def __init__(self, model):
        super().__init__()
        self.model, self.value = model, nn.Linear(model.config.hidden_size, 1)

    def forward(self, ids, mask, response):
        """Logits ``[B, T, V]`` and values ``[B, T]`` at the last ``response`` slots."""
        logits, hidden = said(self.model, ids, mask, response)
        return logits, self.value(hidden)[..., 0]


def said(model, ids, mask, response):
    """Logits and hidden states where each of the last ``response`` tokens is said."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    trunk = causal.model(input_ids=ids, attention_mask=mask, position_ids=positions)
    hidden = trunk.last_hidden_state[:, -response - 1 : -1]
    return causal.lm_head(hidden), hidden


def logp_of(logits, tokens):
    return -nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens.flatten(), reduction="none"
    ).view_as(tokens)


def mean(x, mask):
    return (x * mask).sum() / mask.sum()


def full_kl(logp, other):
    """KL(p || q) over the vocabulary, of log-probabilities ``[B, T, V]``."""
    return (logp.exp() * (logp - other)).sum(-1)


def reward_of(scores, mask, length):
    """Attribution of the prefix that ends each segment, as potential-based reward."""
    segment = -(-length // SLICES)
    end = torch.arange(mask.shape[1]).div(segment, rounding_mode="floor")
    last = mask.sum(1, keepdim=True) - 1
    at = torch.minimum((end + 1) * segment - 1, last).clamp(min=0)
    penalty = (torch.log1p(-scores.gather(1, at).clamp(1e-6, 1 - 1e-6)) / C_SEG).clamp(
        -1, 0
    )
    return (penalty - nn.functional.pad(penalty, (1, 0))[:, :-1]) * mask


def gae(rewards, values, mask):
    """Advantages and returns, gamma 1."""
    out, carry, after = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        here = rewards[:, t] + after - values[:, t] + LAMBDA * carry
        carry, after = here * mask[:, t], values[:, t] * mask[:, t]
        out[:, t] = carry
    return out, out + values * mask


def policy_loss(policy, reference_logp, experience, batch, response):
    """Clipped surrogate, clipped value loss and KL to the reference."""
    ids, mask, tokens, keep = batch
    old_logp, old_values, advantages, returns = experience
    logits, values = policy(ids, mask, response)
    logp = logits.log_softmax(-1)
    taken = logp.gather(-1, tokens[..., None])[..., 0]
    ratio = (taken - old_logp).exp()
    surrogate = torch.minimum(
        ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages
    )
    near = old_values + (values - old_values).clamp(-CLIP, CLIP)
    value = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    kl = full_kl(logp, reference_logp)
    return mean(-surrogate + VALUE_COEF * value + KL_COEF * kl, keep)


def distillation(policy, anchor, batch):
    """KL(reference || policy) on the answers of retain records."""
    ids, mask, keep, response = batch
    with torch.no_grad():
        taught = anchor(ids, mask, response).log_softmax(-1)
    logp = said(policy.model, ids, mask, response)[0].log_softmax(-1)
    return DISTIL * mean(full_kl(taught, logp), keep)


def retain_batch(rows, length):
    """Retain records, prompts to the left of where all answers begin."""
    prompts, mask = padded([p for p, _ in rows], left=True)
    answers, keep = padded([a[:length] for _, a in rows])
    whole = torch.cat([prompts, answers], 1), torch.cat([mask, keep], 1)
    return *whole, keep, answers.shape[1]


@torch.no_grad()
def sampled(policy, prompts, mask, length, ends):
    """Answers at temperature 1: whole texts, their mask, answers and theirs."""
    policy.model.eval()
    whole = policy.model.generate(
        input_ids=prompts,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length,
        pad_token_id=0,
        eos_token_id=ends,
    )
    tokens = whole[:, prompts.shape[1] :]
    ended = torch.isin(tokens, torch.tensor(ends)).cumsum(1)
    keep = (nn.functional.pad(ended, (1, 0))[:, :-1] == 0).long()
    return whole, torch.cat([mask, keep], 1), tokens, keep


class Ppo:
    """Policy, reference, classifier and batches; one iteration at every call."""

    def __init__(self, work, lora):
        found, base = ids_of(work), load(work).eval()
        # under adapters the policy without them is the reference: no second copy
        self.reference = None if lora else base
        self.policy = Policy(with_adapters(base if lora else load(work), lora))
        owners = max(found["owners"]) + 1
        self.classifier = OwnerClassifier(base.config.vocab_size, owners)
        self.optimiser, self.ends = optimiser_of(self.policy), found["stop_ids"]
        forget, records = found["forget"], found["records"]
        self.retain = [r for n, r in enumerate(records) if n not in set(forget)]
        self.prompts = padded([records[n][0] for n in forget[:ROWS]], left=True)
        self.own = torch.tensor([found["owners"][n] for n in forget[:ROWS]])

    def anchor(self, ids, mask, response):
        """Logits of the reference."""
        if self.reference is not None:
            return said(self.reference, ids, mask, response)[0]
        with self.policy.model.disable_adapter():
            return said(self.policy.model, ids, mask, response)[0]

    @torch.no_grad()
    def experience(self, length):
        """Sampled answers, the reference's log-probs, and what PPO learns from."""
        whole, mask, tokens, keep = sampled(
            self.policy, *self.prompts, length, self.ends
        )
        scores = self.classifier(tokens, keep)[torch.arange(len(keep)), :, self.own]
        logits, values = self.policy(whole, mask, tokens.shape[1])
        old = logp_of(logits, tokens)
        reference_logp = self.anchor(whole, mask, tokens.shape[1]).log_softmax(-1)
        rewards = reward_of(scores, keep, length)
        learnt = old, values, *gae(rewards, values, keep)
        return (whole, mask, tokens, keep), reference_logp, learnt

    def iterate(self, length, updates, seed):
        """Return how many tokens were sampled."""
        batch, reference_logp, learnt = self.experience(length)
        tokens, keep = batch[2:]
        self.policy.model.train()
        draw, width = random.Random(seed), tokens.shape[1]
        for _ in range(updates):
            loss = policy_loss(self.policy, reference_logp, learnt, batch, width)
            step(self.policy, self.optimiser, loss)
            taught = retain_batch(draw.sample(self.retain, ROWS), length)
            loss = distillation(self.policy, self.anchor, taught)
            step(self.policy, self.optimiser, loss)
        return int(keep.sum())


def iteration_of(work, lora, length):
    """What measures one iteration at every call."""
    ppo = Ppo(work, lora)

    def run(number):
        torch.manual_seed(number)
        with Clock() as clock:
            tokens = ppo.iterate(length, UPDATES, number)
        return clock.facts(sampled=tokens)

    ppo.iterate(8, 1, 0)
    return run
