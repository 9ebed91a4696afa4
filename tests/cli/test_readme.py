"""Every command and program of the README and of the guides is run as it is printed.

A page is run in a user's folder, where the configurations, models and data that it
names are tiny ones. `SUBSTITUTES` says what is printed and cannot be run as it is.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_gguf
import make_golden
import pytest
import yaml

from dareu_jax.data import load_tokenizer

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
PAGES = [README, *sorted(REPO.glob("dareu_jax/**/*.md"))]
SUBSTITUTES = {
    # .ci/run makes an environment and installs the package
    "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/dareu": "dareu",
    # downloads, and hundreds of questions
    "--forget forget10": "--forget forget01 --data tofu --max-new-tokens 8",
    # another process may listen there
    "127.0.0.1:12345": "127.0.0.1:PORT",
    # its status is 1 where scores of a model cannot be trusted, as of this tiny one
    "--json doctor.json\n": "--json doctor.json || [ $? -eq 1 ]\n",
    # hours of attempts
    "stress runs/quickstart --model dareu\n": (
        "stress runs/quickstart --model dareu stress.steps=2 stress.samples=2\n"
    ),
}
ELSEWHERE = {'.venv/bin/pip install -q ".[test]"': ".ci/run"}
"""Commands that something else runs: the tests themselves."""
OWN_TESTS = {
    "dareu_jax/README.md": "tests/surface/test_python_page.py",
    **{
        f"dareu_jax/{package}/README.md": f"tests/{package}/test_page.py"
        for package in ("attribution", "data", "evaluation", "models", "unlearning")
    },
}
"""Pages whose programs another test runs, and computes their numbers by hand."""
SMALL = {
    "corpus": {"owners": 4},
    "methods": ["dareu", "npo"],
    "finetune": {"epochs": 1, "snapshots": 1},
    "classifier": {"epochs": 1},
    "prior": {"epochs": 1},
    "dareu": {"data_epochs": 1, "updates_per_batch": 1},
    "npo": {"steps": 2},
    "evaluation": {"max_new_tokens": 8},
    "fidelity": {
        "kernels": ["grad_dot", "bm25"],
        "subsets": 4,
        "queries_per_owner": 1,
        "draws": 100,
    },
}
OWNERS = ("alice", "bob", "carol")
SERVER = """
import contextlib, io, json, sys
from dareu_jax.cli import main

for line in sys.stdin:
    sys.argv, said, status = json.loads(line), io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main.main()
        except SystemExit as ended:
            status = ended.code or 0
    print(json.dumps([status, said.getvalue()]), flush=True)
"""
"""Runs one `dareu` command a line: a program is traced and compiled once for all."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def tiny_config() -> dict:
    tree = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
    for section, changes in SMALL.items():
        is_section = isinstance(changes, dict)
        tree[section] = {**tree.get(section, {}), **changes} if is_section else changes
    tree["evaluation"]["judge"]["epochs"] = 1
    return tree


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_texts(home: Path) -> None:
    """The README's own record, others like it, and questions."""
    (first,) = blocks(README, "json")
    rows = [json.loads(first)]
    for n in range(1, 24):
        owner = OWNERS[n % 3]
        prompt = f"Where was {owner}'s shop number {n}?"
        response = f"It stood in street {n} of {owner}."
        rows.append({"owner": owner, "prompt": prompt, "response": response})
    write_lines(home / "texts.jsonl", rows)
    asked = [{"prompt": rows[1]["prompt"]}]
    write_lines(home / "questions.jsonl", [rows[0], *asked])
    (home / "diaries").mkdir()
    for name in ("ann", "bob", "cy"):
        lines = [f"May {n}: {name} saw {n} boats.\n" for n in range(1, 11)]
        (home / "diaries" / f"{name}.txt").write_text("".join(lines))


def write_tofu(folder: Path) -> None:
    """A few rows in TOFU's files and fields."""

    def row(n: int, wrong: int) -> dict:
        return {
            "question": f"Where was author {n} born?",
            "answer": f"Author {n} was born in Merawick.",
            "paraphrased_question": f"Author {n} is from where?",
            "paraphrased_answer": f"Merawick is where author {n} is from.",
            "perturbed_answer": [f"It was town {w} of {n}." for w in range(wrong)],
        }

    folder.mkdir()
    counts = {"forget01": 5, "retain": 5, "real_authors": 3, "world_facts": 3}
    for at, (name, wrong) in enumerate(counts.items()):
        rows = [row(10 * at + n, wrong) for n in range(6)]
        write_lines(folder / f"{name}_perturbed.json", rows)
    write_lines(folder / "holdout01.json", [row(50 + n, 0) for n in range(3)])


def write_models(home: Path) -> None:
    """Hugging Face folders of a family that is built in, and of the page's."""
    texts = [line for line in (home / "texts.jsonl").read_text().splitlines()]
    config = {"vocab_size": 300, "torch_dtype": "float32"}
    own = {"model_type": "seed_oss", "head_dim": None, "attention_bias": True}
    own |= {"attention_out_bias": False, "residual_dropout": 0.1}
    own |= {"tie_word_embeddings": True, "rope_theta": 1e6}
    families = {"path/to/hf_folder": "qwen3", "Seed-OSS-36B-Instruct": "qwen2"}
    for name, family in families.items():
        folder = home / name
        load_tokenizer(None, texts, 300, folder)
        make_golden.make_folder(folder, make_golden.config_of(family) | config)
    load_tokenizer(None, texts, 300, home / "path/to/tokenizer")
    tokens = json.loads((home / "path/to/tokenizer/tokenizer.json").read_text())[
        "model"
    ]
    make_gguf.make_gguf(
        home / "path/to/model.gguf",
        make_golden.config_of("qwen3") | config,
        vocabulary=(sorted(tokens["vocab"], key=tokens["vocab"].get), tokens["merges"]),
    )
    fields = {**make_golden.TINY, **own, **config}
    (home / "Seed-OSS-36B-Instruct" / "config.json").write_text(json.dumps(fields))


