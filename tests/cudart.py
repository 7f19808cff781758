"""CUDA's runtime and the emulator's controls by ctypes, from the shared library that the emulator is linked into.

The controls are those of cuda_on_cpu/emulator/control.h. Errors are given by name, ``"cudaSuccess"`` among them.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

DEFAULT, NON_BLOCKING = 0, 1  # flags of a stream
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # modes of a capture
NONE, ACTIVE, INVALIDATED = 0, 1, 2  # states of a capture
TO_DEVICE, TO_HOST = 1, 2  # directions of a copy
KERNEL, MEMCPY, MEMSET, HOST = 0, 1, 2, 3  # types of a graph's node

# By what names CUDA 12 has the calls as they are here.
IN_CUDA_12 = {
    "cudaGetDeviceProperties": "cudaGetDeviceProperties_v2",
    "cudaGraphNodeGetDependencies": "cudaGraphNodeGetDependencies_v2",
    "cudaStreamGetCaptureInfo": "cudaStreamGetCaptureInfo_v3",
}

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class CudaError(RuntimeError):
    """A call that should have succeeded."""


class Cudart:
    """Every call of the runtime is ``call`` or ``check``; what gives a handle or an address has a method."""

    def __init__(self, library: Path | str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.cudaGetErrorName.restype = ctypes.c_char_p
        self.library.cuda_on_cpu_calls.restype = ctypes.c_ulonglong
        self.library.cuda_on_cpu_live.restype = ctypes.c_longlong
        self.library.cuda_on_cpu_failed_call.restype = ctypes.c_char_p
        version = ctypes.c_int()
        self.library.cudaRuntimeGetVersion(ctypes.byref(version))
        self._names = IN_CUDA_12 if version.value < 13000 else {}

    def call(self, name: str, *arguments: Any) -> str:
        """The error's name. Integers are passed as 64 bits."""
        wide = [ctypes.c_longlong(a) if isinstance(a, int) else a for a in arguments]
        error: bytes = self.library.cudaGetErrorName(self.library[self._names.get(name, name)](*wide))
        return error.decode()

    def check(self, name: str, *arguments: Any) -> None:
        error = self.call(name, *arguments)
        if error != "cudaSuccess":
            raise CudaError(f"{name}: {error}")

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.check(name, ctypes.byref(made), *arguments)
        return made

    def malloc(self, size: int) -> ctypes.c_void_p:
        return self._made("cudaMalloc", size)

    def host_alloc(self, size: int, flags: int = 0) -> ctypes.c_void_p:
        return self._made("cudaHostAlloc", size, flags)

    def stream(self, flags: int = NON_BLOCKING) -> ctypes.c_void_p:
        return self._made("cudaStreamCreateWithFlags", flags)

    def event(self) -> ctypes.c_void_p:
        return self._made("cudaEventCreateWithFlags", 2)  # without times

    def instantiate(self, graph: ctypes.c_void_p) -> ctypes.c_void_p:
        return self._made("cudaGraphInstantiate", graph, 0)

    def end_capture(self, stream: ctypes.c_void_p) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        self.check("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def capture_status(self, stream: ctypes.c_void_p) -> int:
        status = ctypes.c_int(-1)
        self.check("cudaStreamIsCapturing", stream, ctypes.byref(status))
        return status.value

    def nodes(self, graph: ctypes.c_void_p) -> list[int]:
        count = ctypes.c_size_t()
        self.check("cudaGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * max(count.value, 1))()
        self.check("cudaGraphGetNodes", graph, nodes, ctypes.byref(count))
        return [int(node or 0) for node in nodes[: count.value]]

    def node_type(self, node: int) -> int:
        kind = ctypes.c_int(-1)
        self.check("cudaGraphNodeGetType", node, ctypes.byref(kind))
        return kind.value

    def dependencies(self, node: int) -> list[int]:
        count = ctypes.c_size_t()
        self.check("cudaGraphNodeGetDependencies", node, None, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * max(count.value, 1))()
        self.check("cudaGraphNodeGetDependencies", node, nodes, None, ctypes.byref(count))
        return [int(each or 0) for each in nodes[: count.value]]

    # The controls

    def fail_call(self, n: int, error: int = 0, *, sticky: bool = False) -> None:
        self.library.cuda_on_cpu_fail_call(ctypes.c_ulonglong(n), error, int(sticky))

    def failed_call(self) -> str:
        """The name of the call that failed first since ``fail_call``, or nothing."""
        name: bytes = self.library.cuda_on_cpu_failed_call()
        return name.decode()

    def calls(self, name: str | None = None) -> int:
        return int(self.library.cuda_on_cpu_calls(name.encode() if name else None))

    def reset_calls(self) -> None:
        self.library.cuda_on_cpu_reset_calls()

    def live(self, what: str) -> int:
        return int(self.library.cuda_on_cpu_live(what.encode()))

    def inside(self) -> bool:
        return bool(self.library.cuda_on_cpu_inside())
