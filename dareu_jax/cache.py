"""Where this user's compiled programs and downloads are kept."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The user's folder for what can be made or fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dareu_jax"
