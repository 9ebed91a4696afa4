"""Downloads of public files: each appears whole or not at all."""

import hashlib
import http.client
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from dareu_jax.errors import UserError
from dareu_jax.storage.files import write_whole


def downloaded(folder: Path, home: str, files: Mapping[str, str], remedy: str) -> Path:
    """Return ``folder`` with every file of ``name -> sha256`` in it, from ``home``."""
    for name, sha256 in files.items():
        if not (folder / name).exists():
            download(f"{home}/{name}", folder / name, sha256, remedy)
    return folder


def download(url: str, file: Path, sha256: str, remedy: str) -> None:
    """Write what `url` holds to `file`; raise `UserError` if it is not as published."""
    content = fetch(url, remedy)
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(f"{url} has sha256 {digest}, expected {sha256}; {remedy}")
    write_whole(file, content)


def fetch(url: str, remedy: str) -> bytes:
    """Return what `url` holds; raise `UserError` with the `remedy` where it cannot."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({error}); {remedy}") from error
