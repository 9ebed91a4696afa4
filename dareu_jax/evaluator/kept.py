"""Parts of an evaluation on disk, found again by what they were made of."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dareu_jax.pipeline import write_json


class Kept:
    """Parts in a folder; each is made once for one model, text and settings.

    Args:
      folder: of the parts; common: what all of them depend on, JSON.
    """

    def __init__(self, folder: Path, common: Any):
        self.folder, self.common = folder, common

    def part(self, name: str, own: Any, make: Callable[[], Any]) -> Any:
        """``make()``, JSON, from disk where it was made of the same before.

        Args:
          name: for people; own: what this part depends on besides, JSON.
        """
        text = json.dumps([name, self.common, own], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{digest}.json"
        if not path.exists():
            write_json(path, make())
        return json.loads(path.read_text(encoding="utf-8"))
