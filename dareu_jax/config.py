"""Frozen, validated configuration: YAML plus ``key=value`` overrides.

Defaults are the DareU paper's (Lu et al., ICML 2026), place named, or say "ours".
"""

import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
)

from dareu_jax.errors import UserError
from dareu_jax.registry import (
    KERNELS,
    METHODS,
    SOURCES,
    Registry,
    did_you_mean,
    load_plugin,
)
from dareu_jax.trees import merge, parse_value, read_yaml, set_key


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class CorpusConfig(Section):
    """Who owns which text, and which owners withdraw.

    A configuration has the options of ``source`` here too, see `run_config`.
    """

    source: str = "fictitious"
    forget: tuple[str, ...] = ()  # owners that withdraw
    merge_others: bool = False  # methods 1.6: forget owners against all the rest
    tokenizer: str | None = None  # folder; none: byte-level BPE trained on the corpus
    vocab_size: int = Field(1024, ge=260)
    template: str = "Question: {prompt}\nAnswer:"  # methods 4.4; chat: the tokenizer's
    system: str | None = None  # system prompt of the template "chat"
    max_prompt_tokens: int | None = Field(None, ge=1)  # none: the longest
    max_response_tokens: int | None = Field(None, ge=1)
    truncate: bool = False

    def options(self) -> Section:
        """Return the options of the source, an instance of the class it registered."""
        own = source_options(self.source)
        return own(**self.model_dump(include=set(own.model_fields)))


class ModelConfig(Section):
    """A decoder: a preset of `dareu list models`, fields given here win over it."""

    preset: str = "decoder-1m"
    path: str | None = None  # folder of dareu import: its shape, not the preset's
    layers: int | None = Field(None, ge=1)
    embed: int | None = Field(None, ge=2)
    heads: int | None = Field(None, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2)
    ffn: int | None = Field(None, ge=1)
    rope_theta: float | None = Field(None, gt=0)
    rope_scaling: dict[str, float | str] | None = None
    qk_norm: bool | None = None
    qkv_bias: bool | None = None
    tied: bool | None = None
    remat: bool | None = None
    param_dtype: Literal["float32", "bfloat16"] | None = None
    compute_dtype: Literal["float32", "bfloat16"] | None = None


class LoraConfig(Section):
    """Low-rank adapters on the model's dense layers; the rest is frozen (1.5)."""

    rank: int = Field(8, ge=1)  # methods 1.5 (base LLM)
    alpha: float = Field(16, gt=0)  # methods 1.5
    dropout: float = Field(0.05, ge=0, lt=1)  # methods 1.5
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")  # not stated


class ClassifierLoraConfig(LoraConfig):
    """Adapters of an owner classifier."""

    rank: int = Field(16, ge=1)  # methods 1.3
    alpha: float = Field(32, gt=0)  # methods 1.3
    dropout: float = Field(0.1, ge=0, lt=1)  # methods 1.3


class OptimiserConfig(Section):
    """AdamW with linear warm-up, cosine decay and gradient clipping."""

    learning_rate: float = Field(1.5e-4, gt=0)  # methods 1.5 (base LLM)
    batch_size: int = Field(16, ge=1)  # methods 1.5
    epochs: float = Field(5, gt=0)  # methods 1.5 (TOFU)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps; not stated
    weight_decay: float = Field(0.01, ge=0)  # not stated
    clip_norm: float = Field(1.0, gt=0)  # not stated


class FinetuneConfig(OptimiserConfig):
    """Supervised training of a language model on records."""

    epochs: float = Field(5, ge=0)  # 0: model.path is the original as it is
    group_by_length: bool = False  # ours: batches of like length, less padding
    snapshots: int = Field(0, ge=0)  # checkpoints of the original kept for tracin


class ClassifierConfig(OptimiserConfig):
    """The owner classifier DA(i, y) = p(i | y) of methods 1.3."""

    model: ModelConfig = ModelConfig(preset="decoder-300k")
    lora: ClassifierLoraConfig | None = None  # on an imported model; none: train all
    learning_rate: float = Field(1e-4, gt=0)  # methods 1.3
    train_on: Literal["whole", "prefixes"] = "whole"  # methods 1.3: whole responses
    dropout: float = Field(0.1, ge=0, lt=1)  # ours; without adapters
    nobody: bool = False  # ours: a class for text that nobody owns


class AttributionConfig(Section):
    """Options that several kernels share (ours).

    `attribution_config` adds a section for every kernel that has options of its own.
    """

    reduction: Literal["mean", "sum"] = "mean"  # of a response's token log-likelihoods
    projection_seed: int = Field(0, ge=0, lt=2**32)  # of all that a kernel draws
    damping: float = Field(0.1, gt=0)  # of the curvature's mean (Grosse et al., 2023)


