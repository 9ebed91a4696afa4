"""Training loop, optimiser, guards, tracking and throughput."""
