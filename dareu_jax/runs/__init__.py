"""A run: its folder, its stages, its evaluation and what reads it later."""
