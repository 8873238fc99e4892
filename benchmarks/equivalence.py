"""The same recipe in every physical layout: how far the resulting weights are from those of one process.

    python benchmarks/equivalence.py                  # tofu_tiny_full on 40 TOFU rows, about 5 minutes on 2 cores
    python benchmarks/equivalence.py --methods eua    # one method

Every run is the command itself, `expunge unlearn`, in processes of its own. The distance is that of the weights, as a
share of how far unlearning moved them: `||w - w_one|| / ||w_one - w_start||`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import shared_folder

EXPUNGE = ("-m", "expunge.cli.main", "unlearn")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Told of no GPU, Accelerate leaves several processes to MPI and starts one: its config says several GPUs instead.
DDP = Path(__file__).resolve().parents[1] / "launch" / "ddp.yaml"
ACCELERATE = ("-m", "accelerate.commands.launch", "--config_file", str(DDP), "--num_processes", "2")


class Layout(NamedTuple):
    """One way to carry the recipe out."""

    name: str
    overrides: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


ONE = Layout("one process, 2048 tokens a micro-batch")
LAYOUTS = (
    Layout("256 tokens a micro-batch", ("train.token_budget=256",)),
    Layout("gradient checkpointing", ("train.gradient_checkpointing=true",)),
    Layout("logits in chunks of 7 positions", ("train.logits_chunk=7",)),
    Layout("2 processes (`--num_processes 2`)", options=("--num_processes", "2")),
    Layout("3 processes", options=("--num_processes", "3")),
    Layout("2 processes, 256 tokens", ("train.token_budget=256",), options=("--num_processes", "2")),
    Layout("2 processes (`torchrun`)", launcher=TORCHRUN),
    Layout("2 processes (`accelerate launch`)", launcher=ACCELERATE),
    Layout("2 processes, divided (`train.fsdp`)", ("train.fsdp=true",), options=("--num_processes", "2")),
    Layout("3 processes, divided", ("train.fsdp=true",), options=("--num_processes", "3")),
)


def carry_out(layout: Layout, method: str, folder: Path, shared: Path) -> dict[str, Tensor]:
    """The weights a run ends with."""
    out = folder / f"{method}-{LAYOUTS.index(layout) + 1 if layout in LAYOUTS else 0}"
    overrides = {
        "model.model_name_or_path": shared / "models" / "tofu_tiny_full",
        "data.tofu": shared / "data" / "tofu",
        "data.forget": "{path: 'tofu:forget10', rows: '0:40'}",
        "data.retain": "{path: 'tofu:retain90', rows: '0:80'}",
        "method.name": method,
        "train.learning_rate": 1e-4,
        "train.num_train_epochs": 2,
        "train.global_batch_size": 16,
        "train.token_budget": 2048,
        "output_dir": out,
    }
    given = [f"{key}={value}" for key, value in overrides.items()] + list(layout.overrides)
    # accelerate launch takes a module with -m, the others take Python's own arguments.
    command = [sys.executable, *layout.launcher, *EXPUNGE, str(folder / "recipe.yaml"), *given, *layout.options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EXPUNGE_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{layout.name}: {done.stderr[-2000:]}")
    weights: dict[str, Tensor] = load_file(out / "model" / "model.safetensors")
    return weights


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """`||a - b||` over all tensors, in float64."""
    return float(torch.stack([(a[name].double() - b[name].double()).square().sum() for name in a]).sum().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="npo,eua", help="comma-separated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shared, methods = shared_folder(), options.methods.split(",")
    start = load_file(shared / "models" / "tofu_tiny_full" / "model.safetensors")
    table: dict[str, dict[str, float]] = {layout.name: {} for layout in LAYOUTS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text("kind: unlearn\n")
        for method in methods:
            one = carry_out(ONE, method, folder, shared)
            moved = distance(one, start)
            for layout in LAYOUTS:
                table[layout.name][method] = distance(carry_out(layout, method, folder, shared), one) / moved
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(f"| against {ONE.name} | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for layout, found in table.items():
        print(f"| {layout} | {' | '.join(f'{found[method]:.1e}' for method in methods)} |")


if __name__ == "__main__":
    main()
