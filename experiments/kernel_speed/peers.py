"""The same scores by other libraries: CPU time on one thread, and how far they differ.

    python3 -m venv peers
    peers/bin/pip install torch==2.13.0 kronfluence==1.0.1 dattri==0.3.0
    FOLDER=/tmp/kernel_peers WITH="env OMP_NUM_THREADS=1 TQDM_DISABLE=1 taskset -c 0"
    python experiments/kernel_speed/peers_dareu.py export $FOLDER
    for tunables in "" glibc.malloc.hugetlb=1; do
      for round in 1 2 3; do
        export GLIBC_TUNABLES=$tunables
        $WITH python experiments/kernel_speed/peers_dareu.py measure $FOLDER
        for peer in torch compile kronfluence dattri; do
          $WITH peers/bin/python experiments/kernel_speed/peers.py $peer $FOLDER
        done
      done
    done
    python experiments/kernel_speed/peers.py table $FOLDER --out peers.json

The decoder, its weights, the queries and the index are those of `benchmark.py`; the
peers have an environment of their own with torch, kronfluence and dattri. ``owners`` is
32 queries against an index of 20 owners; ``pairwise`` is 32 queries against 32 records.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HEADS, EPS, THETA = 4, 1e-6, 10_000.0
MATRICES = {
    **{f"attention.{name}": name for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}": name for name in ("gate", "up", "down")},
}
"""A matrix of a layer of the JAX decoder -> its name in the torch decoder's block."""


class Job:
    """Measures programs of one library and keeps the least of every round.

    Attributes:
      path: of the results; arrays: what `peers_dareu.export` wrote.
      versions: of the packages that matter.
    """

    def __init__(self, name: str, folder: Path, packages: tuple[str, ...]):
        huge = "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
        self.path = folder / f"{name}{', huge pages' if huge else ''}.json"
        self.arrays = dict(np.load(folder / "arrays.npz"))
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.versions = {package: version(package) for package in packages}

    def measure(
        self, row: str, run: Callable[[], Any], wanted: str = "", calls: int = 7
    ) -> None:
        """Adds the least CPU time of ``calls`` after a first, and the scores' error.

        Args:
          row: a name; run: computes and returns scores.
          wanted: the exact scores' name in the arrays; none: nothing is compared.
        """
        scores, times = run(), []
        for _ in range(calls):
            begun = time.process_time()
            run()
            times.append(1000 * (time.process_time() - begun))
        rounds = [*self.rows.get(row, {}).get("rounds", []), min(times)]
        new: dict = {"cpu_ms": min(rounds), "rounds": rounds}
        if wanted:
            exact = self.arrays[wanted]
            error = np.abs(np.asarray(scores) - exact).max() / np.abs(exact).max()
            new["max_rel_error"] = float(error)
        self.rows[row] = new | {"versions": self.versions}
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(row, new, flush=True)


def torch_decoder(arrays: dict):
    """The decoder of `benchmark` as a torch module, with its weights.

    Attention is explicit: for torch's own fused one ``vmap`` has no rule on CPU, and it
    is no faster in kronfluence either.
    """
    import torch
    from torch import nn

    torch.set_num_threads(1)
    layers, width, ffn = arrays["p/layers/mlp/up/kernel"].shape
    length = arrays["queries"].shape[1] - 1

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm = nn.RMSNorm(width, EPS)
            self.mlp_norm = nn.RMSNorm(width, EPS)
            for name in ("q", "k", "v", "o"):
                setattr(self, name, nn.Linear(width, width, bias=False))
            self.gate = nn.Linear(width, ffn, bias=False)
            self.up = nn.Linear(width, ffn, bias=False)
            self.down = nn.Linear(ffn, width, bias=False)

        def forward(self, x, cos, sin, hidden):
            def heads(y):
                return y.unflatten(-1, (HEADS, -1)).transpose(-2, -3)

            def rotated(y):
                a, b = heads(y).chunk(2, -1)
                return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

            h = self.attention_norm(x)
            q, k, v = rotated(self.q(h)), rotated(self.k(h)), heads(self.v(h))
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mixed = torch.softmax(scores + hidden, -1) @ v
            x = x + self.o(mixed.transpose(-2, -3).flatten(-2))
            h = self.mlp_norm(x)
            return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(*arrays["p/embed/embedding"].shape)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.final_norm = nn.RMSNorm(width, EPS)
            size = width // HEADS
            freq = THETA ** -(torch.arange(0, size, 2) / size)
            angle = torch.arange(length)[:, None] * freq
            self.cos, self.sin = angle.cos(), angle.sin()
            self.hidden = torch.full((length, length), -1e30).triu(1)

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin, self.hidden)
            return nn.functional.linear(self.final_norm(x), self.embed.weight)

    model = Decoder().eval()
    model.load_state_dict(weights(arrays))
    own = {name for name, _, _ in places(arrays)}
    for name, leaf in model.named_parameters():
        leaf.requires_grad_(name in own)
    numbers = sum(x.numel() for x in model.parameters() if x.requires_grad)
    assert numbers == arrays["attributed"]
    return model


