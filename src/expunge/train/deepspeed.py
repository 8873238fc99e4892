"""DeepSpeed's ZeRO-3: every process keeps a part of each weight, gradient and optimizer state, as FSDP2 does.

For people whose clusters are set up for DeepSpeed: `accelerate launch --config_file launch/deepspeed_zero3.yaml`. It
carries out every method that needs only losses; `train.fsdp` divides models as well and works with every wrapper.
What a step is divided by stays ours: DeepSpeed averages over processes and counts nothing, so a step of two processes
is the step of one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from expunge.config.schema import Recipe, TrainSection
from expunge.errors import UsageError
from expunge.models.chunks import chunk_of
from expunge.models.load import compute_dtype, vocabulary_size
from expunge.models.processes import Processes, processes
from expunge.train.optim import Optimizers
from expunge.train.wrappers.select import Wrapped

FOLDER = "zero3"
_INSTEAD = "set train.fsdp=true and start with torchrun or --num_processes N: the same division, for every method"
_SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
_CONFIG = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_TAG = "state"


def asked_for(name: str = "DEEPSPEED") -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed (or `FSDP`)."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


@contextmanager
def by_hand() -> Iterator[None]:
    """Accelerate objects made inside leave DeepSpeed and FSDP alone: models are loaded whole and divided here."""
    before = {name: os.environ.pop(name) for name in _SWITCHES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def require_zero3(recipe: Recipe, wrapped: Wrapped, where: Processes) -> None:
    """Refuse what is not carried out under DeepSpeed.

    Raises:
        UsageError: naming the setting, wrapper or method, and what to use instead.
    """
    around = [wrapper.name for wrapper in (wrapped.combine, *wrapped.masks) if wrapper is not None]
    refused = {
        "only one process": where.world == 1,
        "train.fsdp": recipe.train.fsdp,
        f"the wrapper {' and '.join(around)}, which reads gradients": bool(around),
        f"train.optim={recipe.train.optim}": recipe.train.optim not in ("adamw", "sgd"),
        "train.eval_every": recipe.train.eval_every is not None,
        "model.use_peft": recipe.model.use_peft,
        "a number of positions in train.logits_chunk": isinstance(recipe.train.logits_chunk, int),
        f"the method {wrapped.method.name}, which makes new rows": wrapped.method.refresh_every is not None,
    }
    found = [what for what, is_so in refused.items() if is_so]
    if found:
        raise UsageError(f"accelerate launch asks for DeepSpeed, which does not go with {found[0]}", hint=_INSTEAD)
    read_config(recipe.train, torch.device("cpu"))


def read_config(settings: TrainSection, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's settings from the file the launcher names, with what the recipe decides filled in.

    Args:
        settings: the recipe's train section.
        device: where this process computes; accelerators compute in bfloat16 autocast, weights stay float32.

    Raises:
        UsageError: there is no such file, it is no ZeRO-3, or it decides what the recipe decides.
    """
    path = os.environ.get(_CONFIG)
    if path is None:
        raise UsageError(
            "accelerate launch asks for DeepSpeed without a deepspeed_config_file",
            hint="name one in Accelerate's config, e.g. launch/zero3.json",
        )
    try:
        given: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"DeepSpeed's settings {path} cannot be read: {error}",
            hint="name a JSON file as deepspeed_config_file; a relative path starts at the current directory",
        ) from error
    stage = given.get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise UsageError(
            f"{path} sets zero_optimization.stage to {stage!r}; a model is divided by 3 or not at all",
            hint="set it to 3; without DeepSpeed every process holds the whole model",
        )
    decided = _decided(settings, device)
    clash = [key for key, value in given.items() if key in decided and value not in ("auto", decided[key])]
    if clash:
        raise UsageError(
            f"{path} sets {clash[0]} to {json.dumps(given[clash[0]])}, which the recipe decides",
            hint=f'leave {clash[0]} out, or write "auto"; batch, accumulation, clipping and optimizer are train.* keys',
        )
    return {**given, **{key: value for key, value in decided.items() if value is not None}}


