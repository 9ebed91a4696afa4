"""Logs of evaluations: read them, and compute every aggregate again."""
