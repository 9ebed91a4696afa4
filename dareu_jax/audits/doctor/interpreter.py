"""Ask transformers, in another Python interpreter, what it says of texts."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dareu_jax.config.schema import CHAT_DATE
from dareu_jax.errors import UserError
from dareu_jax.models.hf.folder import INDEX, weight_map
from dareu_jax.models.hf.imported import Imported

PROGRAM = Path(__file__).with_name("peer.py")
PATIENCE = 3600.0
"""Seconds until the program is stopped."""
KINDS = (".json", ".jinja", ".txt", ".model", ".safetensors")
"""Files of a folder that the program may see: no Python, no pickle."""
NEVER = ("adapter_config.json",)
"""Names another file of weights."""
TAIL = 2**16
"""Bytes of the program's output in which its last line is looked for."""
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class Said(NamedTuple):
    """What transformers says of N texts; ``logits(n)`` are ``[T, V]`` float32."""

    ids: list[list[int]]
    losses: list[float]  # mean nats of every token but the first
    answers: list[list[int]]  # greedy, the end of text included
    versions: tuple[str, str]  # of transformers and torch
    place: Path

    def logits(self, number: int) -> np.ndarray:
        """Return the logits of a text, read from its file."""
        wanted = (len(self.ids[number]),)
        path = self.place / f"logits_{number}.npy"
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.ndim != 2 or found.shape[:1] != wanted:
            raise ValueError(f"{path.name} has shape {list(found.shape)}")
        return found


@contextlib.contextmanager
def ask(
    source: Path, python: str, texts: Sequence[tuple[str, bool]], new_tokens: int
) -> Iterator[Said]:
    """Yield what transformers in ``python`` says of texts, by the model in ``source``.

    Args:
      source: a Hugging Face folder, or a GGUF file.
      texts: each with whether it is asked in the chat template.

    Raises:
      UserError: the interpreter, the folder or the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="dareu_doctor_") as name:
        place = Path(name)
        seen, gguf = place / "folder", source.name if source.is_file() else None
        link(source, seen)
        request = {"gguf": gguf, "texts": texts, "new_tokens": new_tokens}
        request["date"] = CHAT_DATE
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        shutil.copyfile(PROGRAM, place / PROGRAM.name)
        run([program_of(python), PROGRAM.name, str(seen)], place)
        yield read(place, python, len(texts))


def program_of(python: str) -> str:
    """Return the path of an interpreter; raise `UserError` where there is none."""
    found = shutil.which(python)
    if found is None:
        raise UserError(f"--python {python}: there is no such program")
    return os.path.abspath(found)  # a link stays one: it tells Python its packages


def link(source: Path, to: Path) -> None:
    """Make a folder of links to a GGUF file, or to a folder's files of `KINDS`."""
    to.mkdir()
    if source.is_file():
        files = [source]
    else:
        if (source / INDEX).exists():
            weight_map(source / INDEX)  # names no file from elsewhere
        files = [path for path in source.iterdir() if path.suffix in KINDS]
    for path in files:
        if path.name not in NEVER:
            (to / path.name).symlink_to(path.absolute())


def source_of(imported: Imported, given: Path | None) -> Path:
    """Return the Hugging Face folder or GGUF file of a model, or the one given."""
    source = Path(imported.source) if given is None else given
    if not source.exists():
        about = f"--source {source} is not there"
        if given is None:
            about = f"{imported.folder} was imported from {source}, which is gone"
        raise UserError(f"{about}; give its Hugging Face folder as --source")
    if source.is_dir() and not (source / "config.json").exists():
        raise UserError(
            f"{source} has no config.json; give a whole Hugging Face folder as --source"
        )
    if source.is_file() and source.suffix != ".gguf":
        raise UserError(f"--source {source} is neither a folder nor a .gguf file")
    return source


def run(command: list[str], place: Path) -> None:
    """Run a program in a folder; raise `UserError` with its last line if it fails."""
    python, log = command[0], place / "output.txt"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=place,
                env=os.environ | QUIET,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise UserError(
                f"--python {python} cannot be started: {error.strerror}"
            ) from None
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"--python {python}: transformers gave no answer in "
                f"{PATIENCE / 60:.0f} minutes; take a smaller model or a faster machine"
            ) from None
        finally:
            process.kill()
            process.wait()
    if status:
        raise UserError(f"--python {python}: {complaint(status, last_line(log))}")


def complaint(status: int, line: str) -> str:
    """Return what went wrong, in a line."""
    if "No module named" in line:
        return f"{line}; give an interpreter where torch and transformers are installed"
    if status < 0:
        line = f"stopped by signal {-status}, perhaps for want of memory; {line}"
    return f"transformers failed: {line.removesuffix('; ')}"


def last_line(log: Path) -> str:
    """Return the last line of a program's output that is not blank."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else "it says nothing"


def read(place: Path, python: str, count: int) -> Said:
    """Return what the program wrote; raise `UserError` where it cannot be read."""
    try:
        said: dict[str, Any] = json.loads((place / "said.json").read_bytes())
        ids, losses, answers = (said[key] for key in ("ids", "losses", "answers"))
        if {len(ids), len(losses), len(answers)} != {count} or not all(ids):
            raise ValueError(f"not {count} texts")
        transformers, torch = said["versions"]
        found = Said(ids, losses, answers, (transformers, torch), place)
        for number in range(count):
            found.logits(number)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--python {python} ended well, but its answer cannot be read "
            f"({error}); give a Python interpreter"
        ) from None
    return found
