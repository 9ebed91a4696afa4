"""The engine of the gradient kernels: per-example gradients and their products."""
