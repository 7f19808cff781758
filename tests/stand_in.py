"""A stand-in for an engine on a CUDA device: a host-function node that computes the same ONNX graph on the processor.

Its context puts three things on the stream: a copy of the input to pinned memory, a host function and copies of the
outputs back. The host function is OpenVINO's own C function that runs an inference request, so that neither Python nor
CUDA is called from it, and native code alone can launch a graph that it was captured into. CUDA's functions come from
the emulated extension where there is one, else from the driver: a real GPU runs the stand-in, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kizu import _core
from kizu.engine import BuildOptions, CudaEngine, DeviceTensor, ExecutionContext, TensorSpec, missing
from kizu.engine_file import Header
from kizu.errors import EngineError

_ELEMENTS = {"float16": 3, "float32": 4}  # ov_element_type_e


class Cuda:
    """The few functions of CUDA that the stand-in and its tests call themselves."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(_core.__file__))
        self.emulated = hasattr(library, "cudaLaunchHostFunc")
        self.library = library if self.emulated else ctypes.CDLL("libcuda.so.1")

    def call(self, runtime: str, driver: str, *arguments: Any) -> None:
        """A function by its name in the emulated runtime and in the driver, whose arguments here are the same."""
        name = runtime if self.emulated else driver
        status = getattr(self.library, name)(*arguments)
        if status:
            raise EngineError(f"{name} returned {status}")

    def pinned(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        arguments = (ctypes.byref(pointer), ctypes.c_size_t(size), ctypes.c_uint(0))
        self.call("cudaHostAlloc", "cuMemHostAlloc", *arguments)
        assert pointer.value is not None
        return pointer.value

    def free_pinned(self, pointer: int) -> None:
        self.call("cudaFreeHost", "cuMemFreeHost", ctypes.c_void_p(pointer))

    def device(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        assert pointer.value is not None
        return pointer.value

    def free_device(self, pointer: int) -> None:
        self.call("cudaFree", "cuMemFree_v2", ctypes.c_void_p(pointer))

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        self.call("cudaStreamCreateWithFlags", "cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(1))
        assert handle.value is not None
        return handle.value

    def destroy_stream(self, stream: int) -> None:
        self.call("cudaStreamDestroy", "cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size)
        if self.emulated:
            status = self.library.cudaMemcpyAsync(*pointers, ctypes.c_int(4), ctypes.c_void_p(stream))
        else:
            status = self.library.cuMemcpyAsync(*pointers, ctypes.c_void_p(stream))
        if status:
            raise EngineError(f"a copy returned {status}")

    def synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", "cuStreamSynchronize", ctypes.c_void_p(stream))

    def host_function(self, stream: int, function: int, argument: int) -> None:
        arguments = ctypes.c_void_p(stream), ctypes.c_void_p(function), ctypes.c_void_p(argument)
        self.call("cudaLaunchHostFunc", "cuLaunchHostFunc", *arguments)


class _Shape(ctypes.Structure):
    _fields_ = (("rank", ctypes.c_int64), ("dims", ctypes.POINTER(ctypes.c_int64)))


class _Property(ctypes.Structure):
    _fields_ = (("key", ctypes.c_char_p), ("value", ctypes.c_char_p))


class _OpenVino:
    """OpenVINO's C functions, each checked."""

    def __init__(self) -> None:
        import openvino

        (path,) = (Path(openvino.__file__).parent / "libs").glob("libopenvino_c.so.*")
        self._library = ctypes.CDLL(str(path))

    def address(self, name: str) -> int:
        value = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
        assert value is not None
        return value

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise EngineError(f"{name} returned {status}")

    def free(self, name: str, pointer: ctypes.c_void_p) -> None:
        getattr(self._library, name)(pointer)


class StandIn(CudaEngine):
    """OpenVINO in fp32 behind the contract of an engine on a CUDA device."""

    name: ClassVar[str] = "stand-in"
    package: ClassVar[str] = "openvino"
    install: ClassVar[str] = 'pip install "kizu[cpu]"'
    variants: ClassVar[Mapping[str, str]] = {"fp32": "fp32", "int8": "int8"}
    takes: ClassVar[frozenset[str]] = frozenset({"opt_batch"})

    @staticmethod
    def unavailable() -> str | None:
        return missing("openvino", StandIn.install)

    @staticmethod
    def version() -> str:
        return "1"

    @staticmethod
    def unsupported(precision: str) -> str | None:
        return None if precision in StandIn.variants else "the stand-in runs fp32 and int8"

    @classmethod
    def cannot_load(cls, header: Header) -> str | None:
        return "it has no engine files"

    @staticmethod
    def build(graph: Path, out: Path, options: BuildOptions) -> None:
        shutil.copyfile(graph, out)

    def __init__(self, built: Path, options: BuildOptions) -> None:
        import openvino

        model = openvino.Core().read_model(str(built))
        self.inputs = tuple(_spec(port) for port in model.inputs)
        self.outputs = tuple(_spec(port) for port in model.outputs)
        self.workspace = 4096
        self._openvino = _OpenVino()
        self._core, self.model = ctypes.c_void_p(), ctypes.c_void_p()
        self._openvino("ov_core_create", ctypes.byref(self._core))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(options.threads),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
        }
        properties = (_Property * len(settings))(*(_Property(k.encode(), v.encode()) for k, v in settings.items()))
        self._openvino(
            "ov_core_compile_model_from_file_props", self._core, str(built).encode(), b"CPU",
            ctypes.c_size_t(len(settings)), properties, ctypes.byref(self.model),
        )  # fmt: skip
        self.contexts: list[_Context] = []

    def context(self, tensors: Mapping[str, DeviceTensor], workspace: int) -> ExecutionContext:
        assert workspace % 256 == 0
        made = _Context(self, self._openvino, tensors)
        self.contexts.append(made)
        return made

    def close(self) -> None:
        if self.model:
            self._openvino.free("ov_compiled_model_free", self.model)
            self._openvino.free("ov_core_free", self._core)
            self.model = ctypes.c_void_p()
        self.contexts.clear()


class _Context:
    def __init__(self, engine: StandIn, openvino: _OpenVino, tensors: Mapping[str, DeviceTensor]) -> None:
        self.cuda, self._openvino = Cuda(), openvino
        self.enqueued = 0
        self._request = ctypes.c_void_p()
        self._host: dict[str, int] = {}
        self._made: list[ctypes.c_void_p] = []
        openvino("ov_compiled_model_create_infer_request", engine.model, ctypes.byref(self._request))
        inputs = {spec.name for spec in engine.inputs}
        self._copies: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}  # of inputs, of outputs
        for name, tensor in tensors.items():
            size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            self._host[name] = host = self.cuda.pinned(size)
            shape = _Shape(len(tensor.shape), (ctypes.c_int64 * len(tensor.shape))(*tensor.shape))
            view = ctypes.c_void_p()
            openvino(
                "ov_tensor_create_from_host_ptr", ctypes.c_int(_ELEMENTS[tensor.dtype]), shape, ctypes.c_void_p(host),
                ctypes.byref(view),
            )  # fmt: skip
            self._made.append(view)
            openvino("ov_infer_request_set_tensor", self._request, name.encode(), view)
            to = (host, tensor.address) if name in inputs else (tensor.address, host)
            self._copies[name in inputs].append((*to, size))

    def enqueue(self, stream: int) -> None:
        self.enqueued += 1
        for copy in self._copies[True]:
            self.cuda.copy(*copy, stream)
        assert self._request.value is not None
        self.cuda.host_function(stream, self._openvino.address("ov_infer_request_infer"), self._request.value)
        for copy in self._copies[False]:
            self.cuda.copy(*copy, stream)

    def capturable(self, stream: int) -> bool:
        return True

    def __del__(self) -> None:
        self._openvino.free("ov_infer_request_free", self._request)
        for view in self._made:
            self._openvino.free("ov_tensor_free", view)
        for pointer in self._host.values():
            with contextlib.suppress(EngineError):
                self.cuda.free_pinned(pointer)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if d.is_dynamic else int(d.get_length()) for d in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, str(port.get_element_type().to_dtype()))
