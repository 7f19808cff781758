"""The pipelines of a detector, which calls from any thread take turns on."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kizu.errors import KizuError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kizu.engine import Program
    from kizu.pipeline import Pipeline


class _Waiting:
    """A call that waits for a pipeline, for any or for one."""

    def __init__(self, wanted: Pipeline | None) -> None:
        self.wanted = wanted
        self.given: Pipeline | None = None
        self.turn = threading.Lock()
        self.turn.acquire()


class Pool:
    """Pipelines of one engine, each used by one call at a time; calls get them in the order in which they come.

    A pipeline is free; in use by a call; or parked: frames were submitted to it, and no call is on its way.
    """

    def __init__(self, pipelines: Sequence[Pipeline], engine: Program) -> None:
        self.pipelines = tuple(pipelines)
        self._engine = engine
        # Re-entrant: a garbage collection may end a stream of this pool while it is held.
        self._lock = threading.RLock()
        self._free = list(reversed(pipelines))
        self._parked: list[Pipeline] = []
        self._waiting: deque[_Waiting] = deque()
        self._open = True
        self._unused = threading.Event()  # closed, and no call uses a pipeline
        self._closing = threading.Lock()

    def check_open(self) -> None:
        """Raise KizuError if the pool is closed."""
        if not self._open:
            raise KizuError("the detector is closed; kizu.load makes a new one")

    @contextmanager
    def using(self, wanted: Pipeline | None = None) -> Iterator[Pipeline]:
        """A free pipeline, or the wanted one, as soon as there is one."""
        pipeline = self.take(wanted)
        try:
            yield pipeline
        finally:
            self.give(pipeline)

    def take(self, wanted: Pipeline | None = None) -> Pipeline:
        """Begin ``using``; raises KizuError if the pool is closed.

        Who holds another pipeline must not wait here: see ``try_take``.
        """
        waiting = _Waiting(wanted)
        with self._lock:
            free = self.try_take(wanted)
            if free is not None:
                return free
            self._waiting.append(waiting)
        try:
            waiting.turn.acquire()
        except BaseException:  # interrupted
            with self._lock:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
            if waiting.given is not None:
                self.give(waiting.given)
            raise
        if waiting.given is None:
            self.check_open()
        assert waiting.given is not None
        return waiting.given

    def try_take(self, wanted: Pipeline | None = None) -> Pipeline | None:
        """Begin ``using`` if that is possible at once; raises KizuError if the pool is closed."""
        with self._lock:
            self.check_open()
            if wanted is None:
                return self._free.pop() if self._free else None
            if wanted not in self._free:
                return None
            self._free.remove(wanted)
            return wanted

    def give(self, pipeline: Pipeline) -> None:
        """End ``using``."""
        with self._lock:
            for waiting in self._waiting:
                if waiting.wanted in (None, pipeline):
                    self._waiting.remove(waiting)
                    waiting.given = pipeline
                    waiting.turn.release()
                    return
            self._free.append(pipeline)
            self._note_unused()

    def park(self, pipeline: Pipeline) -> None:
        """Leave a pipeline that is in use to its submitted frames, until ``resume``."""
        with self._lock:
            self._parked.append(pipeline)
            self._note_unused()

    def resume(self, pipeline: Pipeline) -> None:
        """Use a parked pipeline again; raises KizuError if the pool was closed meanwhile."""
        with self._lock:
            self.check_open()
            self._parked.remove(pipeline)

    def close(self) -> None:
        """Close pipelines and engine, once no call uses them; then a second call does nothing.

        All are closed, whatever one of them raises; the first such error is raised then.
        """
        with self._lock:
            self._open = False
            for waiting in self._waiting:
                waiting.turn.release()
            self._waiting.clear()
            self._note_unused()
        self._unused.wait()
        errors: list[Exception] = []
        with self._closing:
            for close in (*(pipeline.close for pipeline in self.pipelines), self._engine.close):
                try:
                    close()
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _note_unused(self) -> None:
        if not self._open and len(self._free) + len(self._parked) == len(self.pipelines):
            self._unused.set()
