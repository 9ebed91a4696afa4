"""Sampling responses from a policy."""

from dareu_jax.generation.sampler import Rollout, generate, sampling_logits

__all__ = ["Rollout", "generate", "sampling_logits"]
