"""TensorRT's real Python bindings on a library without TensorRT (stub.c): which functions are called, with what.

Run in a process of its own, with the library found under the names that the bindings ask for. ``Stub`` learns which
slot of an object's functions a name of the bindings calls, by calling it; then it answers for the library.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_int, *[ctypes.c_ssize_t] * 3, ctypes.POINTER(ctypes.c_ssize_t)
)
LIBRARY = {0: "builder", 1: "runtime", 2: "parser"}


class _Dims(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8)]


def text(address: int) -> str:
    """An argument that is a string."""
    return ctypes.string_at(address).decode()


def dims(address: int) -> tuple[int, ...]:
    """An argument that is a shape."""
    found = ctypes.cast(address, ctypes.POINTER(_Dims)).contents
    return tuple(found.sizes[: found.count])


class Stub:
    """The library: objects by kind, answers by "kind.function", and the calls so far.

    An answer is an integer, a string, a tuple (a shape), the name of a kind (an object), or a function of the call's
    arguments that returns one of these.
    """

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.stub_object.restype = ctypes.c_ssize_t
        self._handler = _HANDLER(self._answer)  # the library keeps its address
        self._kinds: dict[int, str] = {}
        self._names: dict[tuple[str, int], str] = {}
        self._texts: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self._library.stub_start(self._handler)

    def object(self, kind: str) -> int:
        """The address of a kind's object."""
        if kind not in self._kinds.values():
            self._kinds[len(self._kinds)] = kind
        (index,) = (i for i, k in self._kinds.items() if k == kind)
        return int(self._library.stub_object(index))

    def _answer(self, index: int, slot: int, a: int, b: int, c: int, structure: Any) -> int:
        kind = self._kinds.get(index, "library")
        if slot < 2 and kind not in ("library", "parser", "error"):  # these have theirs elsewhere
            return 0  # a destructor
        name = LIBRARY.get(slot, str(slot)) if kind == "library" else self._names.get((kind, slot), str(slot))
        self.calls.append((f"{kind}.{name}", (a, b, c)))
        answer = self.answers.get(f"{kind}.{name}", 0)
        if callable(answer):
            answer = answer(a, b, c)
        if isinstance(answer, tuple):
            shape = ctypes.cast(structure, ctypes.POINTER(_Dims)).contents
            shape.count = len(answer)
            shape.sizes[: len(answer)] = answer
            return 0
        if isinstance(answer, str) and answer.startswith("->"):
            return self.object(answer[2:])
        if isinstance(answer, str):
            kept = self._texts.setdefault(answer, ctypes.create_string_buffer(answer.encode()))
            return ctypes.addressof(kept)
        return int(answer)

    def learn(self, name: str, call: Callable[[], Any], answer: Any = 0) -> Any:
        """Call a function of the bindings; what it calls of the object's is ``name`` from now on, and has an answer.

        Where it calls several, it is the first that has no name yet.
        """
        kind, _, function = name.partition(".")
        start = len(self.calls)
        with suppress(TypeError, ValueError, RuntimeError):  # for want of an answer
            call()
        new = [n for n, _ in self.calls[start:] if n.startswith(f"{kind}.") and n.split(".")[1].isdigit()]
        assert new, f"{name} has called {self.calls[start:]}"
        self._names[kind, int(new[0].split(".")[1])] = function
        self.answers[name] = answer
        return call() if answer else None

    @contextmanager
    def answering(self, **answers: Any) -> Iterator[None]:
        """Other answers for a while; a name's dot is written ``__``."""
        before = dict(self.answers)
        self.answers.update({name.replace("__", "."): answer for name, answer in answers.items()})
        try:
            yield
        finally:
            self.answers = before


def load(module: str, library: Path) -> tuple[Any, Stub]:
    """The bindings under the package's name, and the library below them, with all functions learnt that kizu calls."""
    package = module.removesuffix("_bindings")
    sys.modules[f"{package}_libs"] = None  # type: ignore[assignment]
    stub = Stub(str(library))
    trt = importlib.import_module(module)
    sys.modules[package] = trt
    _learn(trt, stub)
    stub.calls.clear()
    return trt, stub


PLAN = b"a plan " * 300
IO = {"x": ((-1, 5, 32, 32), 0), "logit": ((-1,), 1)}  # shape, and 0 for an input
BATCH = (1, 2, 4)


