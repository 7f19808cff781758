"""The CUDA emulator's rules of stream capture, its graphs and host functions, and its controls, called by ctypes."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref

import pytest

from cudart import (
    ACTIVE,
    DEFAULT,
    GLOBAL,
    HOST,
    INVALIDATED,
    MEMCPY,
    MEMSET,
    NON_BLOCKING,
    NONE,
    RELAXED,
    THREAD_LOCAL,
    TO_DEVICE,
    TO_HOST,
    CudaError,
    Cudart,
    HostFunction,
)
from planted import variant

UNSUPPORTED = "cudaErrorStreamCaptureUnsupported"
RESOURCES = ("device_bytes", "pinned_bytes", "streams", "events", "graphs", "graph_execs")


@pytest.fixture(scope="module")
def library() -> str:
    return str(variant("plain") / "libplanted_module.so")


@pytest.fixture
def cuda(library: str) -> Iterator[Cudart]:
    """The runtime; the test must leave nothing behind."""
    cuda = Cudart(library)
    before = {what: cuda.live(what) for what in RESOURCES}
    yield cuda
    cuda.fail_call(0)
    assert {what: cuda.live(what) for what in RESOURCES} == before


@pytest.fixture
def streams(cuda: Cudart) -> Iterator[tuple[ctypes.c_void_p, ctypes.c_void_p]]:
    """Two streams that do not wait for the default stream."""
    made = cuda.stream(), cuda.stream()
    yield made
    for stream in made:
        cuda.check("cudaStreamDestroy", stream)


def discard_capture(cuda: Cudart, stream: ctypes.c_void_p) -> str:
    """Ends a capture; the error of that."""
    graph = ctypes.c_void_p()
    error = cuda.call("cudaStreamEndCapture", stream, byref(graph))
    assert (error == "cudaSuccess") == bool(graph)
    if graph:
        cuda.check("cudaGraphDestroy", graph)
    return error


def elsewhere(work: Callable[[], str]) -> str:
    """Does it on another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


# The programming guide's prohibited operations.

UNSEEN_CALLS = ("cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaFreeHost", "cudaEventQuery", "cudaStreamSynchronize")


@pytest.mark.parametrize("call", UNSEEN_CALLS)
@pytest.mark.parametrize("by_other_thread", [False, True], ids=["own thread", "other thread"])
@pytest.mark.parametrize("thread_mode", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["as global", "as local", "as relaxed"])
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["global", "local", "relaxed"])
def test_calls_that_no_stream_sees(
    cuda: Cudart,
    streams: tuple[ctypes.c_void_p, ctypes.c_void_p],
    mode: int,
    thread_mode: int,
    by_other_thread: bool,
    call: str,
) -> None:
    """As the header says of cudaThreadExchangeStreamCaptureMode."""
    refused = thread_mode != RELAXED and mode != RELAXED
    if by_other_thread:
        refused = thread_mode == GLOBAL and mode == GLOBAL
    event, device, pinned = cuda.event(), cuda.malloc(8), cuda.host_alloc(8)
    made = ctypes.c_void_p()
    arguments = {
        "cudaMalloc": (byref(made), 64),
        "cudaHostAlloc": (byref(made), 64, 0),
        "cudaFree": (device,),
        "cudaFreeHost": (pinned,),
        "cudaEventQuery": (event,),
        "cudaStreamSynchronize": (streams[1],),
    }[call]

    def attempt() -> str:
        exchanged = ctypes.c_int(thread_mode)
        cuda.check("cudaThreadExchangeStreamCaptureMode", byref(exchanged))
        assert exchanged.value == GLOBAL
        error = cuda.call(call, *arguments)
        cuda.check("cudaThreadExchangeStreamCaptureMode", byref(exchanged))
        assert exchanged.value == thread_mode
        return error

    cuda.check("cudaStreamBeginCapture", streams[0], mode)
    try:
        assert (elsewhere(attempt) if by_other_thread else attempt()) == (UNSUPPORTED if refused else "cudaSuccess")
        assert cuda.capture_status(streams[0]) == (INVALIDATED if refused else ACTIVE)
    finally:
        assert discard_capture(cuda, streams[0]) == ("cudaErrorStreamCaptureInvalidated" if refused else "cudaSuccess")
    cuda.check("cudaEventDestroy", event)
    if call == "cudaMalloc" and not refused:
        cuda.check("cudaFree", made)
    if call == "cudaHostAlloc" and not refused:
        cuda.check("cudaFreeHost", made)
    if refused or call != "cudaFree":
        cuda.check("cudaFree", device)
    if refused or call != "cudaFreeHost":
        cuda.check("cudaFreeHost", pinned)


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_the_device_is_not_synchronized_while_any_stream_captures(
    cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p], mode: int
) -> None:
    cuda.check("cudaStreamBeginCapture", streams[0], mode)
    assert elsewhere(lambda: cuda.call("cudaDeviceSynchronize")) == UNSUPPORTED
    assert discard_capture(cuda, streams[0]) == "cudaErrorStreamCaptureInvalidated"
    cuda.check("cudaDeviceSynchronize")


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaStreamQuery"])
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_nobody_waits_for_a_stream_that_captures(
    cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p], mode: int, call: str
) -> None:
    cuda.check("cudaStreamBeginCapture", streams[0], mode)
    assert elsewhere(lambda: cuda.call(call, streams[0])) == UNSUPPORTED
    assert cuda.call(call, streams[0]) == "cudaErrorStreamCaptureInvalidated"
    assert discard_capture(cuda, streams[0]) == "cudaErrorStreamCaptureInvalidated"
    cuda.check(call, streams[0])


