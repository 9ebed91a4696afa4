"""Files, checkpoints and downloads: whole or not at all."""
