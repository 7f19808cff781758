"""The contract of an engine: it builds and runs one graph, and says why it cannot."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import platform
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    Buffers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: name, shape (None where the size is free) and NumPy dtype name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class BuildOptions:
    """How to compile a graph.

    Attributes:
        precision: the arithmetic: "fp32", "bf16", "fp16", "int8" or "int8+fp16".
        threads: threads the engine may use (>= 1).
        max_batch: the largest batch it will be run with (>= 1).
    """

    precision: str
    threads: int = 1
    max_batch: int = 1


class Runner(Protocol):
    """A graph bound to preallocated buffers."""

    def run(self) -> None:
        """Compute the bound outputs from the bound inputs; releases the GIL, allocates nothing of its own."""


class Engine(ABC):
    """One compiled graph. A context manager; used by one thread at a time."""

    name: ClassVar[str]  # its file's name
    package: ClassVar[str]  # what it imports
    install: ClassVar[str]  # how to get it
    # precision -> the bundle's graph variant that it runs, in the order of falling accuracy
    variants: ClassVar[Mapping[str, str]]

    @staticmethod
    @abstractmethod
    def unavailable() -> str | None:
        """Why the engine cannot be used here, or None if it can."""

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Version of the engine's package."""

    @staticmethod
    @abstractmethod
    def unsupported(precision: str) -> str | None:
        """Why the engine cannot compute in this precision on this machine, or None if it can."""

    @staticmethod
    @abstractmethod
    def build(graph: Path, out: Path, options: BuildOptions) -> None:
        """Compile the ONNX file ``graph`` into the file ``out``; raises EngineError with the engine's reason."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def __init__(self, built: Path, options: BuildOptions) -> None:
        """Load what ``build`` wrote with the same options; raises EngineError."""

    @abstractmethod
    def bind(self, inputs: Buffers, outputs: Buffers) -> Runner:
        """Bind C-contiguous arrays of one batch size to the graph's inputs and outputs, by name."""

    @abstractmethod
    def close(self) -> None:
        """Release the engine's memory; a second call does nothing."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def missing(package: str, install: str) -> str | None:
    """Why a package cannot be imported and how to get it, or None if it can."""
    if importlib.util.find_spec(package) is None:
        return f"not installed ({install})"
    try:
        importlib.import_module(package)
    except Exception as error:  # a damaged installation raises many kinds
        return f"installed, but it cannot be imported: {error} ({install})"
    return None


# GPU engines first: where one is installed and has a device, it is what the user installed it for.
PREFERENCE = ("tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")


def engines() -> dict[str, type[Engine]]:
    """The engines kizu knows, by name, in order of preference. Importing them loads no engine package."""
    import kizu.engines

    names = [m.name for m in pkgutil.iter_modules(kizu.engines.__path__)]
    names.sort(key=lambda name: (PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE), name))
    return {name: importlib.import_module(f"kizu.engines.{name}").ENGINE for name in names}


def choose(name: str = "auto") -> type[Engine]:
    """Return an engine by name, or the preferred one that is available.

    Raises:
        EngineError: the engine is unknown or unavailable; with "auto", none is available. Says what to install.
    """
    known = engines()
    if name != "auto":
        if name not in known:
            raise EngineError(f"no engine is called {name!r}; known engines: {', '.join(known)}")
        reason = known[name].unavailable()
        if reason is not None:
            raise EngineError(f"the engine {name} cannot be used here: {reason}")
        return known[name]
    reasons = []
    for engine in known.values():
        reason = engine.unavailable()
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise EngineError(
        f'no engine is installed. On a CPU: pip install "kizu[cpu]". What was found: {"; ".join(reasons)}'
    )


def default_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def processor() -> str:
    """The processor's name and a digest of its features: what a compiled engine depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or fields.get("CPU part") or platform.processor() or "unknown"
    features = fields.get("flags") or fields.get("Features") or ""
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()} {model} [{digest}]"
