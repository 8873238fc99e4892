"""The same recipe through every launcher: the same weights, one line on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_world import World
from test_hostile_processes import distance

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).parents[2] / "launch"
MODULE = "expunge.cli.main"
ACCELERATE = ("-m", "accelerate.commands.launch", "--main_process_port", "0", "--num_processes", "2")
LAUNCHERS = {
    "own": ("-m", MODULE, "unlearn", "--num_processes", "2"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", MODULE, "unlearn"),
    # `--cpu --num_processes 2` would start one process: Accelerate leaves several on CPUs to mpirun.
    "accelerate": (*ACCELERATE, "--config_file", str(LAUNCH / "ddp.yaml"), "-m", MODULE, "unlearn"),
}


def started(world: World, command: tuple[str, ...], recipe: Path, out: str) -> Path:
    """Run a launcher to its end; the run directory it printed."""
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {
        "PYTHONPATH": f"{source}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
        # Accelerate's launcher imports DeepSpeed where it is installed, which says on stdout that it found no GPU.
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        [sys.executable, *command, str(recipe), f"output_dir={world / out}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=world.folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{world / out}\n"
    return world / out


def test_every_launcher_gives_the_same_weights(world: World, uninterrupted: Path) -> None:
    recipe = world.recipe()
    found = {name: started(world, command, recipe, name) for name, command in LAUNCHERS.items()}
    found["divided"] = started(world, LAUNCHERS["torchrun"], world.recipe(train__fsdp=True), "divided")
    for name, run in found.items():
        assert distance(uninterrupted, run) < 1e-5, name
        assert distance(found["own"], run) < 1e-6, name


def test_accelerate_starts_deepspeed(world: World, uninterrupted: Path) -> None:
    pytest.importorskip("deepspeed", reason='needs pip install "expunge[deepspeed]"')
    # As the command line, but DeepSpeed compiles nothing for a CPU first.
    script = world / "quiet.py"
    script.write_text(
        "import sys\nfrom hostile_team import without_compiling\nfrom expunge.cli.main import main\n"
        "without_compiling()\nsys.exit(main())\n"
    )
    config = (LAUNCH / "deepspeed_zero3.yaml").read_text().replace("launch/zero3.json", str(LAUNCH / "zero3.json"))
    (world / "zero3.yaml").write_text(config)
    command = (*ACCELERATE, "--config_file", str(world / "zero3.yaml"), str(script), "unlearn")
    run = started(world, command, world.recipe(), "deepspeed")
    assert distance(uninterrupted, run) < 1e-4
