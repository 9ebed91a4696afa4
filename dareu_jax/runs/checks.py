"""Find what is wrong with a run before anything is trained."""

import warnings
from pathlib import Path

from dareu_jax import data
from dareu_jax.config import RunConfig
from dareu_jax.errors import Caution, UserError
from dareu_jax.models import (
    DecoderConfig,
    abstract_adapters,
    abstract_params,
    parameters,
)
from dareu_jax.models.hf.imported import open_imported
from dareu_jax.parallel import batch_devices, check_divisible, is_first
from dareu_jax.registry import METHODS
from dareu_jax.runs.folder import base_of
from dareu_jax.runs.inputs import Inputs, Part, parts_of
from dareu_jax.runs.own_kernel import check_own_kernel
from dareu_jax.runs.plan import plan
from dareu_jax.runs.reward_index import Fitted, kernel_of
from dareu_jax.training.progress import Progress
from dareu_jax.unlearning import make_dareu, method_config, needs_of, reads_of
from dareu_jax.unlearning.setting import pays_for_prior

LARGE_PRIOR = 0.1
"""Share of the policy's parameters above which a prior is as good as retraining."""


def check(cfg: RunConfig, trial: Path, progress: Progress) -> data.Corpus:
    """Reads the whole input in a trial folder, before anything is trained or kept."""
    for name in (*cfg.methods, *cfg.overrides):
        method_config(cfg, name)
    plan(cfg)
    one = Inputs(cfg, cfg.seeds[0], trial)
    for records in (one.split.forget, one.split.retain, one.split.test):
        one.tokens(records)
    check_models(one)
    check_reward(one)
    for name in cfg.methods:
        row = method_config(cfg, name)
        check_forget_batch(one, name, row)
        check_base(name, row)
        check_actions(name, row)
        if METHODS.get(name).make is make_dareu:
            tell_minibatches(one, name, row, progress)
    for size in batch_sizes(cfg):
        check_divisible(size, one.mesh)
        one.layouts.check(size)
    if not one.split.test:
        progress.say(
            "note: no test records; Tug-of-War is over forget and retain alone"
        )
    for first, second in data.shared_records(one.corpus):
        progress.say(
            f"note: {first.id!r} of {first.owner or 'nobody'!r} and {second.id!r} of "
            f"{second.owner or 'nobody'!r} are identical; both are kept, and "
            "forgetting one owner leaves the other's copy"
        )
    warn_of_prior(cfg, one.decoder("prior").cfg, one.model.cfg)
    return one.corpus


def check_reward(one: Inputs) -> None:
    """Raises `UserError` when the kernel cannot be used as the reward is set."""
    cfg = one.cfg.reward
    kernel = kernel_of(one, cfg.kernel, Fitted("classifier", "classifier"))
    if kernel.reads_snapshots and not one.cfg.finetune.snapshots:
        raise UserError(
            f"reward.kernel = {cfg.kernel} reads checkpoints of the fine-tuning, and "
            "none are kept; set finetune.snapshots to 4 or so"
        )
    if cfg.refresh_every and not kernel.follows_model:
        raise UserError(
            f"reward.refresh_every = {cfg.refresh_every}: kernel {cfg.kernel} does not "
            "look at the model, its index cannot go stale; set 0"
        )
    if cfg.margin and cfg.owner_score == "own":
        raise UserError(
            "reward.margin is one score for all owners that withdraw; set "
            "reward.owner_score=any_forget_owner too"
        )
    if cfg.margin and kernel.is_probability:
        raise UserError(
            f"reward.margin: kernel {cfg.kernel} gives probabilities as it is; take "
            "one such as grad_dot or ekfac"
        )
    check_own_kernel(one, kernel)


def check_models(one: Inputs) -> None:
    """Raise `UserError` unless original, retrained and adapters can be had."""
    cfg = one.cfg
    check_oracle(cfg)
    for name, part in parts_of(cfg).items():
        check_part(part, one.decoder(name).cfg, one.model.cfg.vocab)
    if cfg.retrained.path:
        one.check_shape(open_imported(Path(cfg.retrained.path), "retrained.path"))
    if cfg.options("dareu").base_path:
        one.check_base()


