"""The product's side; called by compare.py: ``ours.py WORK ROW SETTINGS``."""

import collections
import contextlib
import itertools
import json
import math
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
from clock import Clock, Orders, serve

HERE = Path(__file__).parent
UNSAID = 3
"""A token of SmolLM2 that no text has: given as the end, all answers are as long."""
RECORDS = "records.jsonl"


def config_of(work, *changes):
    """The configuration of the rows, with the model and records of ``work``."""
    from dareu_jax import load_config

    paths = [f"model.path={work / 'model'}", f"corpus.path={work / RECORDS}"]
    return load_config(HERE / "config.yaml", [*paths, *changes])


def session_of(work, name, *changes):
    """Where the stages of a run with these changes are made."""
    from dareu_jax.runs.inputs import Inputs
    from dareu_jax.runs.stages import Session
    from dareu_jax.training.tracking import Tracker

    folder = work / "sessions" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Session(Inputs(config_of(work, *changes), 0, folder), Tracker(folder))


def adapters(lora):
    return ["lora.rank=8", "lora.alpha=16"] if lora else []


class Batches:
    """Keeps the masks of every batch that a stage puts on the devices."""

    def __init__(self, inputs):
        self.seen, self._place = [], inputs.place
        self.is_computed = True
        inputs.place = self

    def __call__(self, batch):
        self.seen.append((batch.prompt_mask, batch.response_mask))
        if not self.is_computed:
            raise StopIteration
        return self._place(batch)

    def of(self, step_fn, state, steps):
        """Shape, tokens and slots of every step's batch; nothing is computed."""
        self.is_computed, found = False, []
        for step in range(steps):
            self.seen.clear()
            with contextlib.suppress(StopIteration):
                step_fn(state, step)
            masks = self.seen[0]
            shape = tuple(mask.shape for mask in masks)
            found.append((shape, sum(int(m.sum()) for m in masks)))
        self.is_computed = True
        return found


def slots(shape):
    return sum(math.prod(side) for side in shape)


class Compiling:
    """Whether a program was traced or compiled since it was last asked."""

    def __init__(self):
        import jax

        self._seen = False
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, duration, **_):
        self._seen |= event.startswith("/jax/core/compile")

    def was(self):
        seen, self._seen = self._seen, False
        return seen

    def steady(self, call):
        """Clock and result of the first call in which nothing is compiled.

        What is traced anew in every call is part of its cost.
        """
        for _ in range(3):
            self.was()
            with Clock() as clock:
                result = call()
            if not self.was():
                break
        return clock, result


class Begun(Exception):
    """State, step and steps of a stage that was about to run."""


def begun(session):
    """State, step function and steps of fine-tuning, as ``dareu run`` makes them."""
    from dareu_jax.runs import stages

    def stop(where, state, steps, step_fn, **_):
        raise Begun(state, step_fn, steps)

    records = session.inputs.corpus.train
    with mock.patch.object(stages, "run_stage", stop):
        try:
            stages.finetune(session, "finetune_original", records)
        except Begun as found:
            return found.args
    raise RuntimeError("fine-tuning runs no stage")


def finetune(work, batch, lora):
    """One epoch: a step of every shape, times the steps that have it."""
    import jax

    name = f"finetune_{batch}_{lora}"
    session = session_of(work, name, f"finetune.batch_size={batch}", *adapters(lora))
    batches, compiling = Batches(session.inputs), Compiling()
    mesh, epochs = session.inputs.mesh, session.inputs.cfg.finetune.epochs
    with jax.set_mesh(mesh):
        state, step_fn, steps = begun(session)
        found = batches.of(step_fn, state, round(steps / epochs))
    shapes = collections.Counter(shape for shape, _ in found)
    tokens = sum(count for _, count in found)

    def one(step):
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step_fn(state, step)
            return jax.block_until_ready((state, metrics))[1]

    def run(number):
        clock = Clock()
        for shape, count in shapes.items():
            steps = [n for n, (other, _) in enumerate(found) if other == shape]
            step = steps[number % len(steps)]
            clock.add(compiling.steady(lambda step=step: one(step))[0], count)
        return clock.facts(tokens=tokens, shapes=len(shapes))

    run(0)
    return run