class PriorConfig(FinetuneConfig):
    """The counterfactual prior (ours): a small model of the retain owners alone."""

    model: ModelConfig = ModelConfig(preset="decoder-100k")
    lora: LoraConfig | None = None  # on an imported model; none: train all
    epochs: float = Field(5, gt=0)
    prompt_dropout: float = Field(0.5, ge=0, le=1)  # so that a new name is no shock


class RewardConfig(Section):
    """How attribution becomes a reward (methods 1.4 and 1.6)."""

    kernel: str = "classifier"
    shape: Literal["paper", "sequence", "token", "potential"] = "potential"  # ours
    c_seg: float = Field(1.05, gt=0)  # methods 1.4
    eps: float = Field(1e-6, gt=0, lt=0.5)  # methods 1.6
    slices: int = Field(15, ge=1)  # methods 1.5: k = T / kappa
    owner_score: Literal["own", "any_forget_owner"] = "own"  # methods 1.4
    margin: bool = False  # ours: one score, those who withdraw less the rest: one jvp
    refresh_every: int = Field(0, ge=0)  # ours: iterations until the index is rebuilt
    attribution_weight: float = Field(1.0, ge=0)
    prior: Literal["none", "sequence", "potential"] = "none"  # ours
    prior_weight: float = Field(1.0, ge=0)
    prior_floor: float = Field(4.0, gt=0)  # nats per token at which the prior pays 0
    combine: Literal["sum", "product"] = "sum"  # ours
    shuffle_owners: bool = False  # control: labels of the kernel's data permuted


class GuardConfig(Section):
    """When unlearning stops by itself; the reason is recorded. None = off."""

    kl_budget: float | None = Field(None, gt=0)  # nats per token, policy to reference
    utility_floor: float | None = Field(0.5, ge=0, le=1)  # retain token accuracy
    collapse_share: float | None = Field(0.5, gt=0, le=1)  # empty, short or looping
    min_length: float | None = Field(0.3, ge=0)  # mean length / the records' own
    max_length: float | None = Field(3.0, gt=0)
    patience: int = Field(2, ge=1)  # iterations in a row


class EvaluationConfig(Section):
    """What every model is judged by."""

    batch_size: int = Field(64, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)  # none: the longest response
    retain_records: int | None = Field(None, ge=1)  # none: all; else evenly spaced
    judge: ClassifierConfig = ClassifierConfig(
        model=ModelConfig(preset="decoder-400k")
    )  # the independent classifier, never used as a reward
    answers: int = Field(10, ge=0)  # before / after answers printed


class FidelityConfig(Section):
    """`dareu fidelity`: kernels against retraining (ours)."""

    kernels: tuple[str, ...] = ()  # or `variants`, in_run_shapley; none: all of them
    variants: dict[str, dict[str, Any]] = {}  # name -> {kernel, keys of attribution}
    subsets: int = Field(16, ge=4)  # of owners, each retrained on
    share: float = Field(0.5, gt=0, lt=1)  # of the owners in a subset
    queries_per_owner: int = Field(4, ge=1)
    draws: int = Field(1000, ge=100)  # of the bootstrap


class StressConfig(Section):
    """`dareu stress`: tests that try to bring unlearned data back (methods 8)."""

    learning_rate: float | None = Field(None, gt=0)  # relearn; none: finetune's
    steps: int = Field(50, ge=1)  # relearn: updates
    few_rows: int = Field(4, ge=1)  # relearn: forget records of the part "few rows"
    samples: int = Field(16, ge=1)  # sample: answers per prompt, the largest k
    temperature: float = Field(0.7, gt=0)  # sample: tried beside 1


class MeshConfig(Section):
    """Device mesh; -1 = all the devices that remain."""

    data: int = Field(-1, ge=-1)
    fsdp: int = Field(1, ge=-1)
    tensor: int = Field(1, ge=-1)
    # Devices that a layer is split over while text is sampled; none: as many of
    # fsdp x tensor as the model's key-value heads divide by.
    rollout_tensor: int | None = Field(None, ge=1)


class CheckpointConfig(Section):
    """How often a stage's state is saved, and how many saves are kept."""

    every: int = Field(100, ge=1)  # training steps
    every_iterations: int = Field(10, ge=1)  # iterations of an unlearning method
    keep: int = Field(2, ge=1)  # the newest
    keep_best: int = Field(0, ge=0)  # and those of the lowest loss or attribution


METHODS_IN_TABLE = (
    "dareu",
    "dareu_paper",
    "prior_only",
    "grad_diff",
    "npo",
    "dareu_shuffled",
)


