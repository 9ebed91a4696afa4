"""Parts of an evaluation on disk; each is found by a hash of its inputs."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dareu_jax.parallel import agreed, is_first
from dareu_jax.storage.files import write_json


@dataclasses.dataclass(frozen=True)
class Kept:
    """Parts in a folder; each is made once for one model, text and settings.

    Of several processes only the first looks into the folder; it tells the others.
    """

    folder: Path
    common: Any

    def part(self, name: str, own: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, JSON; from disk where the same was made before."""
        text = json.dumps([name, self.common, own], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{digest}.json"
        if not agreed(is_first() and path.exists()):
            write_json(path, make())
        return agreed(
            json.loads(path.read_text(encoding="utf-8")) if is_first() else None
        )

    def numbers(
        self, name: str, own: Any, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Return `part` of float64 ``[N]``."""
        return np.asarray(self.part(name, own, lambda: make().tolist()), np.float64)