def padding(work, batch):
    """Share of slots that hold a token in one epoch, and the shapes of its batches."""
    import jax

    session = session_of(work, f"padding_{batch}", f"finetune.batch_size={batch}")
    batches, epochs = Batches(session.inputs), session.inputs.cfg.finetune.epochs
    with jax.set_mesh(session.inputs.mesh):
        state, step_fn, steps = begun(session)

    def run(number):
        found = batches.of(step_fn, state, round(steps / epochs))
        used = sum(n for _, n in found) / sum(slots(shape) for shape, _ in found)
        return {"used": used, "shapes": len({shape for shape, _ in found})}

    return run


def padded(rows, left=False):
    """Token ids ``[B, T]`` and their mask."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int32)
    for n, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, at], mask[n, at] = row, 1
    return ids, mask.astype(bool)


def generate(work, batch, temperature, new_tokens=48):
    """Answers of ``new_tokens`` tokens to TOFU's questions."""
    import jax

    from dareu_jax import load_model, models

    model, compiling = load_model(work / "model"), Compiling()
    asked = json.loads((work / "ids.json").read_text())["prompts"][:batch]
    prompt, mask = map(jax.numpy.asarray, padded(asked, left=True))

    def sample(number):
        with jax.set_mesh(model.mesh):
            said = models.generate(
                model.decoder,
                model.params,
                prompt,
                mask,
                max_new_tokens=new_tokens,
                temperature=temperature,
                stop_ids=(UNSAID,),
                key=jax.random.key(number),
            )
            return int(np.asarray(said.mask).sum())

    def run(number):
        clock, tokens = compiling.steady(lambda: sample(number))
        return clock.facts(tokens=tokens)

    sample(0)
    return run


def dareu(work, lora, length, updates=4):
    """One iteration of DareU on 20 rows of at most ``length`` tokens."""
    import jax

    from dareu_jax.runs.stages import prepare, result_of
    from dareu_jax.unlearning import method_config

    limits = [f"corpus.max_response_tokens={length}", "corpus.truncate=true"]
    limits += ["finetune.epochs=0", f"dareu.updates_per_batch={updates}"]
    session = session_of(work, f"dareu_{lora}_{length}", *limits, *adapters(lora))
    compiling, mesh = Compiling(), session.inputs.mesh
    with jax.set_mesh(mesh):
        results = {"original": result_of(session, "original")}
        results["reward"] = result_of(session, "reward", results)
        cfg = method_config(session.inputs.cfg, "dareu")
        _, state, step_fn = prepare(session, "dareu", cfg, results)
    rows = cfg.options("dareu").batch_size

    def iterate(number):
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step_fn(state, number)
            return jax.block_until_ready((state, metrics))[1]

    def run(number):
        clock, metrics = compiling.steady(lambda: iterate(number))
        return clock.facts(sampled=round(rows * float(metrics["response_length"])))

    iterate(0)
    return run


def reading_of(work):
    """The imported model, and how it reads in a suite."""
    from dareu_jax import load_model
    from dareu_jax.data import Wording
    from dareu_jax.evaluation.suites.measure import Reading

    return load_model(work / "model"), Reading(Wording(), 16, 16)


def losses(work):
    """Losses of right and wrong answers to TOFU's questions."""
    from dareu_jax.evaluation.suites.measure import answer_losses

    (model, reading), compiling = reading_of(work), Compiling()
    pairs = json.loads((work / "asked.json").read_text())["pairs"]

    def run(number):
        clock, found = compiling.steady(lambda: answer_losses(model, reading, pairs))
        return clock.facts(mean=float(np.mean(found.loss)))

    return run