def _learn(trt: Any, stub: Stub) -> None:
    """The functions of TensorRT's objects that kizu calls, and a network with an input x and an output logit."""
    rtx = hasattr(trt, "ComputeCapability")
    stub.answers.update({f"library.{kind}": f"->{kind}" for kind in LIBRARY.values()})
    log = trt.Logger()
    builder = trt.Builder(log)

    def number(value: int) -> None:
        builder.max_threads = value

    stub.learn("builder.set_max_threads", lambda: number(2), 1)
    network = stub.learn("builder.create_network", lambda: builder.create_network(0), "->network")
    config = stub.learn("builder.create_builder_config", builder.create_builder_config, "->config")
    profile = stub.learn("builder.create_optimization_profile", builder.create_optimization_profile, "->profile")
    memory = stub.learn(
        "builder.build_serialized_network", lambda: builder.build_serialized_network(network, config), "->memory"
    )
    stub.learn("memory.type", lambda: memory.dtype, int(trt.DataType.INT8))
    stub.learn("memory.size", lambda: memory.nbytes, len(PLAN))
    stub.plan = ctypes.create_string_buffer(PLAN, len(PLAN))  # type: ignore[attr-defined]
    stub.learn("memory.data", lambda: memoryview(memory), ctypes.addressof(stub.plan))  # type: ignore[attr-defined]
    assert bytes(memoryview(memory)) == PLAN

    _learn_tensor(trt, stub, network, "input", "x")
    _learn_tensor(trt, stub, network, "output", "logit")

    shapes = [(n, *IO["x"][0][1:]) for n in BATCH]
    stub.learn("profile.set_shape", lambda: profile.set_shape("x", *shapes), 1)
    profile.set_shape("x", *shapes)
    stub.learn("config.clear_flag", lambda: config.clear_flag(trt.BuilderFlag.TF32))
    stub.learn("config.set_flag", lambda: config.set_flag(trt.BuilderFlag.REFIT))
    stub.learn("config.set_memory_pool_limit", lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1), 1)
    stub.learn("config.add_optimization_profile", lambda: config.add_optimization_profile(profile))
    if rtx:

        def capabilities() -> None:
            config.num_compute_capabilities = 1

        stub.learn("config.num_compute_capabilities", capabilities, 1)
        stub.learn(
            "config.set_compute_capability", lambda: config.set_compute_capability(trt.ComputeCapability.SM86, 0), 1
        )
    else:
        cache = stub.learn("config.create_timing_cache", lambda: config.create_timing_cache(b""), "->cache")
        stub.learn("config.set_timing_cache", lambda: config.set_timing_cache(cache, False), 1)
        stub.learn("config.get_timing_cache", config.get_timing_cache, "->cache")
        stub.learn("cache.serialize", cache.serialize, "->memory")

    parser = trt.OnnxParser(network, log)
    stub.learn("parser.parse", lambda: parser.parse(b"onnx"), 1)
    stub.learn("parser.num_errors", lambda: parser.num_errors)
    error = stub.learn("parser.get_error", lambda: parser.get_error(0), "->error")
    for name, answer in (
        ("code", 8),
        ("desc", "cannot"),
        ("node", 3),
        ("node_name", "conv"),
        ("node_operator", "Conv"),
    ):
        stub.learn(f"error.{name}", getattr(error, name), answer)

    runtime = trt.Runtime(log)
    engine = stub.learn("runtime.deserialize_cuda_engine", lambda: runtime.deserialize_cuda_engine(PLAN), "->engine")
    names = list(IO)
    stub.learn("engine.num_io_tensors", lambda: engine.num_io_tensors, 2)
    stub.learn("engine.get_tensor_name", lambda: engine.get_tensor_name(0), lambda i, *_: names[i])
    stub.learn("engine.get_tensor_mode", lambda: engine.get_tensor_mode("x"), lambda name, *_: 1 + IO[text(name)][1])
    stub.learn("engine.get_tensor_shape", lambda: engine.get_tensor_shape("x"), lambda name, *_: IO[text(name)][0])
    stub.learn("engine.get_tensor_dtype", lambda: engine.get_tensor_dtype("x"))
    stub.learn("engine.get_tensor_location", lambda: engine.get_tensor_location("x"))
    stub.learn(
        "engine.get_tensor_profile_shape",
        lambda: engine.get_tensor_profile_shape("x", 0),
        lambda name, profile, which: (BATCH[which], *IO[text(name)][0][1:]),
    )
    stub.learn("engine.device_memory_size_v2", lambda: engine.device_memory_size_v2, 4096)
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if rtx:
        options = stub.learn("engine.create_runtime_config", engine.create_runtime_config, "->options")

        def specialise() -> None:
            options.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER

        def no_graphs() -> None:
            options.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

        stub.learn(
            "options.set_execution_context_allocation_strategy",
            lambda: options.set_execution_context_allocation_strategy(strategy),
        )
        stub.learn("options.dynamic_shapes_kernel_specialization_strategy", specialise, 1)
        stub.learn("options.cuda_graph_strategy", no_graphs, 1)
        kernels = stub.learn("options.create_runtime_cache", options.create_runtime_cache, "->kernels")
        stub.learn("options.set_runtime_cache", lambda: options.set_runtime_cache(kernels), 1)
        stub.learn("kernels.serialize", kernels.serialize, "->memory")
        stub.learn("kernels.deserialize", lambda: kernels.deserialize(b"kernels"), 1)
        context = stub.learn(
            "engine.create_execution_context", lambda: engine.create_execution_context(options), "->context"
        )
        stub.learn("context.is_stream_capturable", lambda: context.is_stream_capturable(5), 1)
    else:
        context = stub.learn(
            "engine.create_execution_context", lambda: engine.create_execution_context(strategy), "->context"
        )
        assert not hasattr(context, "is_stream_capturable")
    stub.learn("context.active_optimization_profile", lambda: context.active_optimization_profile)
    stub.learn("context.set_device_memory", lambda: context.set_device_memory(4096, 4096))
    stub.learn("context.set_input_shape", lambda: context.set_input_shape("x", (1, 5, 32, 32)), 1)
    stub.learn("context.get_tensor_shape", lambda: context.get_tensor_shape("x"), (2, 5, 32, 32))
    stub.learn("context.set_tensor_address", lambda: context.set_tensor_address("x", 4096), 1)
    stub.learn("context.execute_async_v3", lambda: context.execute_async_v3(5), 1)


def _learn_tensor(trt: Any, stub: Stub, network: Any, side: str, name: str) -> None:
    stub.learn(f"network.num_{side}s", lambda: getattr(network, f"num_{side}s"), 1)
    tensor = stub.learn(f"network.get_{side}", lambda: getattr(network, f"get_{side}")(0), f"->{name}")
    stub.learn(f"{name}.name", lambda: tensor.name, name)
    stub.learn(f"{name}.shape", lambda: tensor.shape, IO[name][0])
    stub.learn(f"{name}.dtype", lambda: tensor.dtype)
    assert (tensor.name, tuple(tensor.shape), tensor.dtype) == (name, IO[name][0], trt.DataType.FLOAT)