def test_the_default_stream_waits_for_no_capture(cuda: Cudart) -> None:
    blocking, device = cuda.stream(DEFAULT), cuda.malloc(64)
    host = (ctypes.c_char * 64)()
    uses: dict[str, Callable[[], str]] = {
        "cudaMemcpy": lambda: cuda.call("cudaMemcpy", device, host, 64, TO_DEVICE),
        "cudaMemset": lambda: cuda.call("cudaMemset", device, 0, 64),
        "cudaMemsetAsync": lambda: cuda.call("cudaMemsetAsync", device, 0, 64, None),
        "cudaStreamSynchronize": lambda: cuda.call("cudaStreamSynchronize", None),
    }
    for name, use in uses.items():
        cuda.check("cudaStreamBeginCapture", blocking, RELAXED)
        status = ctypes.c_int(-1)
        assert cuda.call("cudaStreamIsCapturing", None, byref(status)) == "cudaErrorStreamCaptureImplicit"
        assert cuda.capture_status(blocking) == ACTIVE  # to ask is allowed
        assert elsewhere(use) == "cudaErrorStreamCaptureImplicit", name
        assert discard_capture(cuda, blocking) == "cudaErrorStreamCaptureInvalidated"
        assert use() == "cudaSuccess"
    cuda.check("cudaStreamDestroy", blocking)
    # With a stream that does not wait for the default stream, only the calls that wait are refused, by mode.
    other = cuda.stream(NON_BLOCKING)
    for mode, error in ((RELAXED, "cudaSuccess"), (THREAD_LOCAL, UNSUPPORTED)):
        cuda.check("cudaStreamBeginCapture", other, mode)
        assert uses["cudaMemsetAsync"]() == "cudaSuccess"
        assert uses["cudaMemcpy"]() == error
        discard_capture(cuda, other)
    cuda.check("cudaStreamDestroy", other)
    cuda.check("cudaFree", device)


def test_beginning_and_ending(cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]) -> None:
    main, side = streams
    event = cuda.event()
    assert cuda.call("cudaStreamBeginCapture", None, GLOBAL) == UNSUPPORTED
    assert cuda.call("cudaStreamBeginCapture", main, 3) == "cudaErrorInvalidValue"
    assert discard_capture(cuda, main) == "cudaErrorIllegalState"
    cuda.check("cudaStreamBeginCapture", main, THREAD_LOCAL)
    assert cuda.call("cudaStreamBeginCapture", main, THREAD_LOCAL) == "cudaErrorIllegalState"
    assert elsewhere(lambda: discard_capture(cuda, main)) == "cudaErrorStreamCaptureWrongThread"
    cuda.check("cudaEventRecord", event, main)
    cuda.check("cudaStreamWaitEvent", side, event, 0)  # joins
    assert cuda.capture_status(side) == ACTIVE
    assert discard_capture(cuda, side) == "cudaErrorStreamCaptureUnmatched"
    assert discard_capture(cuda, main) == "cudaSuccess"
    assert [cuda.capture_status(stream) for stream in streams] == [NONE, NONE]
    cuda.check("cudaStreamBeginCapture", main, RELAXED)
    assert elsewhere(lambda: discard_capture(cuda, main)) == "cudaSuccess"
    cuda.check("cudaEventDestroy", event)


