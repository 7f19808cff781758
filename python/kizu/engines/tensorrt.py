"""TensorRT: the engine of NVIDIA GPUs, as ``tensorrt`` (JetPack, servers) or as ``tensorrt_rtx`` (GeForce RTX).

The two packages have one API; what one has and the other lacks stands in the two classes at the end. Networks are
strongly typed: the precision is the graph's. ``tensorrt`` measures kernels on the device that it compiles for, so it
compiles there. ``tensorrt_rtx`` compiles for a compute capability that is named, without a device, and leaves the last
step to the first run there.

Without a driver, constructing a TensorRT runtime can end the process: the driver is asked before.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import re
import threading
from abc import abstractmethod
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kizu import _core, engine_file
from kizu.engine import BuildOptions, CudaEngine, DeviceTensor, ExecutionContext, TensorSpec, missing
from kizu.engine_file import Header
from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}
_ALIGNMENT = 256  # bytes, of the memory that a context works in


class _TensorRt(CudaEngine):
    """What the two packages have in common."""

    title: ClassVar[str]  # as its maker writes it
    oldest: ClassVar[tuple[int, int]]  # release
    variants: ClassVar[Mapping[str, str]] = {p: p for p in ("fp32", "fp16", "int8", "int8+fp16")}

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the package cannot be used here, or None. It is imported only where there is a device."""
        if importlib.util.find_spec(cls.package) is None:
            return missing(cls.package, cls.install)
        return _no_device() or cls._unusable() or cls._no_target(_core.cuda_device()["compute_capability"])

    @classmethod
    def _unusable(cls) -> str | None:
        """Why the package itself cannot be used, or None."""
        reason = missing(cls.package, cls.install)
        if reason is None and tuple(int(n) for n in re.findall(r"\d+", cls.version())[:2]) < cls.oldest:
            oldest = ".".join(map(str, cls.oldest))
            reason = f"{cls.title} {cls.version()} is too old; {oldest} or newer is needed ({cls.install})"
        return reason

    @classmethod
    def _no_target(cls, capability: str) -> str | None:
        """Why the package compiles for no GPU of this compute capability, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """Full version of the installed package."""
        return str(importlib.import_module(cls.package).__version__)

    @classmethod
    def unsupported(cls, precision: str) -> str | None:
        """Why ``precision`` cannot be run, or None."""
        return None if precision in cls.variants else f"{cls.title} runs {', '.join(cls.variants)}"

    @classmethod
    def machine(cls) -> str:
        """The GPU and its driver."""
        device = _core.cuda_device()
        return f"{device['name']}, compute capability {device['compute_capability']}, driver {device['driver']}"

    @classmethod
    def cannot_build(cls, options: BuildOptions) -> str | None:
        """Why ``build`` cannot compile with these options on this machine, or None."""
        batches = (options.min_batch, options.opt_batch, options.max_batch)
        if not 1 <= batches[0] <= batches[1] <= batches[2]:
            return f"the batches are {':'.join(map(str, batches))}, but must ascend from at least 1 (min:opt:max)"
        reason = cls.no_option(options)
        if reason is not None or options.compute_capability is None:
            return reason or cls.unavailable()
        return cls._unusable() or cls._no_target(options.compute_capability)  # no device is needed

    @classmethod
    def build(cls, graph: Path, out: Path, options: BuildOptions) -> None:
        """Compile the graph and write an engine file."""
        failure = f"{cls.title} could not compile {graph.name} for {options.precision}"
        reason = cls.unsupported(options.precision) or cls.cannot_build(options)
        if reason is not None:
            raise EngineError(f"{failure}: {reason}")
        trt, data = importlib.import_module(cls.package), graph.read_bytes()
        log = _log(trt)
        with log.explains(failure):
            builder = trt.Builder(log)
            builder.max_threads = options.threads
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, log)  # holds the weights until the plan is made
            if not parser.parse(data):
                raise EngineError(f"{failure}: {_parser_errors(parser)}")
            inputs = tuple(_spec(network.get_input(i)) for i in range(network.num_inputs))
            outputs = tuple(_spec(network.get_output(i)) for i in range(network.num_outputs))
            _check_graph(inputs, outputs, failure)
            config = builder.create_builder_config()
            config.clear_flag(trt.BuilderFlag.TF32)  # or fp32 would be rounded to 10 bits
            batch = (options.min_batch, options.opt_batch, options.max_batch)
            _add_profile(builder, config, inputs, batch, failure)
            plan = cls._plan(trt, builder, network, config, options)
            if plan is None:
                raise EngineError(f"{failure}: {log.take()}")
        plan = memoryview(plan)
        header = Header(
            engine=cls.name,
            version=cls.version(),
            precision=options.precision,
            batch=batch,
            compute_capability=options.compute_capability or _core.cuda_device()["compute_capability"],
            graph=hashlib.sha256(data).hexdigest(),
            inputs=inputs,
            outputs=outputs,
            plan_size=plan.nbytes,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
        )
        try:
            engine_file.write(out, header, plan)
        except OSError as error:
            raise EngineError(f"{failure}: {out} cannot be written: {error}") from error

    @classmethod
    @abstractmethod
    def _plan(cls, trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions) -> Any:
        """Set what only this package has, and compile; None where TensorRT failed."""

    @classmethod
    def cannot_load(cls, header: Header) -> str | None:
        """Why an engine file with this header cannot be used on this machine, or None."""
        if header.engine != cls.name:
            return f"it is an engine of {header.engine}, not of {cls.name}"
        reason = cls._unusable()
        if reason is not None:
            return reason
        if header.version != cls.version():
            return f"{cls.title} {header.version} compiled it, and {cls.version()} is installed; build it anew"
        reason = cls.unavailable()
        if reason is not None:
            return reason
        device = _core.cuda_device()
        if header.compute_capability != device["compute_capability"]:
            return (
                f"it is for GPUs of compute capability {header.compute_capability}, and this machine's, "
                f"{device['name']}, has {device['compute_capability']}; build it for that"
            )
        return None

    def __init__(self, built: Path, options: BuildOptions) -> None:
        failure = f"could not load the compiled engine {built}"
        header, plan = engine_file.read(built)
        reason = self.cannot_load(header)
        batch = (options.min_batch, options.opt_batch, options.max_batch)
        if reason is None and (header.precision, header.batch) != (options.precision, batch):
            reason = (
                f"it was compiled for {header.precision} and batches {header.batch}, not for {options.precision} and "
                f"{batch}"
            )
        if reason is not None:
            raise EngineError(f"{failure}: {reason}")
        self._trt = importlib.import_module(self.package)
        self._log = _log(self._trt)
        self._header, self._built = header, built
        self.inputs, self.outputs = header.inputs, header.outputs
        with self._log.explains(failure):
            self._runtime = self._trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise EngineError(f"{failure}: {self._log.take()}")
            self._check_plan(failure)
            self.workspace = int(self._engine.device_memory_size_v2)
            self._loaded(failure)

    def _loaded(self, failure: str) -> None:
        """Set what only this package has, once it is loaded."""

    def _check_plan(self, failure: str) -> None:
        """Raise EngineError unless the plan's tensors and batches are those that the header gives."""
        trt, engine = self._trt, self._engine
        low, _, high = self._header.batch
        found: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            spec = TensorSpec(name, _shape(engine.get_tensor_shape(name)), _dtype(engine.get_tensor_dtype(name)))
            # A plan for one batch may give it as fixed where the graph does not.
            found[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(_free(spec, low, high))
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"{failure}: it wants the tensor {name} in host memory")
        for is_input, said in ((True, self.inputs), (False, self.outputs)):
            if set(found[is_input]) != {_free(tensor, low, high) for tensor in said}:
                raise EngineError(f"{failure}: its plan has {found[is_input]}, but its header says {list(said)}")
        for tensor in self.inputs:
            if tensor.shape[:1] == (None,):
                batch = tuple(shape[0] for shape in engine.get_tensor_profile_shape(tensor.name, 0))
                if batch != self._header.batch:
                    raise EngineError(f"{failure}: its plan takes batches {batch}, but its header says otherwise")

    def context(self, tensors: Mapping[str, DeviceTensor], workspace: int) -> ExecutionContext:
        """See ``CudaEngine``."""
        failure = f"{self.title} could not bind the tensors"
        self._check_tensors(tensors, failure)
        if workspace % _ALIGNMENT or (self.workspace and not workspace):
            raise EngineError(f"{failure}: the workspace's address {workspace:#x} is not aligned to {_ALIGNMENT} bytes")
        with self._log.explains(failure):
            context = self._new_context()
            if context is None or context.active_optimization_profile != 0:
                raise EngineError(f"{failure}: no context can be made: {self._log.take()}")
            if self.workspace:
                context.set_device_memory(workspace, self.workspace)  # returns nothing
            if self._log.heard:
                raise EngineError(f"{failure}: {self._log.take()}")
            for tensor in self.inputs:
                if not context.set_input_shape(tensor.name, tensors[tensor.name].shape):
                    raise EngineError(f"{failure}: the shape of {tensor.name} is refused: {self._log.take()}")
            for name, bound in tensors.items():
                shape = tuple(context.get_tensor_shape(name))  # infer_shapes of 10.3 crashes where it should raise
                if shape != bound.shape:
                    raise EngineError(f"{failure}: {name} has the shape {bound.shape}, but the engine makes {shape}")
                if not context.set_tensor_address(name, bound.address):
                    raise EngineError(f"{failure}: the address of {name} is refused: {self._log.take()}")
        return _Context(context, self)

    def _check_tensors(self, tensors: Mapping[str, DeviceTensor], failure: str) -> None:
        wanted = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        if set(tensors) != set(wanted):
            raise EngineError(f"{failure}: given are {', '.join(tensors)}, but the graph has {', '.join(wanted)}")
        low, _, high = self._header.batch
        batches = set()
        for name, spec in wanted.items():
            given = tensors[name]
            fits = len(given.shape) == len(spec.shape) and given.dtype == spec.dtype
            if not fits or any(n is not None and n != m for n, m in zip(spec.shape, given.shape, strict=True)):
                raise EngineError(
                    f"{failure}: {name} is {given.dtype} {given.shape}, but must be {spec.dtype} {spec.shape}"
                )
            batches |= {m for n, m in zip(spec.shape, given.shape, strict=True) if n is None}
        if len(batches) > 1 or not all(low <= n <= high for n in batches):
            raise EngineError(
                f"{failure}: the batch is {' and '.join(map(str, sorted(batches)))}, but the engine was compiled for "
                f"one of {low} to {high}"
            )

    @abstractmethod
    def _new_context(self) -> Any:
        """A context whose memory is the caller's; None where TensorRT failed."""

    def _ran(self) -> None:
        """Called when a context has run for the first time."""

    def _capturable(self, context: Any, stream: int) -> bool:
        """Whether what a context that has run puts on the stream may be captured."""
        return True

    def close(self) -> None:
        """See ``Engine``."""
        self._engine = self._runtime = None  # in this order