def answers(work):
    """Greedy answers of at most 16 tokens to TOFU's questions."""
    from dareu_jax.evaluation.suites.measure import own_answers

    (model, reading), compiling = reading_of(work), Compiling()
    asked = json.loads((work / "asked.json").read_text())["questions"]

    def run(number):
        clock, (said, _) = compiling.steady(lambda: own_answers(model, reading, asked))
        return clock.facts(first=said[0])

    return run


def tune(work, batch):
    """Three steps of the stage that fine-tunes, checkpoints included."""
    import jax

    from dareu_jax.runs.stages import result_of

    changes = f"finetune.batch_size={batch}", f"finetune.epochs={3 * batch / 4000}"

    def run(number):
        shutil.rmtree(work / "sessions" / f"tune_{batch}", ignore_errors=True)
        session = session_of(work, f"tune_{batch}", *changes)
        with Clock() as clock, jax.set_mesh(session.inputs.mesh):
            jax.block_until_ready(result_of(session, "original"))
        return clock.facts()

    return run


def facts(work):
    """Versions of what runs here."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return lambda number: {name: version(name) for name in names}


def write_work(work, tofu):
    """Write the records and what is asked, unless they are there, and token ids."""
    if not (work / RECORDS).exists():
        write_texts(work, tofu)
    write_ids(work)


def write_texts(work, tofu):
    """Write TOFU's records, and questions with their answers."""
    from dareu_jax.data.sources.tofu import TofuOptions, tofu_rows
    from dareu_jax.data.tofu_questions import tofu_questions

    options = TofuOptions(path=str(tofu))
    rows = [record for split, record in tofu_rows(options, work) if split == "train"]
    lines = [
        {"owner": r.owner, "prompt": r.prompt, "response": r.response} for r in rows
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (work / RECORDS).write_text(text)
    sets = tofu_questions(tofu, "forget10", work, 8)[:4]
    pairs = [
        (q.prompt, answer)
        for rows in sets
        for q in rows[:4]
        for answer in dict.fromkeys((q.answer, q.right, *q.wrong))
    ]
    questions = [q.prompt for q in itertools.chain(*sets)]
    asked = {"pairs": pairs, "questions": questions}
    (work / "asked.json").write_text(json.dumps(asked))


def write_ids(work):
    """Write the token ids of all that the other side reads."""
    from dareu_jax.data import Record
    from dareu_jax.data.batches import encode

    inputs = session_of(work, "ids").inputs
    asked = json.loads((work / "asked.json").read_text())

    def ids(pairs):
        records = [Record(str(n), "", *pair) for n, pair in enumerate(pairs)]
        return list(zip(*encode(records, inputs.tokenizer, inputs.wording)))

    train, forget = inputs.corpus.train, inputs.split.forget
    questions = ids([(question, "") for question in asked["questions"]])
    pairs = ids([(r.prompt, r.response) for r in train])
    owned = inputs.corpus.owners
    out = {
        "records": pairs,
        "owners": [owned.index(r.owner) for r in train],
        "forget": [n for n, r in enumerate(train) if r in forget],
        "prompts": [prompt for prompt, _ in pairs],
        "pairs": ids(asked["pairs"]),
        "questions": [prompt for prompt, _ in questions],
        "stop_ids": inputs.tokenizer.stop_ids,
    }
    (work / "ids.json").write_text(json.dumps(out))


ROWS = {
    f.__name__: f
    for f in (finetune, padding, generate, dareu, losses, answers, tune, facts)
}


def main(work, row, settings):
    from dareu_jax.cli.startup import prepare_jax

    prepare_jax()
    orders = Orders()
    serve(ROWS[row](Path(work), **json.loads(settings)), orders)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        write_work(*map(Path, sys.argv[2:]))
    else:
        main(*sys.argv[1:])