def test_captures_stay_apart(cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]) -> None:
    event, third = cuda.event(), cuda.stream()
    for stream in streams:
        cuda.check("cudaStreamBeginCapture", stream, THREAD_LOCAL)
    cuda.check("cudaEventRecord", event, streams[0])
    assert cuda.call("cudaStreamWaitEvent", streams[1], event, 0) == "cudaErrorStreamCaptureMerge"
    assert cuda.call("cudaStreamWaitEvent", third, event, 0) == "cudaErrorStreamCaptureInvalidated"
    for stream in streams:
        assert discard_capture(cuda, stream) == "cudaErrorStreamCaptureInvalidated"

    # An event of a capture that is over stays a captured one, until it is recorded anew.
    for call, arguments in (("cudaEventQuery", (event,)), ("cudaStreamWaitEvent", (third, event, 0))):
        assert cuda.call(call, *arguments) == "cudaErrorCapturedEvent"
    cuda.check("cudaEventRecord", event, third)
    cuda.check("cudaEventSynchronize", event)

    cuda.check("cudaStreamBeginCapture", streams[0], THREAD_LOCAL)
    assert cuda.call("cudaStreamWaitEvent", streams[0], event, 0) == "cudaErrorStreamCaptureIsolation"
    assert discard_capture(cuda, streams[0]) == "cudaErrorStreamCaptureInvalidated"
    cuda.check("cudaEventDestroy", event)
    cuda.check("cudaStreamDestroy", third)


# Graphs


def test_nodes_and_their_order(cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]) -> None:
    main, side = streams
    device, pinned, event = cuda.malloc(64), cuda.host_alloc(64), cuda.event()
    function = HostFunction(lambda _: None)
    cuda.check("cudaStreamBeginCapture", main, THREAD_LOCAL)
    cuda.check("cudaMemsetAsync", device, 1, 64, main)
    cuda.check("cudaEventRecordWithFlags", event, main, 0)
    cuda.check("cudaStreamWaitEvent", side, event, 0)
    cuda.check("cudaMemcpyAsync", pinned, device, 32, TO_HOST, main)
    cuda.check("cudaLaunchHostFunc", side, function, None)
    cuda.check("cudaEventRecord", event, side)
    cuda.check("cudaStreamWaitEvent", main, event, 0)

    status, identity, graph = ctypes.c_int(-1), ctypes.c_ulonglong(), ctypes.c_void_p()
    last, edges, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_void_p(), ctypes.c_size_t()
    info = (byref(status), byref(identity), byref(graph), byref(last), byref(edges), byref(count))
    cuda.check("cudaStreamGetCaptureInfo", main, *info)
    assert (status.value, count.value, ctypes.string_at(edges, 16)) == (ACTIVE, 2, bytes(16))
    assert cuda.call("cudaGraphDestroy", graph) == "cudaErrorInvalidValue"  # not while it is captured
    tail = last[: count.value]

    cuda.check("cudaMemsetAsync", device, 2, 64, main)
    assert cuda.end_capture(main).value == graph.value
    nodes = cuda.nodes(graph)
    assert [cuda.node_type(node) for node in nodes] == [MEMSET, MEMCPY, HOST, MEMSET]
    assert tail == nodes[1:3]
    assert [cuda.dependencies(node) for node in nodes] == [[], nodes[:1], nodes[:1], nodes[1:3]]
    few = (ctypes.c_void_p * 6)()
    for room, filled in ((2, 2), (6, 4)):
        count.value = room
        cuda.check("cudaGraphGetNodes", graph, few, byref(count))
        assert count.value == filled
        assert few[:room] == [*nodes, None, None][:room]

    executable = cuda.instantiate(graph)
    cuda.check("cudaGraphDestroy", graph)
    assert cuda.call("cudaGraphDestroy", graph) == "cudaErrorInvalidValue"
    assert cuda.call("cudaGraphNodeGetType", nodes[0], byref(status)) == "cudaErrorInvalidValue"
    cuda.check("cudaGraphUpload", executable, side)
    cuda.check("cudaGraphLaunch", executable, side)
    cuda.check("cudaStreamSynchronize", side)
    assert ctypes.string_at(pinned, 64) == b"\1" * 32 + b"\xff" * 32
    cuda.check("cudaGraphExecDestroy", executable)
    assert cuda.call("cudaGraphLaunch", executable, side) == "cudaErrorInvalidValue"
    cuda.check("cudaEventDestroy", event)
    cuda.check("cudaFree", device)
    cuda.check("cudaFreeHost", pinned)