class _Context:
    """An execution context with its shapes and addresses set."""

    def __init__(self, context: Any, engine: _TensorRt) -> None:
        self._context, self._engine, self._has_run = context, engine, False

    def enqueue(self, stream: int) -> None:
        """See ``ExecutionContext``."""
        log, failure = self._engine._log, f"{self._engine.title} could not run"
        with log.explains(failure):
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"{failure}: {log.take()}")
            if not self._has_run:
                self._engine._ran()
                self._has_run = True

    def capturable(self, stream: int) -> bool:
        """See ``ExecutionContext``."""
        return self._engine._capturable(self._context, stream)


@functools.cache
def _log(trt: Any) -> Any:
    """The package's logger: errors are kept for the exception, the rest is dropped.

    There is one for the process: TensorRT keeps the first that it is given, and ignores others.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: deque[str] = deque(maxlen=16)
            self._lock = threading.RLock()  # one call at a time, so that what is heard is its own

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.heard.append(" ".join(message.split()))

        def take(self) -> str:
            """What was said since ``explains`` began, or that it was nothing."""
            return "; ".join(self.heard) or "it gives no reason"

        @contextmanager
        def explains(self, failure: str) -> Iterator[None]:
            """Turn exceptions of the bindings into EngineErrors with TensorRT's own words."""
            with self._lock:
                self.heard.clear()
                try:
                    yield
                except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # of None: what was not made
                    said = f": {self.take()}" if self.heard else ""
                    raise EngineError(f"{failure}: {error}{said}") from error

    return Log()


