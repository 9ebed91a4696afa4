"""Metrics, and evaluations that treat every model alike."""
