"""What `compare.py` measures, row by row, and what is wanted of each."""

from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Row(NamedTuple):
    """A function of every side, what it is given, and the ratio that is wanted."""

    name: str
    settings: dict[str, Any]
    target: float | None = None
    unit: str | None = None  # seconds for each of these; None: for all
    peers: tuple[str, ...] = ("torch",)
    is_default: bool = True


def finetunes():
    for batch in (8, 16):
        for lora in (False, True):
            settings = {"batch": batch, "lora": lora}
            yield (
                f"finetune_{batch}_{kind(lora)}",
                Row("finetune", settings, 0.75, "tokens"),
            )


def generations():
    for batch in (8, 32):
        for temperature in (0.0, 1.0):
            name = f"generate_{batch}_{'sampled' if temperature else 'greedy'}"
            settings = {"batch": batch, "temperature": temperature}
            yield name, Row("generate", settings, 0.55, "tokens")


def iterations():
    for lora in (True, False):
        for length in (48, 96):
            settings = {"lora": lora, "length": length}
            yield (
                f"dareu_{kind(lora)}_{length}",
                Row(
                    "dareu",
                    settings,
                    0.6,
                    None,
                    ("torch", "trl"),
                    lora == (length == 96),
                ),
            )


def kind(lora):
    return "lora" if lora else "full"


ROWS: dict[str, Row] = {
    **dict(finetunes()),
    "padding": Row("padding", {"batch": 16}),
    **dict(generations()),
    **dict(iterations()),
    "losses": Row("losses", {}, 0.7),
    "answers": Row("answers", {}, 0.7),
}
"""By name: what is measured in rounds."""


class Command(NamedTuple):
    """What is run once, from a cold cache: a command of ``dareu`` or a script.

    ``{work}`` in a word is the folder of `--work`, ``{out}`` a new one.
    """

    words: tuple[str, ...]
    targets: dict[str, float]
    is_pinned: bool = False


def whole_run(*changes):
    """``dareu run`` of a short fine-tuning and three steps of unlearning."""
    paths = ("model.path={work}/model", "corpus.path={work}/records.jsonl")
    short = (
        "finetune.epochs=0.012",
        "dareu.data_epochs=2",
        "dareu.updates_per_batch=2",
    )
    run = ("-m", "dareu_jax", "run", str(HERE / "config.yaml"), "--out", "{out}")
    return (*run, *paths, *short, *changes)


QUICKSTART = HERE.parent / "quickstart" / "config.yaml"
COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        ("-m", "dareu_jax", "run", str(QUICKSTART), "--out", "{out}"),
        {"wall_s": 110, "programs": 60},
    ),
    "memory_finetune_16": Command(
        (str(HERE / "ours.py"), "{work}", "tune", '{"batch": 16}'), {"peak_MiB": 4291}
    ),
    "memory_dareu_full": Command(whole_run(), {"peak_MiB": 5722}),
    "memory_npo_full": Command(whole_run("methods=[npo]"), {"peak_MiB": 5722}),
    "memory_dareu_lora": Command(whole_run("lora.rank=8"), {"peak_MiB": 2861}),
    "scaling": Command((str(HERE / "scaling.py"), "--out", "{out}"), {}, True),
}
"""By name: what is run once. Targets in MiB are 4.5, 6 and 3 GB."""
