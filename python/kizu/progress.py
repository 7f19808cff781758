"""Progress of long work, told to whoever watches; silent by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """What long work reports to."""

    def note(self, text: str) -> None:
        """Something that whoever watches should know."""

    def reading(self, images: int) -> AbstractContextManager[Callable[[], None]]:
        """Images are being read; the callable is called once for each."""

    def training(self, epochs: int, batches: int) -> AbstractContextManager[Callable[..., None]]:
        """A model is being trained; the callable takes epoch, batch, losses and, after an epoch, its values."""


class _Silent:
    def note(self, text: str) -> None:
        return None

    @contextmanager
    def reading(self, images: int) -> Iterator[Callable[[], None]]:
        yield lambda: None

    @contextmanager
    def training(self, epochs: int, batches: int) -> Iterator[Callable[..., None]]:
        def report(**_: object) -> None:
            return None

        yield report


no_progress: Progress = _Silent()


class RichProgress:
    """Progress bars on a terminal; a line a validation where the output is not one."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False)

    def _bars(self) -> Bars:
        return Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    @contextmanager
    def reading(self, images: int) -> Iterator[Callable[[], None]]:
        """A bar over the images read."""
        with self._bars() as bars:
            task = bars.add_task("reading images", total=images, detail="")
            yield lambda: bars.advance(task)

    @contextmanager
    def training(self, epochs: int, batches: int) -> Iterator[Callable[..., None]]:
        """A bar over the epochs with the present losses, and a line for each validation."""
        with self._bars() as bars:
            task = bars.add_task("epochs", total=epochs, detail="")

            def report(
                *, epoch: int, batch: int, losses: Mapping[str, Any], values: Mapping[str, float] | None = None
            ) -> None:
                if values is None:
                    detail = "  ".join(f"{name} {float(value):.3f}" for name, value in losses.items())
                    bars.update(task, completed=epoch - 1 + batch / batches, detail=detail)
                elif any(name.startswith("val_") for name in values):
                    numbers = "  ".join(f"{n} {v:.3f}" for n, v in values.items() if n not in ("epoch", "seconds"))
                    self._console.print(f"epoch {epoch:>4}  {numbers}", highlight=False)

            yield report
