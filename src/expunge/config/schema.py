"""The schema of a recipe. Unknown keys are errors; every field says its meaning, and its default is the recipe's.

Names follow Hugging Face's TrainingArguments and TRL's ModelConfig where the meaning is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )


class SourceSpec(Section):
    """Where rows come from: a local file, a Hub dataset, or a TOFU split."""

    path: str
    """`file.jsonl|json|csv|parquet|txt`, a folder, a Hub id, `tofu:forget10`."""
    name: str | None = None
    """Hub configuration."""
    split: str | None = None
    """Hub split; `train` unless said."""
    revision: str | None = None
    """Hub revision; the resolved commit is written to the manifest."""
    rows: str | None = None
    """Python slice of the file's rows, `240:400`."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Our column -> the file's, e.g. `{question: q, answer: a, group: person}`."""


def _sources(value: Any) -> Any:
    """Let a recipe write a string, a mapping, a list of either, or nothing (null)."""
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple({"path": item} if isinstance(item, str) else item for item in items)


Sources = Annotated[tuple[SourceSpec, ...], BeforeValidator(_sources)]


def _wrappers(value: Any) -> Any:
    """Let a recipe write a name, a mapping, a list of either, or nothing (null)."""
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple({"name": item} if isinstance(item, str) else item for item in items)


Wrappers = Annotated[tuple[dict[str, Any], ...], BeforeValidator(_wrappers)]


def _names(value: Any) -> Any:
    """Let a recipe write one name, several, or nothing (null)."""
    return (value,) if isinstance(value, str) else () if value is None else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


def _numbers(value: Any) -> Any:
    """Let a recipe write one number or several."""
    return (value,) if isinstance(value, int | float) else value


Numbers = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(_numbers)]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_numbers)]


def _other_temperatures(values: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse those that names of columns and metrics could not tell apart."""
    if 1 in values:
        raise ValueError("1 is always measured, so it cannot be asked for")
    if long := [value for value in values if float(f"{value:g}") != value]:
        raise ValueError(f"{long[0]} has more than six digits, which a metric's name does not hold")
    if len(set(values)) < len(values):
        raise ValueError("a temperature is named twice")
    return values


# Between bounds within which log-sum-exps in float32 keep their digits.
Temperatures = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...], BeforeValidator(_numbers), AfterValidator(_other_temperatures)
]


class ModelSection(Section):
    """The starting model."""

    model_name_or_path: str | None = None
    """Hub id or folder; None only with `from_scratch`."""
    model_revision: str | None = None
    """Branch, tag or commit on the Hub; the resolved commit is written to the manifest."""
    tokenizer_name_or_path: str | None = None
    """The model's own unless said."""
    dtype: Literal["float32"] = "float32"
    """Trainable weights. bfloat16 weights lose most of an unlearning-sized update (14.5 % of weights ever change,
    against 91.6 %), so they are refused; on an accelerator the computation runs in bfloat16 autocast."""
    attn_implementation: str | None = None
    """Attention kernel of transformers: `sdpa`, `eager`, `flash_attention_2`; unless said, `sdpa`, or `eager` for an
    architecture that has no other (Gemma 2 caps its attention scores). The one used is printed and recorded."""
    trust_remote_code: bool = False
    """Run model code that a Hub repository brings along."""
    from_scratch: dict[str, Any] | None = None
    """Config of a new, randomly initialised model: `{model_type: llama, vocab_size: 4096, hidden_size: 128, ...}`."""
    use_peft: bool = False
    """Train low-rank adapters (LoRA) beside frozen weights instead of the weights themselves."""
    lora_r: PositiveInt = 16
    """Rank of an adapter."""
    lora_alpha: PositiveInt = 32
    """An adapter's product is scaled by `lora_alpha / lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped in training; 0 keeps resumed and distributed runs alike."""
    lora_target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter, by the end of their name (`[q_proj, v_proj]`); `all-linear`: every linear layer but
    the output head."""
    load_in_4bit: bool = False
    """Frozen weights in 4-bit NormalFloat (QLoRA, with `use_peft`, on CUDA)."""
    load_in_8bit: bool = False
    """Frozen weights in 8 bits (with `use_peft`, on CUDA)."""
    tokenizer_vocab_size: PositiveInt | None = None
    """Train a byte-level BPE tokenizer with a plain chat template on the data's text (with `from_scratch`)."""


