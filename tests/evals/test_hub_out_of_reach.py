"""A suite whose benchmark lies on the Hub says how a local copy is named where the Hub cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.config.schema import Recipe
from expunge.data import source
from expunge.data.benchmarks import lume, mmlu, place, utility, wmdp
from expunge.errors import HubError
from expunge.evals.run import EvalOptions, build_suite


@pytest.mark.parametrize(
    ("suite", "where", "option"),
    [
        ("tofu", None, "--tofu DIR"),
        ("muse", None, "--source DIR"),
        ("rwku", None, "--source DIR"),
        ("lume", lume.HUB, "--source DIR"),
        ("mmlu", None, "--source DIR"),
        ("wmdp", None, "--source DIR"),
        ("utility", None, "--source DIR"),
    ],
)
def test_the_option_is_named(monkeypatch: pytest.MonkeyPatch, suite: str, where: str | None, option: str) -> None:
    def unreachable(repo: str, **_: Any) -> Any:
        raise HubError(f"cannot load {repo}", hint="check the network")

    for module in (source, place, mmlu, utility, wmdp):
        monkeypatch.setattr(module, "load_hub", unreachable)
    with pytest.raises(HubError, match="cannot load") as caught:
        build_suite(suite, Recipe(), EvalOptions(source=where))
    assert option in str(caught.value.hint)
