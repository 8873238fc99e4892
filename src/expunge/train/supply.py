"""Rows and tables of a run, epoch by epoch: what was prepared before the first step and what a method made since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from expunge.data.encode import Dataset
from expunge.data.prepare import Prepared
from expunge.errors import DataError
from expunge.methods.base import Method, Needs
from expunge.methods.workshop import Provision
from expunge.models.processes import processes
from expunge.models.reference_table import ReferenceTable, empty_table, reference_table
from expunge.train.engine import TrainingData
from expunge.train.provision import read_provision, write_provision
from expunge.train.workshop import RunWorkshop

Progress = Callable[[dict[str, Any]], None]
Report = Callable[[Mapping[str, ReferenceTable]], None]


class Made(NamedTuple):
    """A method's provision, encoded."""

    datasets: dict[str, Dataset]
    links: dict[str, np.ndarray]
    tables: Mapping[str, Mapping[str, np.ndarray]]
    constants: Mapping[str, Tensor]


class RunSupply:
    """Gives an engine its data (`expunge.train.engine.Supply`).

    Args:
        folder: where provisions are kept, one folder per epoch in which something was made.
        elsewhere: where tables go if the cache cannot be written to; None: that is an error.
        method: what is run.
        prepared: the rows of the recipe.
        workshop: with the starting model.
        model_key: SHA-256 of the starting weights.
        starting_model: gives the starting model for a while: references of rows made later are asked of it.
        report: told of tables that were built or read.
    """

    def __init__(
        self,
        folder: Path,
        method: Method,
        prepared: Prepared,
        workshop: RunWorkshop,
        *,
        model_key: str,
        starting_model: Callable[[], AbstractContextManager[Any]],
        progress: Progress,
        elsewhere: Path | None = None,
        report: Report = lambda tables: None,
    ) -> None:
        self.elsewhere, self.report = elsewhere, report
        self.folder, self.method, self.prepared, self.workshop = folder, method, prepared, workshop
        self.needs: Needs = method.needs()
        self.model_key, self.starting_model, self.progress = model_key, starting_model, progress
        self.tables: dict[str, ReferenceTable] = {}
        """As last given out."""
        self._made: Made | None = None
        """The provision of before the first step."""

    def due(self, epoch: int) -> bool:
        """Whether a method makes new rows at the start of this epoch."""
        every = self.method.refresh_every
        return every is not None and epoch > 0 and epoch % every == 0

    def first(self) -> TrainingData:
        """What the run begins with, made by the starting model or read back."""
        self._made = self._encoded(self._provision(0, lambda: self.method.prepare(self.workshop)))
        self.tables = self._tables(self._made, self.workshop.model)
        data = self._data(self._made)
        self.workshop.training = self.method, data
        return data

    def at(self, epoch: int, model: Any) -> TrainingData:
        """The data of `epoch`; what a method makes there is made with `model`, unless it was made before.

        Raises:
            DataError: it belongs to an earlier epoch than this one's first step, and is gone.
        """
        every = self.method.refresh_every
        began = epoch - epoch % every if every else 0
        made = self._made or self._encoded(self._provision(0, self._lost))
        if began == 0:
            return self._data(made)
        bench = replace(self.workshop, model=model)
        make = (lambda: self.method.refresh(bench, epoch)) if began == epoch else self._lost
        fresh = self._encoded(self._provision(began, make))
        now = Made(
            {**made.datasets, **fresh.datasets},
            {**made.links, **fresh.links},
            {**made.tables, **fresh.tables},
            {**made.constants, **fresh.constants},
        )
        asked = [name for name in fresh.datasets if self.needs.references.get(name)]
        with self.starting_model() if asked else nullcontext() as start:
            self.tables |= self._tables(now, start, only=tuple(fresh.datasets))
        return self._data(now)

    def _lost(self) -> Provision:
        raise DataError(
            f"what the method prepared in {self.folder} is gone", hint="start the run anew with --overwrite"
        )

    def _provision(self, epoch: int, make: Callable[[], Provision]) -> Provision:
        path = self.folder / f"epoch-{epoch:04d}"
        if not processes().first(path.is_dir):
            provision = make()
            if not (provision.rows or provision.tables or provision.constants):
                return provision
            processes().first(lambda: write_provision(path, provision))
        # Also what was just made is read back, so that a resumed run sees nothing else.
        return read_provision(path)

    def _encoded(self, provision: Provision) -> Made:
        datasets: dict[str, Dataset] = {}
        links: dict[str, np.ndarray] = {}
        for name, variants in provision.rows.items():
            anchor = self.prepared.datasets[self.needs.linked[name]]
            wrong = [len(variant) for variant in variants if len(variant) != len(anchor.examples)]
            if wrong or not variants:
                raise DataError(
                    f"{self.method.name} made {wrong[0] if wrong else 'no'} rows of {name} for "
                    f"{len(anchor.examples)} {anchor.role} rows",
                    hint="a variant holds one row per row it travels with",
                )
            datasets[name] = self.workshop.encode([example for variant in variants for example in variant], name)
            links[name] = np.arange(len(datasets[name].examples)).reshape(len(variants), -1)
        constants = {name: tensor.to(self.workshop.device) for name, tensor in provision.constants.items()}
        return Made(datasets, links, provision.tables, constants)

    def _data(self, made: Made) -> TrainingData:
        return TrainingData(
            {**self.prepared.datasets, **made.datasets},
            {**self.prepared.links, **made.links},
            self.tables,
            self.workshop.pad_id,
            made.constants,
        )

    def _tables(self, made: Made, model: Any, *, only: tuple[str, ...] | None = None) -> dict[str, ReferenceTable]:
        datasets = {**self.prepared.datasets, **made.datasets}
        names = [name for name in datasets if only is None or name in only]
        found = {name: table for name in names if (table := self._table(name, datasets[name], made, model)) is not None}
        if asked := {name: table for name, table in found.items() if table.name}:
            self.report(asked)
        return found

    def _table(self, name: str, dataset: Dataset, made: Made, model: Any) -> ReferenceTable | None:
        references, own = self.needs.references.get(name, ()), made.tables.get(name, {})
        if not references and not own:
            return None
        positions, skip_first = self.needs.positions_of(name), self.needs.skip_first.get(name, 0)
        table = empty_table(dataset, positions=positions, skip_first=skip_first)
        if references:
            table = reference_table(
                model,
                dataset,
                references,
                model_key=self.model_key,
                pad_id=self.workshop.pad_id,
                positions=positions,
                skip_first=skip_first,
                token_budget=self.workshop.token_budget,
                progress=self.progress,
                elsewhere=self.elsewhere,
            )
        return table.with_own(own, dataset=name) if own else table
