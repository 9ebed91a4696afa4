"""De-attribute to forget: LLM unlearning with data attribution as the reward."""

__version__ = "0.1.0"