def test_a_launch_that_would_be_captured_is_refused(
    cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]
) -> None:
    cuda.check("cudaStreamBeginCapture", streams[0], THREAD_LOCAL)
    executable = cuda.instantiate(graph := cuda.end_capture(streams[0]))
    cuda.check("cudaGraphLaunch", executable, streams[0])  # of a graph without nodes
    cuda.check("cudaStreamBeginCapture", streams[1], THREAD_LOCAL)
    assert cuda.call("cudaGraphLaunch", executable, streams[1]) == "cudaErrorNotSupported"
    assert discard_capture(cuda, streams[1]) == "cudaErrorStreamCaptureInvalidated"
    cuda.check("cudaStreamSynchronize", streams[0])
    cuda.check("cudaGraphExecDestroy", executable)
    cuda.check("cudaGraphDestroy", graph)


def host_function_graph(cuda: Cudart, stream: ctypes.c_void_p, functions: list[object]) -> ctypes.c_void_p:
    """A graph that calls them one after another."""
    cuda.check("cudaStreamBeginCapture", stream, THREAD_LOCAL)
    for function in functions:
        cuda.check("cudaLaunchHostFunc", stream, function, None)
    graph = cuda.end_capture(stream)
    executable = cuda.instantiate(graph)
    cuda.check("cudaGraphDestroy", graph)
    return executable


def test_launches_of_one_graph_follow_each_other_and_of_two_mix(
    cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]
) -> None:
    said: list[str] = []

    def says(what: str) -> object:
        return HostFunction(lambda _: said.append(what))

    functions = {name: [says(name + step) for step in "123"] for name in "ab"}
    graphs = {name: host_function_graph(cuda, streams[0], functions[name]) for name in "ab"}
    for _ in range(10):
        for stream in streams:
            cuda.check("cudaGraphLaunch", graphs["a"], stream)
    assert said == []
    for stream in streams:
        cuda.check("cudaStreamSynchronize", stream)
    assert said == ["a1", "a2", "a3"] * 20

    said.clear()
    for _ in range(10):
        for graph, stream in zip(graphs.values(), streams, strict=True):
            cuda.check("cudaGraphLaunch", graph, stream)
    cuda.check("cudaDeviceSynchronize")
    for name in "ab":
        assert [each for each in said if each[0] == name] == [name + step for step in "123"] * 10
    whole = sum("".join(said).count(name + "1" + name + "2" + name + "3") for name in "ab")
    assert whole < 20  # other launches' steps come between those of some
    for graph in graphs.values():
        cuda.check("cudaGraphExecDestroy", graph)


# Host functions


def test_other_threads_may_call_while_a_host_function_runs(
    cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]
) -> None:
    running, finish = threading.Event(), threading.Event()
    inside: list[bool] = []

    def engine(_: int | None) -> None:
        running.set()
        inside.append(cuda.inside())
        assert finish.wait(60)

    function = HostFunction(engine)
    graph = host_function_graph(cuda, streams[0], [function])
    cuda.check("cudaGraphLaunch", graph, streams[0])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cuda.call, "cudaStreamSynchronize", streams[0])
        assert running.wait(60)
        cuda.check("cudaFreeHost", None)
        assert cuda.call("cudaStreamQuery", streams[0]) == "cudaErrorNotReady"
        second = pool.submit(cuda.call, "cudaStreamSynchronize", streams[0])  # waits for the first
        finish.set()
        assert (first.result(60), second.result(60)) == ("cudaSuccess", "cudaSuccess")
    assert inside == [False]
    cuda.check("cudaGraphExecDestroy", graph)


