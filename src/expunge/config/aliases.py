"""Names of transformers' TrainingArguments and of TRL's ModelConfig in a recipe: what becomes of each.

Where a name means one of our keys it is taken for that key; where its value says what happens anyway it is accepted;
everything else is refused with the reason. Nothing is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

MOVED: Mapping[str, str] = {
    "model.torch_dtype": "model.dtype",
    "model.revision": "model.model_revision",
    "model.tokenizer_name": "model.tokenizer_name_or_path",
    "model.use_lora": "model.use_peft",
    "train.eval_steps": "train.eval_every",
    "train.activation_checkpointing": "train.gradient_checkpointing",
    "train.output_dir": "output_dir",
    "train.seed": "seed",
    "train.push_to_hub": "push_to_hub",
    "train.hub_model_id": "hub_model_id",
    "train.hub_private_repo": "hub_private_repo",
}
"""Name -> the key of ours that means the same."""

JOINED: Mapping[str, str] = {
    "train.per_device_train_batch_size": "with `gradient_accumulation_steps` (else 1) and the number of processes: "
    "their product is `train.global_batch_size`",
    "train.gradient_accumulation_steps": "see `per_device_train_batch_size`",
    "train.warmup_steps": "below 1, as TrainingArguments has it: `train.warmup_ratio`",
    "train.load_best_model_at_end": "with `metric_for_best_model`: `train.keep_best`",
    "train.metric_for_best_model": "see `load_best_model_at_end`",
    "train.greater_is_better": "see `load_best_model_at_end`; `keep_best.direction`",
    "train.eval_strategy": "`steps` with `eval_steps`, or `no`; per epoch: `eval_every` in steps",
    "train.save_strategy": "`steps` with `save_steps`, or `epoch`; `no` is refused, as a run must be resumable, and "
    "`best` is `train.keep_best`",
}
"""Names that mean something of ours together with others, and what."""

VALUES: Mapping[str, Mapping[Any, Any]] = {
    "model.dtype": {"torch.float32": "float32", "fp32": "float32"},
    "train.optim": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
    },
    "train.max_steps": {-1: None},
    "train.max_grad_norm": {0: None},
    "train.report_to": {"none": ()},
    "train.fsdp": {"": False, "full_shard": True, "full_shard auto_wrap": True},
}
"""Key of ours -> how TrainingArguments writes some of its values."""


class Rule(NamedTuple):
    """Names that mean no key of ours."""

    names: str
    """Dotted, parted by spaces."""
    fine: tuple[Any, ...]
    """Values that say what happens anyway."""
    why: str
    """Why any other is refused."""
    instead: str = ""
    """What to do then; leave it out, unless said."""


def _train(names: str) -> str:
    return " ".join(f"train.{name}" for name in names.split())


_EVENTS = "every step is written to events.jsonl, and trackers are told it"
_LAUNCH = "processes are joined by expunge itself"
_LOSS = "losses are the method's, divided by counts over all processes"
_SPEED = "it changes how PyTorch computes, which is left alone so that runs stay comparable"
_ROWS = "rows are made into tokens once and held in memory; nothing is loaded during a step"
_EVAL = "evaluation during training is that of `expunge eval`"
_QUANT = "4-bit weights are NormalFloat with nested constants, computed in bfloat16"
TOKEN = "a token in a recipe would end in the run's files"
"""Why a token is refused; its value must not be repeated."""
_LOGIN = "log in with `hf auth login`, or set HFTOKEN"
_COMMAND = "the command decides what is done"
_DEVICE = "the device is the recipe's"

RULES: tuple[Rule, ...] = (
    Rule(
        "train.fp16",
        (False,),
        "half precision loses updates of unlearning's size, and its loss scaling hides losses that are not finite",
        "leave it out: computation is bfloat16 on an accelerator and float32 on a CPU",
    ),
    Rule(
        "train.resume_from_checkpoint",
        (True, None),
        "a run resumes from its own newest checkpoint: the same command continues it",
        "start anew with --overwrite; start from another model with model.model_name_or_path",
    ),
    Rule("train.overwrite_output_dir", (False,), "a recipe must not delete a run", "use the option --overwrite"),
    Rule(
        "train.deepspeed",
        (None, ""),
        "a model is divided by FSDP2, which leaves gradients where wrappers can read them",
        "set train.fsdp=true",
    ),
    Rule("train.fsdp_config", (None, {}), "a model is divided block by block", "set train.fsdp=true alone"),
    Rule(
        "train.auto_find_batch_size",
        (False,),
        "micro-batches are packed under a token budget",
        "set train.token_budget=auto",
    ),
    Rule(
        _train("group_by_length train_sampling_strategy length_column_name"),
        (False,),
        "micro-batches are always packed by length; which rows share a step is drawn",
    ),
    Rule(
        "train.lr_scheduler_kwargs",
        (None, {}),
        "schedules take no settings of their own",
        "name another in train.lr_scheduler_type",
    ),
    Rule(_train("optim_args optim_target_modules"), (None,), "optimizers take no further settings"),
    Rule(
        "train.gradient_checkpointing_kwargs train.activation_checkpointing_kwargs",
        (None, {}, {"use_reentrant": False}),
        "checkpointing is never re-entrant",
    ),
    Rule(_train("label_smoothing_factor"), (0,), _LOSS),
    Rule(_train("neftune_noise_alpha label_names"), (None,), _LOSS),
    Rule(_train("average_tokens_across_devices"), (True,), _LOSS),
    Rule(
        _train(
            "tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
            "use_cache full_determinism torch_empty_cache_steps parallelism_config"
        ),
        (None, False),
        _SPEED,
    ),
    Rule(_train("data_seed"), (None,), "one seed decides rows, refusals and new weights", "set seed"),
    Rule(_train("dataloader_drop_last"), (False,), "the last partial batch of an epoch counts"),
    Rule(
        _train(
            "dataloader_num_workers dataloader_prefetch_factor dataloader_persistent_workers "
            "dataloader_multiprocessing_context"
        ),
        (0, None, False),
        _ROWS,
    ),
    Rule(_train("dataloader_pin_memory dataloader_in_order remove_unused_columns"), (True,), _ROWS),
    Rule(
        _train("ignore_data_skip restore_callback_states_from_checkpoint save_only_model"),
        (False,),
        "a resumed run continues bit for bit",
    ),
    Rule(_train("enable_jit_checkpoint"), (False,), "Ctrl-C and SIGTERM save a checkpoint anyway"),
    Rule(_train("save_safetensors"), (True,), "weights are always safetensors"),
    Rule(_train("logging_steps"), (1,), _EVENTS),
    Rule(_train("logging_strategy"), ("steps",), _EVENTS),
    Rule(_train("logging_first_step logging_nan_inf_filter"), (True,), _EVENTS),
    Rule(_train("include_num_input_tokens_seen"), (False, "no"), _EVENTS),
    Rule(_train("logging_dir run_name"), (None,), "trackers write into the run directory", "set output_dir"),
    Rule(_train("log_level log_level_replica disable_tqdm"), (None,), "what is printed is the command line's"),
    Rule(_train("log_on_each_node save_on_each_node"), (False,), "the main process writes what there is to write"),
    Rule(
        _train("project trackio_space_id trackio_bucket_id trackio_static_space_id"),
        (None,),
        "a tracker's place is the tracker's own setting",
    ),
    Rule(
        _train("per_device_eval_batch_size"),
        (),
        _EVAL,
        "set eval.token_budget, or leave it out",
    ),
    Rule(_train("eval_delay eval_accumulation_steps"), (0, None), _EVAL),
    Rule(_train("include_for_metrics"), ([], None), _EVAL),
    Rule(
        _train(
            "bf16_full_eval fp16_full_eval prediction_loss_only eval_on_start batch_eval_metrics eval_use_gather_object"
        ),
        (False,),
        _EVAL,
    ),
    Rule(_train("eval_do_concat_batches"), (True,), _EVAL),
    Rule(_train("do_train"), (True,), _COMMAND, "use `expunge unlearn` or `expunge train`"),
    Rule(_train("do_eval do_predict"), (False,), _COMMAND, "use `expunge eval`"),
    Rule(_train("use_cpu no_cuda"), (False,), _DEVICE, "set device=cpu"),
    Rule(_train("use_mps_device"), (False,), _DEVICE, "set device=mps"),
    Rule(
        _train(
            "accelerator_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
            "ddp_backend ddp_timeout local_rank"
        ),
        (None,),
        _LAUNCH,
        "start with --num_processes, torchrun or accelerate launch",
    ),
    Rule(_train("debug"), ("", []), "expunge has no such switches"),
    Rule(_train("skip_memory_metrics"), (True,), "the memory of every step is in events.jsonl"),
    Rule(_train("hub_token") + " model.token model.use_auth_token", (None,), TOKEN, _LOGIN),
    Rule(_train("hub_strategy"), ("end",), "only a finished model is pushed"),
    Rule(_train("hub_always_push"), (False,), "only a finished model is pushed"),
    Rule(_train("hub_revision"), (None,), "branches are the command's to name", "use `expunge push` with --revision"),
    Rule("model.device_map", (None,), "a model is on one device, or divided", "set device, or train.fsdp=true"),
    Rule("model.quantization_config", (None,), _QUANT, "set model.load_in_4bit or model.load_in_8bit"),
    Rule("model.bnb_4bit_quant_type", ("nf4",), _QUANT),
    Rule("model.bnb_4bit_compute_dtype", ("bfloat16",), _QUANT),
    Rule("model.use_bnb_nested_quant", (True,), _QUANT),
    Rule("model.bnb_4bit_quant_storage", (None,), _QUANT),
    Rule(
        "model.lora_modules_to_save model.lora_target_parameters model.use_rslora model.use_dora",
        (None, False),
        "adapters are plain LoRA on linear layers",
    ),
    Rule("model.lora_task_type", ("CAUSAL_LM",), "every model here is a causal language model"),
    Rule("model.cache_dir", (None,), "where the Hub's files lie is Hugging Face's own setting", "set HF_HOME"),
    Rule("model.low_cpu_mem_usage", (None, True), "weights are read shard by shard anyway"),
)
"""What is accepted where it says what happens anyway, and else refused."""
