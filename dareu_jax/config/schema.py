"""Frozen, validated configuration: YAML plus ``key=value`` overrides.

Defaults are the DareU paper's (Lu et al., ICML 2026), place named, or say "ours".
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from dareu_jax.registry import SOURCES

TEMPLATE = "Question: {prompt}\nAnswer: "
CHAT_DATE = "26 Jul 2024"
"""The date that Llama 3's own template writes where it is given none."""


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


def divisor(given: int | None, rows: int, key: str) -> int | None:
    """Return how many rows a part has; raise `ValueError` unless they divide all."""
    if given and rows % given:
        raise ValueError(f"must divide {key} = {rows}")
    return given


class CorpusConfig(Section):
    """Who owns which text, and who withdraws; `run_config` adds a source's options."""

    source: str = "fictitious"
    forget: tuple[str, ...] = ()  # owners that withdraw
    merge_others: bool = False  # methods 1.6: forget owners against all the rest
    tokenizer: str | None = None  # folder; none: byte-level BPE trained on the corpus
    vocab_size: int = Field(1024, ge=260)
    template: str = TEMPLATE  # methods 4.4; taken literally; chat: the tokenizer's own
    system: str | None = None  # system prompt of the template "chat"
    answer_prefix: str = ""  # before every answer
    add_bos: bool | None = None  # none: as the tokenizer does by itself
    chat_date: str = CHAT_DATE  # that a chat template writes
    chat_arguments: dict[str, Any] = {}  # of a chat template: {enable_thinking: false}
    max_prompt_tokens: int | None = Field(None, ge=1)  # none: the longest
    max_response_tokens: int | None = Field(None, ge=1)
    truncate: bool = False

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, given: str) -> str:
        if "{prompt}" not in given and given != "chat":
            raise ValueError(
                "lacks {prompt}, the place of the question (chat: the tokenizer's own)"
            )
        return given

    def options(self) -> Section:
        """Return the options of the source, an instance of the class it registered."""
        own = source_options(self.source)
        return own(**self.model_dump(include=set(own.model_fields)))


Remat = Literal[
    True, False, "none", "products", "dots", "dots_with_no_batch_dims", "full"
]
"""Of ``model.remat``."""


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
    # What a layer keeps for the backward pass; none given: products; true: full.
    remat: Remat | None = None
    attention: Literal["auto", "xla", "chunked", "cudnn", "splash"] | None = None
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
    microbatch_size: int | None = Field(None, ge=1)  # rows at a time; none: by size
    epochs: float = Field(5, gt=0)  # methods 1.5 (TOFU)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps; not stated
    weight_decay: float = Field(0.01, ge=0)  # not stated
    clip_norm: float = Field(1.0, gt=0)  # not stated

    @field_validator("microbatch_size")
    @classmethod
    def _parts_of_a_batch(cls, given: int | None, info: ValidationInfo) -> int | None:
        return divisor(given, info.data.get("batch_size", 0), "batch_size")


class FinetuneConfig(OptimiserConfig):
    """Supervised training of a language model on records."""

    epochs: float = Field(5, ge=0)  # 0: model.path is the original as it is
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
    """Options that several kernels share (ours), and the sections of single kernels."""

    echo: Literal["hide", "keep"] = "hide"  # words of the prompt, from the kernel
    reduction: Literal["mean", "sum"] = "mean"  # of a response's token log-likelihoods
    whole_gradients: bool | None = None  # of grad_dot, grad_cos, tracin; none: by size
    projection_size: int = Field(64, ge=1)  # columns a side, where they are not whole
    index_dtype: Literal["float32", "bfloat16"] = "float32"  # of the owners' gradients
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
    slices_of: Literal["longest", "answer"] = "longest"  # ours; methods 1.4: T is |y|
    owner_score: Literal["own", "any_forget_owner"] = "own"  # methods 1.4
    margin: bool = False  # ours: one score, those who withdraw less the rest: one jvp
    refresh_every: int = Field(0, ge=0)  # ours: iterations until the index is rebuilt
    attribution_weight: float = Field(1.0, ge=0)
    prior: Literal["none", "sequence", "potential"] = "none"  # ours
    prior_weight: float = Field(1.0, ge=0)
    prior_floor: float = Field(4.0, gt=0)  # nats per token at which the prior pays 0
    combine: Literal["sum", "product"] = "sum"  # ours
    validity: Literal["warn", "refuse", "off"] = "warn"  # of one that names everybody
    keep_echo: bool = False  # the paper's kernel: it reads words of the prompt too
    shuffle_owners: bool = False  # control: labels of the kernel's data permuted
    label_noise: float = Field(0.0, ge=0, le=1)  # control: share of them of others

    @field_validator("validity", mode="before")
    @classmethod
    def _as_written(cls, given: Any) -> Any:
        return "off" if given is False else given  # YAML takes off for false


class GuardConfig(Section):
    """When unlearning stops by itself; the reason is recorded. None = off."""

    kl_budget: float | None = Field(None, gt=0)  # nats per token; runs the reference
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


METHODS = ("dareu", "dareu_paper", "prior_only", "grad_diff", "npo", "dareu_shuffled")


class RetrainedConfig(Section):
    """The oracle: a model that never saw the forget owners."""

    path: str | None = None  # folder of dareu import; none: fine-tuned as the original
    skip: bool = False  # no oracle: what is compared with it stays out of the results


class RunConfig(Section):
    """Everything a run depends on."""

    plugins: tuple[str, ...] = ()  # Python files or modules that register entries
    scale: str = ""  # one sentence that opens the report
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    methods: tuple[str, ...] = METHODS
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
    compilation_cache: Literal["user", "run"] = "user"  # where programs are kept
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
    """Return the class of a source's options; raise `UserError` for no source."""
    SOURCES.get(source)
    return dict(SOURCES.options()).get(source, Section)
