"""Loading a model from several files: the peak of memory against the float32 weights that are there afterwards.

    python -m benchmarks.loading                    # 400 MB of float32 weights in four files; half a minute
    python -m benchmarks.loading --megabytes 2000

A random model is written in float32 and in bfloat16. Each is then loaded in a fresh process, and its digest taken as a
run does. Memory is the peak above the imported libraries, twice: the resident set, and what of it is the process's own.
The rest is pages of the files, which stay mapped until all are read and which the system drops where memory is short.
1.00 is the weights and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.common import seconds, write_json
from expunge.bench.memory import PeakMemory
from expunge.config.schema import ModelSection
from expunge.models.fingerprint import model_digest
from expunge.models.load import load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARDS = 4
HIDDEN, VOCAB = 1024, 8192


def write_model(folder: Path, dtype: str, *, megabytes: int) -> None:
    """A random Llama of so many megabytes in float32, in `SHARDS` files."""
    block = 4 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * 3 * HIDDEN)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=max(1, round((megabytes * 1e6 - 2 * 4 * VOCAB * HIDDEN) / block)),
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(DTYPES[dtype])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=f"{size / SHARDS / 1e6 * 1.1:.0f}MB")


def load(folder: Path, device: torch.device) -> dict[str, float]:
    """The body of a process: megabytes at the peak of loading and digesting, and seconds of loading."""
    section, loaded = ModelSection(model_name_or_path=str(folder)), list[Any]()
    peak = PeakMemory(device)
    with OwnPeak() as own:
        spent = seconds(lambda: loaded.append(load_model(section, device=device)), device)
        model_digest(loaded[0].model)
    weights = sum(p.numel() * p.element_size() for p in loaded[0].model.parameters()) / 1e6
    return {"weights_mb": weights, "peak_mb": peak.mb(), "own_mb": own.mb, "seconds": spent}


class OwnPeak:
    """Inside the block: the largest growth of memory that no file stands behind, looked up every few milliseconds."""

    def __enter__(self) -> OwnPeak:
        self.base, self.mb, self.ended = self._now(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(0.003):
            self.mb = max(self.mb, self._now() - self.base)

    def _now(self) -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon:"))


def measure(dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One dtype of the files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, dtype, megabytes=args.megabytes)
        files = sorted(path.stat().st_size / 1e6 for path in folder.glob("*.safetensors"))
        command = [sys.executable, "-m", "benchmarks.loading", "--folder", name, "--device", args.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"loading failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    ratios = {f"{kind}_ratio": found[f"{kind}_mb"] / found["weights_mb"] for kind in ("peak", "own")}
    return {"files": dtype, "files_mb": files, **found, **ratios}


def show(result: dict[str, Any]) -> None:
    """One dtype for people."""
    files = ", ".join(f"{size:.0f}" for size in result["files_mb"])
    print(f"{result['files']} files of {files} MB, {result['weights_mb']:.0f} MB of weights in memory:", end=" ")
    print(f"peak {result['peak_mb']:.0f} MB ({result['peak_ratio']:.2f} of the weights),", end=" ")
    print(f"its own {result['own_mb']:.0f} MB ({result['own_ratio']:.2f}); loaded in {result['seconds']:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of float32 weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.folder:
        print(json.dumps(load(args.folder, torch.device(args.device))))
        return
    results = [measure(dtype, args) for dtype in DTYPES]
    for result in results:
        show(result)
    write_json(args.json, results)


if __name__ == "__main__":
    main()
