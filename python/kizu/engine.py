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
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from kizu.engine_file import Header

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
        min_batch, opt_batch: the smallest batch, and the one to be fastest at; an engine that compiles for batches of
            any size takes 1 alone.
        compute_capability: the GPU to compile for, e.g. "8.6", where it is not this machine's.
        workspace: the most MiB of device memory that a kernel may work in, besides the graph's own tensors.
        timing_cache: file of measured kernels, read and extended, that makes the next build quick and alike.
    """

    precision: str
    threads: int = 1
    max_batch: int = 1
    min_batch: int = 1
    opt_batch: int = 1
    compute_capability: str | None = None
    workspace: int | None = None
    timing_cache: str | None = None


class Runner(Protocol):
    """A graph bound to preallocated buffers."""

    def run(self) -> None:
        """Compute the bound outputs from the bound inputs; releases the GIL, allocates nothing of its own."""


class DeviceTensor(NamedTuple):
    """Device memory of a graph's input or output: address, shape, NumPy dtype name; C-contiguous."""

    address: int
    shape: tuple[int, ...]
    dtype: str


class ExecutionContext(Protocol):
    """A graph bound to tensors of one batch size on a CUDA device. It must outlive what was captured of it."""

    def enqueue(self, stream: int) -> None:
        """Put the computation on the CUDA stream of this handle, without waiting; raises EngineError."""

    def capturable(self, stream: int) -> bool:
        """Whether ``enqueue`` may be captured into a CUDA graph, once it has run."""


class Program(ABC):
    """What a pipeline runs: reads and writes tensors. A context manager; used by one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def close(self) -> None:
        """Release its memory; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class CpuProgram(Program):
    """A program that computes from host memory to host memory."""

    @abstractmethod
    def bind(self, inputs: Buffers, outputs: Buffers) -> Runner:
        """Bind C-contiguous arrays of one batch size to the program's inputs and outputs, by name."""


class CudaProgram(Program):
    """A program that computes from device memory to device memory on a CUDA stream.

    Attributes:
        workspace: bytes of device memory that one context works in while it runs.
    """

    workspace: int

    @abstractmethod
    def context(self, tensors: Mapping[str, DeviceTensor], workspace: int) -> ExecutionContext:
        """Bind tensors of one batch size to the program's inputs and outputs, by name.

        ``workspace`` is the address of as many bytes of device memory, 256-byte aligned, which contexts that never run
        at the same time may share. Contexts end before the program is closed. Raises EngineError.
        """


class Engine(Program):
    """One compiled graph."""

    name: ClassVar[str]
    package: ClassVar[str]  # what it imports
    install: ClassVar[str]  # how to get it
    takes: ClassVar[frozenset[str]] = frozenset()  # the fields of BuildOptions behind max_batch that it honours
    # precision -> the bundle's graph variant that it runs, in the order of falling accuracy
    variants: ClassVar[Mapping[str, str]]
    # precision -> another form of that variant, which it runs faster: taken where the bundle has it
    preferred: ClassVar[Mapping[str, str]] = {}

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

    @classmethod
    def variant(cls, precision: str, graphs: Container[str]) -> str:
        """The graph variant that it runs in this precision, of those that a bundle has."""
        preferred = cls.preferred.get(precision)
        return preferred if preferred is not None and preferred in graphs else cls.variants[precision]

    @classmethod
    def cannot_build(cls, options: BuildOptions) -> str | None:
        """Why ``build`` cannot compile with these options on this machine, or None if it can."""
        return cls.no_option(options) or cls.unavailable()

    @classmethod
    def no_option(cls, options: BuildOptions) -> str | None:
        """The option among these that the engine would ignore, or None."""
        for item in fields(BuildOptions):
            if item.default is not MISSING and item.name not in {"threads", "max_batch", *cls.takes}:
                value = getattr(options, item.name)
                if value != item.default:
                    return f"{cls.name} has no option {item.name} (given: {value}); leave it out"
        return None

    @staticmethod
    def machine() -> str:
        """What a compiled engine depends on besides its package: the processor, or the GPU and its driver."""
        return processor()

    @staticmethod
    @abstractmethod
    def build(graph: Path, out: Path, options: BuildOptions) -> None:
        """Compile the ONNX file ``graph`` into the file ``out``; raises EngineError with the engine's reason."""

    @abstractmethod
    def __init__(self, built: Path, options: BuildOptions) -> None:
        """Load what ``build`` wrote with the same options; raises EngineError."""


class CpuEngine(Engine, CpuProgram):
    """An engine that computes from host memory to host memory."""


class CudaEngine(Engine, CudaProgram):
    """An engine that computes from device memory to device memory on a CUDA stream.

    What ``build`` writes is an engine file (``kizu.engine_file``), which other machines with the same package and the
    compute capability that it was built for can load.
    """

    @classmethod
    @abstractmethod
    def cannot_load(cls, header: Header) -> str | None:
        """Why an engine file with this header cannot be used on this machine, or None if it can."""


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
PREFERENCE = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")


def engines() -> dict[str, type[Engine]]:
    """The engines kizu knows, by name, in order of preference. Importing them loads no engine package."""
    import kizu.engines

    found: dict[str, type[Engine]] = {}
    for module in pkgutil.iter_modules(kizu.engines.__path__):
        for engine in importlib.import_module(f"kizu.engines.{module.name}").ENGINES:
            found[engine.name] = engine
    order = {name: i for i, name in enumerate(PREFERENCE)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


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