def _no_device() -> str | None:
    """Why there is no CUDA device for kizu, or None; nothing but the driver is asked."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no CUDA driver: {error}"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"the CUDA driver offers no device (its error {status})"
    if _core.cuda_devices() == 0:
        return "kizu was built without CUDA, or with a newer one than the driver's; install another build, or a driver"
    return None


def _parser_errors(parser: Any) -> str:
    """Every one of the parser's errors: node, operator, reason."""
    reasons = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        reason = f"{_name(error.code())}, {error.desc()}"
        if error.node_operator():
            reason = f"node {error.node_name() or error.node()} ({error.node_operator()}): {reason}"
        reasons.append(reason)
    return "; ".join(reasons) or "its parser gives no reason"


def _shape(dims: Any) -> tuple[int | None, ...]:
    return tuple(None if n < 0 else int(n) for n in dims)


def _free(tensor: TensorSpec, low: int, high: int) -> TensorSpec:
    """The tensor with a batch that is fixed, in the graph or by the batches, as a free one."""
    fixed = low == high and tensor.shape[:1] == (low,)
    return TensorSpec(tensor.name, (None, *tensor.shape[1:]) if fixed else tensor.shape, tensor.dtype)


def _name(value: Any) -> str:
    """The name of an enumeration's member; 10.3's own ``name`` is a method of something else for some of them."""
    return str(value).rpartition(".")[2]