class DataSection(Section):
    """What is forgotten, what is kept, and how text becomes tokens."""

    forget: Sources = ()
    """Rows to forget."""
    requests: Sources = ()
    """Removal requests instead of `forget`, carried out one after the other, each from the model the last one left."""
    retain: Sources = ()
    """Rows to keep; may not repeat a forget row."""
    train: Sources = ()
    """Rows to fine-tune on (`expunge train`)."""
    refusals: Sources = ()
    """One refusal per line (IdkDPO)."""
    tokenizer_corpus: Sources = ()
    """More text for a tokenizer trained from scratch, so that two models can share one vocabulary."""
    tofu: str = "locuslab/TOFU"
    """Where `tofu:...` names are looked up: a folder or a Hub id."""
    template: str = "auto"
    """`auto`: the tokenizer's chat template; or a named profile (`expunge ls templates`)."""
    system_prompt: str | None = None
    """Opens every conversation that brings no system turn of its own; the template's unless said."""
    date_string: str | None = None
    """The date a chat template prints; fixed, so that results do not depend on the day."""
    max_length: PositiveInt = 512
    """Tokens of prompt and answer."""
    on_truncate: Literal["error", "drop", "keep"] = "error"
    """A row longer than `max_length`: stop and name it, leave it out, or cut and flag it."""
    supervise: Literal["last", "all_assistant"] = "last"
    """Which assistant turns of a conversation are its answer."""
    draw: Literal["permutation", "replacement"] = "permutation"
    """How retain rows are drawn for a forget batch; `replacement` is published practice."""

    @property
    def erased(self) -> Sources:
        """Rows to forget: `forget`, or those of every request."""
        return self.forget or self.requests


def _keep_best(value: Any) -> Any:
    """Let a recipe write the metric alone."""
    return {"metric": value} if isinstance(value, str) else value


class KeepBestRule(Section):
    """Which evaluation during training is the best one."""

    metric: str
    """A name the suite reports, e.g. `forget.extraction_strength`."""
    direction: Literal["down", "up"] | None = None
    """Whether less or more of it is better; the metric's own direction unless said."""
    subject_to: Names = ()
    """Conditions on the same evaluation, `retain.extraction_strength >= 0.8`; a point that breaks one is never the
    best."""


KeepBest = Annotated[KeepBestRule, BeforeValidator(_keep_best)]


class TrainSection(Section):
    """The optimisation. `global_batch_size` is the knob; everything physical follows from it."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak rate of AdamW or SGD; under `muon`, of what Muon does not take."""
    num_train_epochs: float = Field(default=5, gt=0)
    """Passes over the forget set."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; wins over epochs."""
    global_batch_size: PositiveInt = 32
    """Forget rows per optimizer step over all processes; the last partial batch of an epoch counts."""
    retain_batch_size: PositiveInt | None = None
    """Retain rows per optimizer step; `global_batch_size` unless said."""
    token_budget: PositiveInt | Literal["auto"] = "auto"
    """Padded tokens of one micro-batch. Changes speed and memory, not the result. `auto`: measured once per machine
    and model, then written to the resolved settings."""
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "muon", "sgd"] = "adamw"
    """`adamw_8bit`: AdamW with its two numbers per weight in 8 bits (bitsandbytes, on a GPU with CUDA or a CPU);
    `paged_adamw_8bit`: the same, moved to the host's memory when a GPU's runs out. `muon`: Muon for hidden matrices,
    AdamW for embeddings, head and vectors; not for adapters. `sgd`: plain gradient steps."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """Peak rate of Muon, in its own units."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; vectors (norms, biases) get none."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = Field(default=1e-8, ge=0)
    """Added to AdamW's denominator."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null: never."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = "linear"
    """Schedule by transformers' name; those that need no settings of their own."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which the rate rises from 0."""
    warmup_steps: int = Field(default=0, ge=0)
    """Wins over `warmup_ratio` when positive."""
    bf16: bool | None = None
    """Only a check: computation is bfloat16 autocast on an accelerator and float32 on a CPU, and a value that says
    otherwise is refused."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    logits_chunk: PositiveInt | Literal["auto"] | None = "auto"
    """Scored positions whose logits exist at one time; they are made again for the gradient. Less memory with a large
    vocabulary, some more time, the same result. `auto`: in chunks where the logits of a micro-batch would take more
    than 64 MB (512 MB on a GPU); null: never."""
    save_steps: PositiveInt | None = None
    """A resumable checkpoint every so many steps; None: one per epoch."""
    save_total_limit: PositiveInt = 1
    """Newest checkpoints kept."""
    fsdp: bool = False
    """Split weights, gradients and optimizer state over the processes (FSDP2) instead of copying them to each (DDP).
    Changes memory and speed, not the result."""
    eval_every: PositiveInt | None = None
    """Run the suite of `eval` every so many steps, and after the last one."""
    keep_best: KeepBest | None = None
    """Which of the evaluated points becomes the run's model; the last one unless said."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many evaluations in a row without a better value of `keep_best`."""
    report_to: Names = ()
    """Trackers that are told every step and evaluation: `tensorboard`, `wandb`, `trackio`."""


