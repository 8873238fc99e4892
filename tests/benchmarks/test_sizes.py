"""The benchmarks of large vocabularies and of loading: their sides do the same work, and loading streams."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import loading, vocabulary  # noqa: E402
from expunge.models.chunks import LOGIT_BYTES  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", vocabulary.METHOD_NAMES)
def test_the_sides_of_the_vocabulary_benchmark_take_the_same_step(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr(vocabulary, "VOCAB", 1024)
    monkeypatch.setitem(LOGIT_BYTES, "cpu", 4 * 1024 * 50)
    args = argparse.Namespace(method=method, device="cpu", hidden=32, batch_size=2, token_budget=512)
    sides = [side for side in vocabulary.SIDES if side != "naive" or method == vocabulary.NAIVE]
    full, *others = [vocabulary.run_side(argparse.Namespace(**vars(args), side=side)) for side in sides]
    for other in others:
        assert other["loss"] == pytest.approx(full["loss"], rel=1e-5, abs=1e-5)
        assert other["grad_norm"] == pytest.approx(full["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from procfs")
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_loading_needs_the_weights_once(dtype: str) -> None:
    found = loading.measure(dtype, argparse.Namespace(megabytes=200, device="cpu"))
    assert len(found["files_mb"]) == loading.SHARDS
    assert found["own_ratio"] < 1.3
    # Files of 16 bits are half the weights, and all of them may be mapped at once.
    assert found["peak_ratio"] < (1.3 if dtype == "float32" else 1.8)