def places(arrays: dict) -> list[tuple[str, str, int]]:
    """Every attributed matrix: its name in torch, its path in JAX, its layer."""
    layers = len(arrays["p/layers/mlp_norm/scale"])
    return [
        (f"blocks.{at}.{name}.weight", path, at)
        for at in range(layers)
        for path, name in MATRICES.items()
    ]


def weights(arrays: dict) -> dict:
    """The weights as torch keeps them: a matrix as ``[out, in]``, layers apart."""
    import torch

    flat = {
        "embed.weight": arrays["p/embed/embedding"],
        "final_norm.weight": arrays["p/final_norm/scale"],
    }
    for name, path, at in places(arrays):
        flat[name] = arrays[f"p/layers/{path.replace('.', '/')}/kernel"][at].T
        for norm in ("attention_norm", "mlp_norm"):
            flat[f"blocks.{at}.{norm}.weight"] = arrays[f"p/layers/{norm}/scale"][at]
    return {name: torch.tensor(x) for name, x in flat.items()}


def texts(arrays: dict, name: str):
    """``(tokens [B, 1 + T], weight [B, T])``: a weight is 1 / length on real tokens."""
    import torch

    mask = torch.tensor(arrays[f"{name}_mask"][:, 1:]).float()
    return torch.tensor(arrays[name]).long(), mask / mask.sum(1, keepdim=True)


def log_likelihood(logits, tokens, weight):
    """The sum over responses of the mean log-likelihood of their tokens."""
    from torch.nn.functional import cross_entropy

    nll = cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
    return -(nll * weight.flatten()).sum()


def torch(folder: Path, compiled: bool = False) -> None:
    """Measures ``vmap(grad)`` and products with the index, matrix by matrix."""
    import torch
    from torch.func import functional_call, grad, vmap

    job = Job("torch.compile" if compiled else "torch", folder, ("torch",))
    queries, train = texts(job.arrays, "queries"), texts(job.arrays, "train")
    index = {
        name: torch.tensor(job.arrays[f"o/layers.{path}.kernel"][at].swapaxes(1, 2))
        for name, path, at in places(job.arrays)
    }
    index = {name: x.flatten(1) for name, x in index.items()}
    model = torch_decoder(job.arrays)
    matrices = {n: x.detach() for n, x in model.named_parameters() if x.requires_grad}

    def measured(matrices, tokens, weight):
        logits = functional_call(model, matrices, (tokens[..., :-1],))
        return log_likelihood(logits, tokens[..., 1:], weight)

    each, summed = vmap(grad(measured), in_dims=(None, 0, 0)), grad(measured)

    def owners(matrices, index):
        grads = each(matrices, *queries)
        return sum(g.flatten(1) @ index[name].T for name, g in grads.items())

    def pairs(matrices):
        left, right = each(matrices, *queries), each(matrices, *train)
        return sum(g.flatten(1) @ right[name].flatten(1).T for name, g in left.items())

    if compiled:
        owners, pairs, summed = map(torch.compile, (owners, pairs, summed))
    job.measure("summed gradient", lambda: summed(matrices, *queries))
    job.measure("owners: vmap(grad)", lambda: owners(matrices, index), "owners")
    job.measure("pairwise: vmap(grad)", lambda: pairs(matrices), "pairwise")


def compile(folder: Path) -> None:
    """Measures the same programs after ``torch.compile``."""
    torch(folder, compiled=True)