class RetrainedConfig(Section):
    """The oracle: a model that never saw the forget owners."""

    path: str | None = None  # folder of dareu import; none: fine-tuned as the original
    skip: bool = False  # no oracle: what is compared with it stays out of the results


class RunConfig(Section):
    """Everything a run depends on."""

    plugins: tuple[str, ...] = ()  # Python files or modules that register entries
    scale: str = ""  # one sentence that opens the report
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    methods: tuple[str, ...] = METHODS_IN_TABLE
    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = None  # none: every parameter is trained
    finetune: FinetuneConfig = FinetuneConfig()
    retrained: RetrainedConfig = RetrainedConfig()
    attribution: AttributionConfig = AttributionConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    prior: PriorConfig = PriorConfig()
    reward: RewardConfig = RewardConfig()
    guards: GuardConfig = GuardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    fidelity: FidelityConfig = FidelityConfig()
    stress: StressConfig = StressConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    overrides: dict[str, dict[str, Any]] = {}  # method -> {dotted key: value}

    @field_validator("seeds", "methods")
    @classmethod
    def _different(cls, given: tuple) -> tuple:
        if len(set(given)) < len(given):
            raise ValueError("names one of them twice")
        return given

    def options(self, method: str) -> Any:
        """Return the section of a method that has one."""
        return getattr(self, method)


def source_options(source: str) -> type[Section]:
    """Return the class of a source's options.

    Raises:
      UserError: there is no such source.
    """
    SOURCES.get(source)
    return dict(SOURCES.options()).get(source, Section)


def run_config(source: str = CorpusConfig().source) -> type[RunConfig]:
    """Return the class of a configuration with the sections of registered entries.

    A method with options has the section of its name, such as ``npo``; a kernel has
    ``attribution.<name>``. The options of ``source`` are keys of ``corpus``.

    Raises:
      UserError: there is no such source, or a name is taken.
    """
    whole = _extended(RunConfig, METHODS, METHODS.options())
    corpus = _corpus_config(source, source_options(source))
    return _with_sections(whole, type(attribution_config()), corpus)


def attribution_config(**options: Any) -> AttributionConfig:
    """Return the options of kernels, with a section for each that has its own.

    Args:
      options: those that are no defaults, such as ``damping=0.01`` or
        ``trak={"size": 4}``.

    Raises:
      UserError: an unknown option, or a value that cannot be used.
    """
    try:
        return _extended(AttributionConfig, KERNELS, KERNELS.options())(**options)
    except ValidationError as error:
        raise UserError(_explain(error, "attribution", run_config())) from None


@functools.cache
def _corpus_config(source: str, options: type[Section]) -> type[CorpusConfig]:
    """Return the section ``corpus`` of a configuration with a source's options."""
    for name in options.model_fields:
        if name in CorpusConfig.model_fields or hasattr(CorpusConfig, name):
            raise UserError(
                f"source {source!r}: its option {name!r} is a key of every corpus; "
                "give the option another name"
            )
    bases: Any = (options, CorpusConfig) if options.model_fields else CorpusConfig
    return create_model("CorpusConfig", __base__=bases, source=(str, source))


@functools.cache
def _with_sections(
    whole: type[RunConfig], attribution: Any, corpus: Any
) -> type[RunConfig]:
    own: Any = {
        "attribution": (attribution, attribution()),
        "corpus": (corpus, corpus()),
    }
    return create_model("RunConfig", __base__=whole, **own)


@functools.cache
def _extended(
    base: type[Section], registry: Registry, sections: tuple[tuple[str, type], ...]
) -> Any:
    """Return ``base`` with one more section for each of the registry's entries.

    Raises:
      UserError: an entry has the name of a section that ``base`` has already.
    """
    for name, _ in sections:
        if name in base.model_fields or hasattr(base, name):
            raise UserError(
                f"{registry.kind} {name!r}: the configuration has a key of that name; "
                "register it under another one"
            )
    fields: Any = {name: (options, options()) for name, options in sections}
    return create_model(base.__name__, __base__=base, **fields)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply ``key=value`` overrides.

    Args:
      path: the YAML file.
      overrides: such as ``"dareu.learning_rate=1e-4"``; values are YAML.

    Raises:
      UserError: missing file, bad YAML, unknown key, wrong type, out of range.
    """
    tree = read_yaml(Path(path))
    if "plugins" in tree:
        tree["plugins"] = plugins_from(tree["plugins"], Path(path).parent)
    changes = []
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign:
            raise UserError(f"override {item!r} must look like key=value")
        changes.append((key.strip(), parse_value(item, value)))
    change_keys(tree, changes)
    return build_config(tree, str(path))


def change_keys(tree: dict[str, Any], changes: Iterable[tuple[str, Any]]) -> None:
    """Set dotted keys of a nested mapping.

    A new ``corpus.source`` takes the options of the source before it out of the tree,
    except those that it has too.
    """
    order = {"plugins": 0, "corpus.source": 1}
    for key, value in sorted(changes, key=lambda change: order.get(change[0], 2)):
        corpus = tree.get("corpus")
        if key == "corpus.source" and isinstance(corpus, dict):
            load_plugins(tree)
            before, after = _option_names(source_of(tree)), _option_names(value)
            for name in before - after:
                corpus.pop(name, None)
        set_key(tree, key, value)


def _option_names(source: Any) -> set[str]:
    """Return the names of a source's options; none where there is no such source."""
    kinds = [kind for name, kind in SOURCES.options() if name == source]
    return {name for kind in kinds for name in kind.model_fields}