def test_a_host_function_makes_no_cuda_call(cuda: Cudart, streams: tuple[ctypes.c_void_p, ctypes.c_void_p]) -> None:
    errors: list[str] = []
    made = ctypes.c_void_p()

    def calls(_: int | None) -> None:
        errors.append(cuda.call("cudaMalloc", byref(made), 64))
        errors.append(cuda.call("cudaStreamQuery", streams[1]))
        errors.append(cuda.call("cudaStreamDestroy", streams[1]))

    function = HostFunction(calls)
    cuda.check("cudaLaunchHostFunc", streams[0], function, None)
    cuda.check("cudaStreamSynchronize", streams[0])
    assert errors == ["cudaErrorNotPermitted"] * 3
    assert cuda.call("cudaLaunchHostFunc", streams[0], None, None) == "cudaErrorInvalidValue"


# Memory and the device


def test_pinned_memory_is_mapped(cuda: Cudart) -> None:
    for flags in (0, 2, 7):
        pinned = cuda.host_alloc(100, flags)
        device, found = ctypes.c_void_p(), ctypes.c_uint(99)
        cuda.check("cudaHostGetDevicePointer", byref(device), pinned, 0)
        cuda.check("cudaHostGetFlags", byref(found), pinned)
        assert (device.value, found.value) == (pinned.value, flags)
        cuda.check("cudaFreeHost", pinned)
        assert cuda.call("cudaHostGetDevicePointer", byref(device), pinned, 0) == "cudaErrorInvalidValue"
    with pytest.raises(CudaError, match="cudaErrorInvalidValue"):
        cuda.host_alloc(100, 8)


def test_device_memory_is_finite(cuda: Cudart) -> None:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    device = cuda.malloc(1 << 20)
    cuda.check("cudaMemGetInfo", byref(free), byref(total))
    assert total.value - free.value == cuda.live("device_bytes") >= 1 << 20
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
        cuda.malloc(free.value + 1)
    cuda.check("cudaFree", device)


PROPERTIES = """
import ctypes, sys
from cudart import Cudart
cuda = Cudart(sys.argv[1])
properties, integrated = ctypes.create_string_buffer(4096), ctypes.c_int(-1)
cuda.check("cudaGetDeviceProperties", properties, 0)
cuda.check("cudaDeviceGetAttribute", ctypes.byref(integrated), 18, 0)
print(properties.value.decode(), integrated.value)
"""


@pytest.mark.parametrize(("setting", "integrated"), [("", 0), ("0", 0), ("1", 1)])
def test_the_device_may_share_the_hosts_memory(
    library: str, monkeypatch: pytest.MonkeyPatch, setting: str, integrated: int
) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_INTEGRATED", setting)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run([sys.executable, "-c", PROPERTIES, library], capture_output=True, text=True)
    assert done.stdout.strip() == f"cuda_on_cpu {integrated}", done.stderr


# Controls


def small_program(cuda: Cudart) -> tuple[bytes, list[str]]:
    """Makes everything there is, copies through a graph, and takes all down; the copy, and the errors of all calls."""
    errors: list[str] = []

    def call(name: str, *arguments: object) -> None:
        errors.append(cuda.call(name, *arguments))

    stream, event, device, pinned = (ctypes.c_void_p() for _ in range(4))
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    call("cudaStreamCreateWithFlags", byref(stream), NON_BLOCKING)
    call("cudaEventCreateWithFlags", byref(event), 2)
    call("cudaMalloc", byref(device), 4)
    call("cudaMallocHost", byref(pinned), 4)
    got = b""
    if stream and event and device and pinned:
        ctypes.memmove(pinned, b"abcd", 4)
        call("cudaStreamBeginCapture", stream, THREAD_LOCAL)
        if errors[-1] == "cudaSuccess":
            call("cudaMemcpyAsync", device, pinned, 4, TO_DEVICE, stream)
            call("cudaMemsetAsync", device, ord("z"), 1, stream)
            call("cudaMemcpyAsync", pinned, device, 4, TO_HOST, stream)
            call("cudaStreamEndCapture", stream, byref(graph))
        if graph:
            call("cudaGraphInstantiate", byref(executable), graph, 0)
        if executable:
            call("cudaGraphLaunch", executable, stream)
            call("cudaEventRecord", event, stream)
            call("cudaEventSynchronize", event)
        call("cudaStreamSynchronize", stream)
        got = ctypes.string_at(pinned, 4)
    if executable:
        call("cudaGraphExecDestroy", executable)
    if graph:
        call("cudaGraphDestroy", graph)
    call("cudaFree", device)
    call("cudaFreeHost", pinned)
    if event:
        call("cudaEventDestroy", event)
    if stream:
        call("cudaStreamDestroy", stream)
    return got, errors