def _dtype(dtype: Any) -> str:
    return _DTYPES.get(_name(dtype), _name(dtype))


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, _shape(tensor.shape), _dtype(tensor.dtype))


def _check_graph(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], failure: str) -> None:
    if not (inputs and outputs):
        raise EngineError(f"{failure}: the graph has {len(inputs)} inputs and {len(outputs)} outputs")
    for tensor in (*inputs, *outputs):
        if None in tensor.shape[1:] or tensor.dtype not in _DTYPES.values():
            raise EngineError(
                f"{failure}: {tensor.name} is {tensor.dtype} {tensor.shape}, but only the batch may be free, and the "
                f"types {', '.join(_DTYPES.values())} can be bound"
            )


def _add_profile(
    builder: Any, config: Any, inputs: tuple[TensorSpec, ...], batch: tuple[int, int, int], failure: str
) -> None:
    """Say which batches the inputs with a free batch will have."""
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        if tensor.shape[:1] == (None,):
            profile.set_shape(tensor.name, *((n, *tensor.shape[1:]) for n in batch))
        elif any(n != tensor.shape[0] for n in batch):
            raise EngineError(
                f"{failure}: the batches are {':'.join(map(str, batch))}, but {tensor.name} is fixed to {tensor.shape}"
            )
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{failure}: the batches {':'.join(map(str, batch))} are refused")


