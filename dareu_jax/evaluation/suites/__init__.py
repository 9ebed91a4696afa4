"""Benchmarks that judge one model row by row."""
