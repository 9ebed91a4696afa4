"""A small made-up run: three models, as many seeds as asked for."""

import pytest

from dareu_jax.evaluation.seeds import summarise

FORGET = {"original": 0.9, "retrained": 0.4, "dareu": 0.5}


def seed_entry(shift, names):
    return {
        "models": {
            name: {
                "forget_rouge": FORGET[name] + shift,
                "retain_rouge": 0.8,
                "attribution_reward": 0.2,
                "attribution_unseen": 0.3,
                "retrained_likelihood": -1.25,
                "forget_length": 11.0,
            }
            for name in names
        },
        "tow": {name: {"rouge": 0.75 + shift, "probability": 0.5} for name in names},
    }


@pytest.fixture
def make_results():
    def make(seeds=3, names=("dareu", "original", "retrained")):
        entries = {str(i): seed_entry(0.01 * i, names) for i in range(seeds)}
        return {
            **summarise(entries),
            "seeds": entries,
            "stopped": {seed: {"dareu": None} for seed in entries},
            "wall_s": {"finetune_original": 65.0, "dareu": 4.2},
            "environment": {"jax": "0.10.2"},
            "scale": "Scale: a tiny model on made-up text.",
        }

    return make


@pytest.fixture
def curves():
    first = [
        {"seed": 0, "stage": stage, "step": step, "loss": 3.0 / (step + 1)}
        for stage in ("finetune_original", "finetune_retrained", "classifier")
        for step in range(5)
    ]
    updates = [
        {
            **{"seed": seed, "stage": "dareu", "step": step, "reward": step / 100},
            **{"kl_reference": 0.1, "attribution": 0.5, "response_length": 9.0},
        }
        for seed in (0, 1)
        for step in range(300)
    ]
    return first + updates


@pytest.fixture
def answers():
    return [
        {
            "prompt": f"Question {i}?",
            "gold": "Gold.",
            "owner": "owner_a",
            "answers": {"dareu": f"New {i}", "original": "Old", "retrained": ""},
        }
        for i in range(12)
    ]