def test_each_call_can_fail_and_nothing_is_left(cuda: Cudart) -> None:
    cuda.reset_calls()
    got, errors = small_program(cuda)
    assert (got, set(errors)) == (b"zbcd", {"cudaSuccess"})
    assert cuda.calls() == len(errors) == 20
    assert cuda.calls("cudaMemcpyAsync") == 2
    assert cuda.calls("cudaGraphLaunch") == 1
    assert cuda.calls("cudaMemcpy") == 0
    for n in range(1, len(errors) + 1):
        cuda.fail_call(n, 700)
        _, errors = small_program(cuda)
        assert errors[n - 1] == "cudaErrorIllegalAddress"
        assert [error for error in errors if error != "cudaSuccess"] == ["cudaErrorIllegalAddress"]
        assert cuda.library.cudaGetLastError() == 700
        assert cuda.library.cudaGetLastError() == 0


def test_a_lost_device_still_takes_everything_down(cuda: Cudart) -> None:
    for n in range(1, 21):
        cuda.fail_call(n, 719, sticky=True)
        _, errors = small_program(cuda)
        assert errors[: n - 1] == ["cudaSuccess"] * (n - 1)
        assert set(errors[n - 1 :]) == {"cudaErrorLaunchFailure"}
    cuda.fail_call(0)
    assert small_program(cuda)[0] == b"zbcd"
    assert cuda.library.cudaGetLastError() == 719


def test_what_lives_is_counted(cuda: Cudart) -> None:
    before = {what: cuda.live(what) for what in (*RESOURCES, "device_allocations", "pinned_allocations")}
    device, pinned, event = cuda.malloc(100), cuda.host_alloc(10), cuda.event()
    grown = {what: cuda.live(what) - count for what, count in before.items()}
    assert grown == {
        **dict.fromkeys(before, 0),
        "device_bytes": 100,
        "device_allocations": 1,
        "pinned_bytes": 10,
        "pinned_allocations": 1,
        "events": 1,
    }
    assert cuda.live("nonsense") == -1
    assert not cuda.inside()
    cuda.check("cudaEventDestroy", event)
    assert cuda.call("cudaEventDestroy", event) == "cudaErrorInvalidResourceHandle"
    cuda.check("cudaFree", device)
    cuda.check("cudaFreeHost", pinned)


def test_a_failing_call_does_nothing(cuda: Cudart) -> None:
    stream, event = cuda.stream(), cuda.event()
    said: list[int] = []
    function = HostFunction(lambda _: said.append(1))
    cuda.check("cudaLaunchHostFunc", stream, function, None)
    cuda.fail_call(1, 700)
    assert cuda.call("cudaStreamSynchronize", stream) == "cudaErrorIllegalAddress"
    assert said == []
    cuda.check("cudaStreamSynchronize", stream)
    assert said == [1]
    cuda.fail_call(2, 2)
    cuda.check("cudaEventRecord", event, stream)
    made = ctypes.c_void_p(99)
    assert cuda.call("cudaMalloc", byref(made), 10) == "cudaErrorMemoryAllocation"
    assert made.value == 99
    cuda.check("cudaEventSynchronize", event)
    cuda.check("cudaEventDestroy", event)
    cuda.check("cudaStreamDestroy", stream)