def _decided(settings: TrainSection, device: torch.device) -> dict[str, Any]:
    """Keys that DeepSpeed's file leaves to the recipe; None: it has no such key at all."""
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    lower = dtype != "float32"
    # Without a list of its own DeepSpeed would send the gradients of linear maps in bfloat16.
    autocast = {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []} if lower else None
    return {
        "train_batch_size": processes().world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": autocast,
        **dict.fromkeys(("optimizer", "scheduler", "fp16", "bf16", "amp")),
    }


def large_logits(model: Any, settings: TrainSection, *, count: int) -> str:
    """Why `count` positions' logits are held at once where they would be made in chunks otherwise; else empty."""
    device = next(model.parameters()).device
    chunk = chunk_of(settings.logits_chunk, count=count, vocab=vocabulary_size(model), device=device)
    return "" if chunk is None else "its output head is divided by DeepSpeed again once a forward has ended"


class Zero3:
    """A model divided by DeepSpeed, and what the engine asks of it.

    Args:
        model: whole, the same on every process; divided in place.
        optimizers: one AdamW or SGD, whose state is divided as well.
        settings: the recipe's train section.
        trained: the parameters that are trained, by name.

    Raises:
        UsageError: DeepSpeed is not installed.
    """

    def __init__(
        self, model: nn.Module, optimizers: Optimizers, settings: TrainSection, trained: Mapping[str, nn.Parameter]
    ) -> None:
        device = next(model.parameters()).device
        deepspeed = _deepspeed(device)
        self.optimizers, self.trained = optimizers, trained
        config = read_config(settings, device)
        with redirect_stdout(sys.stderr):
            self.model, *_ = deepspeed.initialize(model=model, optimizer=optimizers.each[0], config=config)
        """Called like the model that was given."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient to the step's.

        Args:
            loss: scalar; its mean over processes is what counts.
            last: no micro-batch of this step follows.
        """
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss)

    @property
    def norm(self) -> Tensor:
        """The gradient's norm before clipping, a float64 scalar; called by every process together."""
        from deepspeed.utils import safe_get_local_grad

        parts = [safe_get_local_grad(parameter).double().square().sum() for parameter in self.trained.values()]
        total = torch.stack(parts).sum()
        dist.all_reduce(total)
        return total.sqrt()

    def step(self) -> None:
        """Clip, update the weights, advance the schedule, clear the gradients."""
        self.model.step()
        for schedule in self.optimizers.schedules:
            schedule.step()

    def save(self, folder: Path) -> None:
        """Write every process's part of the trained weights and the optimizer's state in DeepSpeed's own format."""
        with redirect_stdout(sys.stderr):
            self.model.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read back what as many processes wrote.

        Args:
            folder: as given to `save`.

        Raises:
            UsageError: another number of processes wrote it.
        """
        parts = len(list((folder / _TAG).glob("*optim_states.pt")))
        if parts != processes().world:
            raise UsageError(
                f"{folder} was written by {parts} processes under DeepSpeed, and these are {processes().world}",
                hint=f"resume with {parts} processes; checkpoints of train.fsdp fit any number",
            )
        with redirect_stdout(sys.stderr):
            self.model.load_checkpoint(
                str(folder),
                tag=_TAG,
                load_module_strict=False,
                load_lr_scheduler_states=False,
            )


def own_part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter DeepSpeed divided, flat; the parameter itself where it did not."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part.detach()


def is_divided(parameter: Tensor) -> bool:
    """Whether DeepSpeed divided this parameter."""
    return hasattr(parameter, "ds_id")


def whole_parameter(parameter: Tensor) -> Tensor:
    """All of a parameter that DeepSpeed divided, on the CPU; called by every process together."""
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def _deepspeed(device: torch.device) -> Any:
    """The package, with its messages on stderr: stdout is for results."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with redirect_stdout(sys.stderr):
            import deepspeed
            from deepspeed.utils import logger
    except ImportError as error:
        raise UsageError(
            "accelerate launch asks for DeepSpeed, which is not installed",
            hint='pip install "expunge[deepspeed]"; or ' + _INSTEAD,
        ) from error
    logger.setLevel("WARNING")
    for handler in logger.handlers:
        if hasattr(handler, "setStream"):
            handler.setStream(sys.stderr)
    return deepspeed