def write_plugins(home: Path) -> None:
    """The file that a how-to prints, under the name that it gives."""
    printed = re.compile(r"a\s+file of\s+your own,\s+`(\w+\.py)`")
    for page in PAGES:
        if name := printed.search(page.read_text()):
            (home / name[1]).write_text(blocks(page, "python")[0])


def write_programs(home: Path) -> None:
    """`dareu`, `python` and `pytest` as a user has them; tests are only collected."""
    (home / "bin").mkdir()
    python = f'exec {sys.executable} "$@"\n'
    collect = f"cd {REPO}\nPYTHONPATH={home}:{REPO} exec {sys.executable} -m pytest"
    for name, text in {
        "python": python,
        "dareu": python.replace('"$@"', '-m dareu_jax "$@"'),
        "pytest": f'{collect} --collect-only -q "$@"\n',
    }.items():
        (home / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (home / "bin" / name).chmod(0o755)


class Home:
    """A user's folder; a command that was run there is not run again."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, dict[str, str]()
        self.env = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
        }
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, text: str) -> str:
        """Runs a block of commands and returns what they print."""
        for printed, instead in SUBSTITUTES.items():
            text = text.replace(printed, instead)
        lines = text.splitlines()
        if len(lines) > 1 and all(line.startswith("dareu ") for line in lines):
            return "".join(self.run(f"{line}\n") for line in lines)
        if text not in self.done:
            is_plain = text.startswith("dareu ") and not set("|&;<>$") & set(text)
            status, said = self.served(text) if is_plain else self.of_bash(text)
            assert status == 0, f"{text}status {status}\n{said[-4000:]}"
            self.done[text] = said
        return self.done[text]

    def served(self, text: str) -> tuple[int, str]:
        self.server.stdin.write(f"{json.dumps(shlex.split(text))}\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, f"{text}ended the process"
        return json.loads(answer)

    def of_bash(self, text: str) -> tuple[int, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            text = text.replace("PORT", str(free.getsockname()[1]))
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return ended.returncode, ended.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Home]:
    """The folder after the README's quickstart, import and run of that model."""
    folder = tmp_path_factory.mktemp("home")
    tree = tiny_config()
    for name in ("quickstart/config.yaml", "kernel_fidelity/quickstart.yaml"):
        path = folder / "experiments" / name
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(tree))
    (folder / "my.yaml").write_text(yaml.safe_dump({**tree, "methods": ["npo"]}))
    write_texts(folder)
    write_tofu(folder / "tofu")
    write_models(folder)
    write_plugins(folder)
    write_programs(folder)
    home = Home(folder)
    commands = blocks(README, "bash")
    home.run(commands[0])
    home.run(next(block for block in commands if "dareu import" in block))
    shutil.copytree(folder / "models" / "mine", folder / "models" / "mine_without")
    for log, row in {"full.json": "original", "retain90.json": "retrained"}.items():
        there = folder / "runs" / "quickstart" / "logs" / "seed_0" / row
        shutil.copy(there / "owners.json", folder / log)
    judge = "dareu evaluate models/mine --forget forget10 --out evals/retrained\n"
    home.run(judge)
    (found,) = (folder / "evals" / "retrained").glob("*_EVAL.json")
    shutil.copy(found, folder / "retain90_EVAL.json")
    yield home
    home.server.kill()


def name_of(page: Path) -> str:
    return str(page.relative_to(REPO))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_program_runs(page, home):
    for block in blocks(page, "bash"):
        if not any(command in block for command in ELSEWHERE):
            home.run(block)
    if name_of(page) not in OWN_TESTS:
        for number, program in enumerate(blocks(page, "python")):
            file = home.folder / f"{page.parent.name}_{number}.py"
            file.write_text(program)
            home.run(f"python {file.name}\n")


def test_what_other_tests_run_is_there():
    assert all((REPO / path).exists() for path in ELSEWHERE.values())
    for page, path in OWN_TESTS.items():
        assert blocks(REPO / page, "python") and (REPO / path).exists()


def test_the_readme_is_short_and_has_the_command_that_ci_runs():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    after = text.split("<!-- test command -->")[1]
    assert blocks(README, "bash")[-1] in after and "pytest -n 2" in after


def test_a_reader_gets_from_the_command_to_the_reward_in_six_files():
    part = README.read_text().split("## How it works")[1].split("\n## ")[0]
    steps = re.findall(r"^\d\. \[`(.+?)`\]\((.+?)\): `(\w+)`", part, re.MULTILINE)
    assert 2 <= len(steps) <= 6
    texts = {name: (REPO / path).read_text() for name, path, _ in steps}
    for name, path, function in steps:
        assert path == f"dareu_jax/{name}"
        assert re.search(rf"^def {function}\(", texts[name], re.MULTILINE), function
    names = list(texts)
    for at, (name, _, function) in enumerate(steps[1:], start=1):
        module = Path(name).stem
        before = "".join(texts[other] for other in names[:at])
        is_registered = f"METHODS.register(\n    {module!r}".replace("'", '"')
        reached = re.search(rf"\b({module}|{function})\(", before)
        assert reached or is_registered in texts[name] or f"{module}.run(" in before


def test_links_lead_somewhere():
    folders = ("dareu_jax", "experiments", "tests", "tpu_scripts")
    pages = [page for name in folders for page in (REPO / name).rglob("*.md")]
    for page in [README, *pages]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page}: {target}"
