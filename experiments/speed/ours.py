"""The product's side; called by compare.py: ``ours.py WORK ROW SETTINGS``."""

import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
from clock import Clock, Orders, serve

HERE = Path(__file__).parent
UNSAID = 3
"""A token of SmolLM2 that no text has: given as the end, all answers are as long."""
LAST_AUTHORS, RECORDS = 20, "records.jsonl"


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

    @property
    def shapes(self):
        return {tuple(mask.shape for mask in masks) for masks in self.seen}

    def tokens(self, first=0):
        """Tokens that count in the batches from ``first`` on."""
        return sum(int(m.sum()) for masks in self.seen[first:] for m in masks)

    def slots(self):
        return sum(m.size for masks in self.seen for m in masks)


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


def finetune(work, batch, lora, records=48):
    """Steps on ``records`` records from all over the epoch."""
    import jax

    name = f"finetune_{batch}_{lora}"
    session = session_of(work, name, f"finetune.batch_size={batch}", *adapters(lora))
    batches = Batches(session.inputs)
    mesh = session.inputs.mesh
    with jax.set_mesh(mesh):
        state, step_fn, steps = begun(session)
    place, known = np.linspace(0, steps, records // batch, endpoint=False), set()

    def run(number):
        nonlocal state
        clock, tokens = Clock(), 0
        for step in (place.astype(int) + number) % steps:
            # a shape that is new here is compiled first, and measured after that
            while True:
                first, once = len(batches.seen), Clock()
                with jax.set_mesh(mesh), once:
                    state, metrics = step_fn(state, int(step))
                    jax.block_until_ready((state, metrics))
                if batches.shapes <= known:
                    break
                known.update(batches.shapes)
            clock.add(once)
            tokens += batches.tokens(first)
        return clock.facts(tokens=tokens, loss=float(metrics["loss"]))

    return run


def padding(work, batch):
    """Share of slots that hold a token in one epoch, and the shapes of its batches."""
    import jax

    session = session_of(work, f"padding_{batch}", f"finetune.batch_size={batch}")
    batches = Batches(session.inputs)
    with jax.set_mesh(session.inputs.mesh):
        state, step_fn, steps = begun(session)
        batches.is_computed = False

        def run(number):
            batches.seen.clear()
            for step in range(steps):
                try:
                    step_fn(state, step)
                except StopIteration:
                    continue
            used = batches.tokens() / batches.slots()
            return {"used": used, "shapes": len(batches.shapes), "steps": steps}

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

    model = load_model(work / "model")
    asked = json.loads((work / "ids.json").read_text())["prompts"][:batch]
    prompt, mask = map(jax.numpy.asarray, padded(asked, left=True))

    def run(number):
        with Clock() as clock, jax.set_mesh(model.mesh):
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
            tokens = int(np.asarray(said.mask).sum())
        return clock.facts(tokens=tokens)

    run(0)
    return run


def dareu(work, lora, length, updates=4):
    """One iteration of DareU on 20 rows of at most ``length`` tokens."""
    import jax

    from dareu_jax.runs.stages import prepare, result_of
    from dareu_jax.unlearning import method_config

    limits = [f"corpus.max_response_tokens={length}", "corpus.truncate=true"]
    limits += ["finetune.epochs=0", f"dareu.updates_per_batch={updates}"]
    session = session_of(work, f"dareu_{lora}_{length}", *limits, *adapters(lora))
    mesh = session.inputs.mesh
    with jax.set_mesh(mesh):
        results = {"original": result_of(session, "original")}
        results["reward"] = result_of(session, "reward", results)
        cfg = method_config(session.inputs.cfg, "dareu")
        _, state, step_fn = prepare(session, "dareu", cfg, results)
    rows = cfg.options("dareu").batch_size

    def run(number):
        nonlocal state
        with Clock() as clock, jax.set_mesh(mesh):
            state, metrics = step_fn(state, number)
            jax.block_until_ready((state, metrics))
        tokens = round(rows * float(metrics["response_length"]))
        return clock.facts(sampled=tokens)

    run(0)
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

    model, reading = reading_of(work)
    pairs = json.loads((work / "asked.json").read_text())["pairs"]

    def run(number):
        with Clock() as clock:
            found = answer_losses(model, reading, pairs)
        return clock.facts(mean=float(np.mean(found.loss)))

    run(0)
    return run


def answers(work):
    """Greedy answers of at most 16 tokens to TOFU's questions."""
    from dareu_jax.evaluation.suites.measure import own_answers

    model, reading = reading_of(work)
    questions = json.loads((work / "asked.json").read_text())["questions"]

    def run(number):
        with Clock() as clock:
            said, _ = own_answers(model, reading, questions)
        return clock.facts(first=said[0])

    run(0)
    return run


def tune(work, batch):
    """Three steps of the stage that fine-tunes, checkpoints included."""
    import jax

    from dareu_jax.runs.stages import result_of

    def run(number):
        changes = f"finetune.batch_size={batch}", f"finetune.epochs={3 * batch / 400}"
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
    """Write the records and what is asked, and both as token ids."""
    write_texts(work, tofu)
    write_ids(work)


def write_texts(work, tofu):
    """Write the records of TOFU's last authors, and questions with their answers."""
    from dareu_jax.data.sources.tofu import TofuOptions, tofu_rows
    from dareu_jax.data.tofu_questions import tofu_questions

    options = TofuOptions(path=str(tofu), last_authors=LAST_AUTHORS)
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