class SamplingSection(Section):
    """Answers that are sampled beside the greedy one, for Leak@k: every temperature with every top-p."""

    samples: PositiveInt = 32
    """Answers to each prompt at each temperature and top-p; published with 200. Leak@k is measured for k = 1, 2, 4 and
    so on up to it."""
    temperatures: Numbers = Field(default=(1.0,), min_length=1)
    """What logits are divided by; 0 is greedy. 1 together with a top-p of 1 is the headline, `forget.leak_at_4`; others
    stand in the metric's name, `forget.leak_at_4_t0.8_p1`."""
    top_ps: Shares = Field(default=(1.0,), min_length=1)
    """Answers are drawn from the fewest likeliest tokens whose probabilities add up to it; 1: from all."""
    max_new_tokens: PositiveInt | None = None
    """Limit of an answer; that of the suite's greedy answers unless said."""
    splits: Names = ("forget",)
    """Splits of the suite whose prompts are sampled from."""
    prompt: Literal["question", "paraphrased_question"] = "question"
    """What is asked: the row's own question, as in the other passes, or its paraphrase where it has one, as published
    for TOFU."""
    entailment: str | None = None
    """A text classifier (folder or Hub id) with a label `entailment`: adds `forget.leak_at_4_entailed`, whether an
    answer entails the true one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the draws; the same for every model, so that differences between models are not luck."""


class EvalSection(Section):
    """How `expunge eval` measures this run, unless its options say otherwise."""

    suite: str = "tofu"
    """What is measured (`expunge ls suites`)."""
    forget: Sources = ()
    """Rows to measure on; `forget` and `retain` go together. Unless said: `data.forget` and `data.retain`, or the
    benchmark's own rows where those are TOFU's."""
    retain: Sources = ()
    """As `forget`."""
    holdout: Sources = ()
    """Rows like the forget rows that no model was ever trained on: what membership attacks compare with."""
    real_authors: Sources = ()
    """Questions with wrong alternatives (`perturbed_answer`), near the forgotten topic; a part of model utility."""
    world_facts: Sources = ()
    """The same, far from it."""
    forget_split: str = "forget10"
    """TOFU split the benchmark's own rows come from; of the suite `pistol` the forgotten edges, joined by commas."""
    world: Path | None = None
    """Folder of `expunge world build`, for the suite `world`."""
    source: str | None = None
    """Where a suite other than `tofu` and `world` takes its rows from: a folder or a Hub id in the published format;
    the published data set unless said. `PLACE#PART` is one target, forget set or domain of it (`rwku`, `unlearn-pii`,
    `knowundo`)."""
    num_fewshot: int = Field(default=0, ge=0)
    """Answered questions that stand before each question of the suites `mmlu` and `harness`; papers often use 5. 0: in
    `harness` what each task says itself."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, for the suite `harness`."""
    tasks_path: Path | None = None
    """Folder of more tasks for it, in its YAML form."""
    temperatures: Temperatures = ()
    """Temperatures besides 1 at which the trace also gives energies and the bound of Leak@k, from 0.01 to 100: adds
    `energy.auroc_t0.5` and `forget.leak_at_128_exact_t0.5_p1`. Nothing is sampled; see `sampling` for that."""
    sampling: SamplingSection | None = None
    """Answers sampled beside the greedy one, for Leak@k; none unless said."""
    gradnorm: bool = False
    """Measure the gradient of every text that membership attacks compare, for the gradient norm attack: one backward
    pass per text."""
    gibberish: str | None = None
    """A text classifier (folder or Hub id) with a label `clean`, for the suites `tofu`, `world` and `custom`: adds
    `forget.gibberish`, how likely greedy answers are to be language at all."""
    perplexity_model: str | None = None
    """Another language model (folder or Hub id) than the one that is measured, for the same suites: adds
    `forget.perplexity`, what it makes of the greedy answers."""
    limit: PositiveInt | None = None
    """Only the first rows of each split."""
    token_budget: PositiveInt | Literal["auto"] = "auto"
    """Padded tokens of one forward pass; changes speed and memory. `auto`: measured once per machine and model."""


class Recipe(Section):
    """One run: what to do, to which model, with which rows, by which method."""

    kind: Literal["unlearn", "train"] = "unlearn"
    """Which command carries it out."""
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    method: dict[str, Any] = Field(default_factory=dict)
    """`name` and the method's own keys (`expunge ls methods`); validated by the method."""
    wrappers: Wrappers = ()
    """Names, or mappings of `name` and its keys (`expunge ls wrappers`): added terms, rules for combining gradients,
    masks."""
    train: TrainSection = Field(default_factory=TrainSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    output_dir: Path | None = None
    """The run directory; `runs/<recipe>-<method>` unless said."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of row order, refusals drawn and new weights."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; the best one there is unless said."""
    push_to_hub: bool = False
    """Push the finished model and its card to the Hub, as `expunge push` does."""
    hub_model_id: str | None = None
    """Repository to push to, `name` or `organisation/name`; named after the run unless said."""
    hub_private_repo: bool = True
    """Whether a repository that has to be made is private."""
    sweep: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Search space of `expunge sweep`: dotted key, then its distribution; no part of a run, other commands ignore
    it."""
