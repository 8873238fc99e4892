"""Bars in a terminal: one per phase, and under them the figures of the last event. Imported only when drawn."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from expunge.cli.progress import counted, details, message

ROOMY = 60
"""Columns below which there are numbers only."""


class _Remaining(TimeRemainingColumn):
    """What the event says is left; a guess from the speed where it says nothing."""

    def render(self, task: Task) -> Text:
        """`0:01:05`."""
        seconds = task.fields.get("eta_s")
        if seconds is None:
            return super().render(task)
        return Text(str(timedelta(seconds=int(seconds))), style="progress.remaining")


class LiveProgress(Progress):
    """Draws progress events; nothing of it stays on the terminal."""

    def __init__(self, console: Console) -> None:
        self._phases: dict[str, TaskID] = {}
        self._details = ""
        bar = [BarColumn(bar_width=24)] if console.width >= ROOMY else []
        super().__init__(
            TextColumn("{task.description}", markup=False),
            *bar,
            MofNCompleteColumn(),
            _Remaining(),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars and the line under them."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self._details, overflow="ellipsis", no_wrap=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event; kinds without a text or a count are not shown."""
        if text := message(event):
            self.console.print(text, markup=False)
            return
        count = counted(event)
        if count is None:
            return
        self._details = details(event)
        if count.name not in self._phases:
            self._phases[count.name] = self.add_task(count.name, total=count.total, eta_s=None)
        # A bar that is full has told what it had to tell.
        task = self._phases[count.name]
        visible = count.done < count.total
        self.update(task, completed=count.done, total=count.total, visible=visible, eta_s=event.get("eta_s"))