class TensorRt(_TensorRt):
    """TensorRT of JetPack and of CUDA servers; compiles on the device."""

    name: ClassVar[str] = "tensorrt"
    package: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    install: ClassVar[str] = 'JetPack 6.1 or newer brings it; elsewhere: pip install "kizu[tensorrt]"'
    oldest: ClassVar[tuple[int, int]] = (10, 3)
    takes: ClassVar[frozenset[str]] = frozenset({"min_batch", "opt_batch", "workspace", "timing_cache"})

    @classmethod
    def _plan(cls, trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions) -> Any:
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if options.timing_cache is None:
            return builder.build_serialized_network(network, config)
        path = Path(options.timing_cache)
        failure = f"the timing cache {path} cannot be used"
        try:
            timings = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
            if timings is None or not config.set_timing_cache(timings, False):
                raise EngineError(
                    f"{failure}: {_log(trt).take()}; it is damaged, or of another device or version: name another file"
                )
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                engine_file.write_whole(path, memoryview(config.get_timing_cache().serialize()))
        except OSError as error:
            raise EngineError(f"{failure}: {error}") from error
        return plan

    def _new_context(self) -> Any:
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)


class TensorRtRtx(_TensorRt):
    """TensorRT for RTX; compiles for a compute capability anywhere, and has its kernels made at the first run there."""

    name: ClassVar[str] = "tensorrt-rtx"
    package: ClassVar[str] = "tensorrt_rtx"
    title: ClassVar[str] = "TensorRT-RTX"
    install: ClassVar[str] = 'pip install "kizu[tensorrt-rtx]"'
    oldest: ClassVar[tuple[int, int]] = (1, 4)
    # It takes a timing cache and ignores it; a limit on the workspace makes it fail below the weights' size, and does
    # nothing above.
    takes: ClassVar[frozenset[str]] = frozenset({"min_batch", "opt_batch", "compute_capability"})

    @classmethod
    def _no_target(cls, capability: str) -> str | None:
        known = importlib.import_module(cls.package).ComputeCapability.__members__
        if re.fullmatch(r"\d+\.\d", capability) and f"SM{capability.replace('.', '')}" in known:
            return None
        has = [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]
        return (
            f"{cls.title} compiles for compute capability {', '.join(has)}, not for {capability}; for Orin (8.7), "
            "Hopper (9.0), Thor (11.0) and others, tensorrt compiles on the device itself"
        )

    @classmethod
    def _plan(cls, trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions) -> Any:
        capability = options.compute_capability or _core.cuda_device()["compute_capability"]
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0):
            return None
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # a run that allocates cannot be captured
        return builder.build_serialized_network(network, config)

    def _loaded(self, failure: str) -> None:
        trt = self._trt
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # The pipeline captures the frame's graph: all kernels must be there after the first run, and none of its own.
        self._config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._kernels = self._config.create_runtime_cache()
        if self._kernels is None:
            raise EngineError(f"{failure}: no cache of kernels can be made: {self._log.take()}")
        self._kept = b""
        with suppress(OSError):
            data = self._kernels_file().read_bytes()
            if hashlib.sha256(data[32:]).digest() == data[:32] and self._kernels.deserialize(data[32:]):
                self._kept = data[:32]
        if not self._config.set_runtime_cache(self._kernels):
            raise EngineError(f"{failure}: its cache of kernels is refused: {self._log.take()}")

    def _kernels_file(self) -> Path:
        return self._built.with_name(f"{self._built.name}.kernels")

    def _ran(self) -> None:
        """Keep the kernels that the first run made, so that the next start need not make them."""
        data = memoryview(self._kernels.serialize())
        digest = hashlib.sha256(data).digest()
        if digest != self._kept:
            with suppress(OSError):  # a cache that cannot be written is only slower
                engine_file.write_whole(self._kernels_file(), digest, data)
                self._kept = digest

    def _new_context(self) -> Any:
        return self._engine.create_execution_context(self._config)

    def _capturable(self, context: Any, stream: int) -> bool:
        return bool(context.is_stream_capturable(stream))

    def close(self) -> None:
        """See ``Engine``."""
        self._kernels = self._config = None
        super().close()


ENGINES = (TensorRt, TensorRtRtx)