def source_of(tree: Mapping[str, Any]) -> str:
    """Return the source of the corpus that a nested mapping names, or the default."""
    corpus = tree.get("corpus")
    source = corpus.get("source") if isinstance(corpus, Mapping) else None
    return source if isinstance(source, str) else CorpusConfig().source


def load_plugins(tree: Mapping[str, Any]) -> None:
    """Import the plug-ins that a nested mapping names."""
    plugins = tree.get("plugins")
    for plugin in plugins if isinstance(plugins, list | tuple) else ():
        load_plugin(str(plugin))


def plugins_from(plugins: Any, folder: Path) -> Any:
    """Return plug-ins with the paths of files taken from ``folder``, made absolute."""
    if not isinstance(plugins, list | tuple):
        return plugins
    return [
        str((folder / plugin).resolve()) if str(plugin).endswith(".py") else plugin
        for plugin in plugins
    ]


def build_config(tree: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Return the configuration of a nested mapping, validated.

    Raises:
      UserError: it names key, value and remedy.
    """
    if "plugins" in tree:
        tree = {**tree, "plugins": plugins_from(tree["plugins"], Path())}
    load_plugins(tree)
    whole = run_config(source_of(tree))
    try:
        cfg = whole.model_validate(completed(tree))
    except ValidationError as error:
        raise UserError(_explain(error, where, whole)) from None
    for method, changes in cfg.overrides.items():
        with_overrides(cfg, changes, f"{where}: overrides.{method}")
    return cfg


def with_overrides(
    cfg: RunConfig, changes: Mapping[str, Any], where: str = "overrides"
) -> RunConfig:
    """Return ``cfg`` with dotted keys replaced, validated again."""
    tree = cfg.model_dump(mode="json", exclude={"overrides"})
    change_keys(tree, changes.items())
    return build_config(tree, where)


def completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with the default of every key that it lacks.

    A configuration that was written before sources had options of their own holds
    those of all sources: what only another source has is left out where it is that
    source's default.
    """
    own = run_config(source_of(tree))()
    out = merge(own.model_dump(mode="json"), tree)
    if isinstance(corpus := out["corpus"], dict):
        defaults = [kind().model_dump(mode="json") for _, kind in SOURCES.options()]
        for name in corpus.keys() - type(own.corpus).model_fields.keys():
            if any(name in them and them[name] == corpus[name] for them in defaults):
                del corpus[name]
    return out


def dump_config(cfg: RunConfig) -> str:
    """Return the whole resolved configuration as YAML."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)


def all_keys(section: type[BaseModel] | None = None, prefix: str = "") -> list[str]:
    """Return every dotted key that a section, by default a run's, may set."""
    keys = []
    for name, field in (section or run_config()).model_fields.items():
        keys.append(prefix + name)
        kinds = typing.get_args(field.annotation) or (field.annotation,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += all_keys(kind, f"{prefix}{name}.")
    return keys


def _explain(error: ValidationError, where: str, whole: type[RunConfig]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        if said := _of_another_source(key, whole):
            return f"{where}: {said}{more}"
        near = did_you_mean(key, all_keys(whole))
        return f"{where}: unknown key {key!r} = {first['input']!r:.60}{near}{more}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {key} = {first['input']!r:.60}: {message}{more}"


def _of_another_source(key: str, whole: type[RunConfig]) -> str:
    """Return what is wrong with a key that only other sources have; else ""."""
    section, _, name = key.partition(".")
    others = [s for s, kind in SOURCES.options() if name in kind.model_fields]
    if section != "corpus" or not others:
        return ""
    source = whole().corpus.source
    own = sorted(source_options(source).model_fields)
    return (
        f"{key} is no option of source {source}{did_you_mean(name, own)} but of "
        f"{', '.join(others)}; it has {', '.join(own) or 'none'}"
    )
