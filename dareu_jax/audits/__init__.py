"""Can it be trusted? Checks of numerics, of kernels and of unlearned models."""
