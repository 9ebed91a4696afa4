"""Models in files of Hugging Face: read, written, imported."""