def warn_of_prior(cfg: RunConfig, prior: DecoderConfig, policy: DecoderConfig) -> None:
    """Warn where a row reads a prior of more than `LARGE_PRIOR` of the policy."""
    rows = [
        row for row in cfg.methods if "prior" in reads_of(row, method_config(cfg, row))
    ]
    own, whole = parameters(prior), parameters(policy)
    if not rows or own <= LARGE_PRIOR * whole or not is_first():
        return
    warnings.warn(
        f"the counterfactual prior that {rows[0]} reads has {own:,} parameters, more "
        f"than a tenth of the policy's {whole:,}: to train it on what stays is to "
        "retrain; take a smaller prior.model",
        Caution,
        stacklevel=1,
    )


def check_oracle(cfg: RunConfig) -> None:
    """Raises `UserError` when a run without fine-tuning lacks a model."""
    given = cfg.retrained.path or cfg.retrained.skip
    if cfg.finetune.epochs == 0 and (cfg.model.path is None or not given):
        raise UserError(
            "finetune.epochs = 0 takes imported models as they are; it needs "
            "model.path, the original, and retrained.path, a model trained without "
            "the forget owners (retrained.skip=true where there is none)"
        )


def check_part(part: Part, shape: DecoderConfig, vocab: int) -> None:
    """Raises `UserError` when a decoder or its adapters cannot serve the run."""
    if part.prefix == "prior." and shape.vocab != vocab:
        raise UserError(
            f"prior.model.path: {part.model.path} has {shape.vocab} embeddings, the "
            f"model {vocab}; the prior must share the model's vocabulary"
        )
    if part.lora is None:
        return
    if part.prefix and part.model.path is None:
        raise UserError(
            f"{part.prefix}lora adapts an imported model; set {part.prefix}model.path "
            f"too, or take {part.prefix}lora out"
        )
    try:
        abstract_adapters(abstract_params(shape), part.lora.rank, part.lora.targets)
    except UserError as error:
        raise UserError(f"{part.prefix}{error}") from None


def check_base(name: str, cfg: RunConfig) -> None:
    """Raise `UserError` when a row reads the model before a fine-tuning without one."""
    if "base" not in reads_of(name, cfg):
        return
    if base_of(cfg) is None:
        what, instead = "it adapts", "take the row out"
        if "dareu" in METHODS.get(name).sections:
            anchor = cfg.options("dareu").kl_anchor
            what = f"dareu.kl_anchor = {anchor} needs"
            instead = "take prior, reference or renamed"
        raise UserError(
            f"row {name}: {what} the model before its fine-tuning: an imported one in "
            f"model.path that finetune.epochs tunes, or dareu.base_path; {instead}"
        )


def check_actions(name: str, cfg: RunConfig) -> None:
    """Raise `UserError` where the reward of a row looks at sampled tokens alone."""
    is_read = "dareu" in METHODS.get(name).sections
    if is_read and cfg.options("dareu").likely and pays_for_prior(cfg.reward):
        raise UserError(
            f"row {name}: dareu.actions = top_k rewards by attribution alone; set "
            "reward.prior=none and reward.combine=sum"
        )


def check_forget_batch(one: Inputs, name: str, cfg: RunConfig) -> None:
    """Raise `UserError` when the forget records cannot fill one batch."""
    need = needs_of(name, cfg).get("forget")
    have = len(one.split.forget)
    if need is not None and have < need.batch_size:
        raise UserError(
            f"forget owners {', '.join(cfg.corpus.forget)} have {have} records but a "
            f"batch takes {need.key} = {need.batch_size}; lower it to at most {have}"
        )


def tell_minibatches(
    one: Inputs, name: str, cfg: RunConfig, progress: Progress
) -> None:
    """Say where the devices cannot share the rows of an update, and each reads all."""
    hp = cfg.options("dareu")
    devices = batch_devices(one.mesh)
    if hp.rows_per_update % devices and not hp.answers % devices:
        progress.say(
            f"note: row {name}: {devices} devices cannot share the "
            f"{hp.rows_per_update} answers of an update, so each reads all of them; "
            "with a lower dareu.minibatches, or a larger batch, they can"
        )


def batch_sizes(cfg: RunConfig) -> list[int]:
    """Return every batch size that must split over the mesh."""
    judge = cfg.evaluation.judge
    parts = (cfg.finetune, cfg.classifier, cfg.prior, judge)
    rows = {name: method_config(cfg, name) for name in cfg.methods}
    needs = [need for name in rows for need in needs_of(name, rows[name]).values()]
    minibatches = [row.options("dareu").minibatch_size for row in rows.values()]
    every = [(part.batch_size, part.microbatch_size) for part in parts]
    every += [(need.batch_size, need.at_once) for need in needs]
    sizes = [cfg.evaluation.batch_size, *minibatches]
    return [size for size in sum(every, tuple(sizes)) if size]
