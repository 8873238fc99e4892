"""A finished run around a tiny model, without training: what commands on runs are tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.testing.tiny import tiny_llama, tiny_tokenizer

Row = Mapping[str, Any]


def tiny_run(folder: Path, *, forget: Sequence[Row], retain: Sequence[Row], seed: int = 0, **data: Any) -> Path:
    """A finished `unlearn` run whose model is a random tiny Llama and whose rows lie beside it.

    Most tokens end an answer, so that generating takes no time.

    Args:
        folder: the run directory, made here.
        forget: rows to forget, e.g. with `question` and `answer`.
        retain: rows to keep; none leaves the recipe without retain rows.
        seed: of the weights.
        data: more keys of the recipe's data section.

    Returns:
        The run directory.
    """
    from expunge.config.schema import Recipe
    from expunge.models.load import quiet
    from expunge.runs.run import Run

    folder.mkdir(parents=True)
    rows = {name: given for name, given in (("forget", forget), ("retain", retain)) if given}
    paths = {name: folder.with_name(f"{folder.name}-{name}.jsonl") for name in rows}
    for name, given in rows.items():
        paths[name].write_text("".join(json.dumps(dict(row)) + "\n" for row in given), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": {"model_name_or_path": "start"},
            "data": {**{name: str(path) for name, path in paths.items()}, **data},
            "method": {"name": "eua"},
            "output_dir": str(folder),
            "device": "cpu",
        }
    )
    resolved = recipe.model_dump(mode="json")
    run = Run.create(folder, kind="unlearn", given=resolved, resolved=resolved)
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed)
    model.generation_config.eos_token_id = list(range(60, len(tokenizer)))
    with quiet():
        model.save_pretrained(run.model_dir)
        tokenizer.save_pretrained(run.model_dir)
    run.update(status="finished")
    return folder