def kronfluence(folder: Path) -> None:
    """Measures pairwise scores of the identity strategy, then without its files."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.score.pairwise import compute_pairwise_scores_with_loaders
    from kronfluence.task import Task
    from torch.utils.data import DataLoader, TensorDataset

    job = Job("kronfluence", folder, ("kronfluence", "torch"))

    class Likelihood(Task):
        def compute_train_loss(self, batch, model, sample=False):
            tokens, weight = batch
            return -log_likelihood(model(tokens[:, :-1]), tokens[:, 1:], weight)

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return [name.removesuffix(".weight") for name, _, _ in places(job.arrays)]

    queries = TensorDataset(*texts(job.arrays, "queries"))
    train = TensorDataset(*texts(job.arrays, "train"))
    factors, scores = FactorArguments(strategy="identity"), ScoreArguments()
    task, again = Likelihood(), {"overwrite_output_dir": True}
    model = prepare_model(torch_decoder(job.arrays), task)
    analyzer = Analyzer(
        *("kronfluence", model, task, True, logging.ERROR),
        **{"disable_tqdm": True, "output_dir": str(folder)},
    )
    analyzer.fit_all_factors("identity", train, 32, factor_args=factors, **again)
    given = ("pairwise", "identity", queries, train, 32, 32)

    def whole():
        analyzer.compute_pairwise_scores(*given, score_args=scores, **again)
        return analyzer.load_pairwise_scores("pairwise")["all_modules"]

    def core():
        loaders = DataLoader(queries, 32), 32, DataLoader(train, 32)
        return compute_pairwise_scores_with_loaders(
            {}, model, analyzer.state, task, *loaders, scores, factors, None, True
        )["all_modules"]

    job.measure("pairwise: compute_pairwise_scores", whole, "pairwise")
    job.measure("pairwise: the same without files", core, "pairwise")


def dattri(folder: Path) -> None:
    """Measures GradDot without a projection, and as it comes.

    Given a ``projector_kwargs`` of None the class keeps its default, a projection to
    512 numbers; the attribute of that name, set to None afterwards, turns it off.
    """
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch import ones
    from torch.func import functional_call
    from torch.utils.data import DataLoader, TensorDataset

    job = Job("dattri", folder, ("dattri", "torch"))
    model = torch_decoder(job.arrays)

    def loss(params, batch):
        tokens, weight = batch
        logits = functional_call(model, params, (tokens[:-1],))
        return -log_likelihood(logits, tokens[1:], weight)

    task = AttributionTask(loss, model, model.state_dict())
    queries, train = (
        DataLoader(TensorDataset(*texts(job.arrays, name)), 32)
        for name in ("queries", "train")
    )
    plain, default = (
        TracInAttributor(task, ones(1), normalized_grad=False) for _ in range(2)
    )
    plain.projector_kwargs = None
    for row, given, calls in (("no", plain, 2), ("default", default, 1)):
        job.measure(
            f"pairwise: {row} projection",
            lambda given=given: given.attribute(train, queries).detach().T,
            *("pairwise", calls),
        )


def table(folder: Path, out: str | None) -> None:
    """Prints every row and what part of it `dareu` takes for the same job."""
    rows = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    print("| | CPU ms | dareu / it | largest error of scores |\n|---|---|---|---|")
    for library, found in sorted(rows.items()):
        ours = rows["dareu" + library[len(library.split(",")[0]) :]]
        least = {
            job: min(x["cpu_ms"] for row, x in ours.items() if row.startswith(start))
            for job, start in (
                ("owners", "owners: probe"),
                ("pairwise", "pairwise"),
                ("summed gradient", "summed gradient"),
            )
        }
        for name, row in found.items():
            ratio = row["dareu_over_this"] = least[name.split(":")[0]] / row["cpu_ms"]
            error = f"{row['max_rel_error']:.1e}" if "max_rel_error" in row else ""
            print(
                f"| {library}: {name} | {row['cpu_ms']:.0f} | {ratio:.2f} | {error} |"
            )
    if out:
        Path(out).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    does = {run.__name__: run for run in (torch, compile, kronfluence, dattri)}
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=[*does, "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out")
    given = parser.parse_args()
    if given.what == "table":
        table(given.folder, given.out)
    else:
        does[given.what](given.folder)
