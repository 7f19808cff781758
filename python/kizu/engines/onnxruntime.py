"""ONNX Runtime on the CPU: the portable fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kizu.engine import BuildOptions, CpuEngine, Runner, TensorSpec, missing
from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kizu.engine import Buffers

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxRuntime(CpuEngine):
    """An ONNX Runtime session on the CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"
    install: ClassVar[str] = 'pip install "kizu[onnxruntime]"'
    variants: ClassVar[Mapping[str, str]] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
    # It computes in int8 only where what a convolution writes is int8 again, and has no int8 kernel for transposed
    # convolutions. BiGAN's score graph at 256x256, batch 1, one thread, AVX512-VNNI: in fp32 147 ms, in the plain int8
    # form 200, in this one 48. Graphs without transposed convolutions do not have it: ALGAN-image's took 27 ms for 96
    # in fp32, but was off by 0.30 standard deviations on one of 3,300 images, and 0.25 are allowed.
    preferred: ClassVar[Mapping[str, str]] = {"int8": "int8-full"}

    @staticmethod
    def unavailable() -> str | None:
        """Why ONNX Runtime cannot be used here, or None."""
        return missing("onnxruntime", OnnxRuntime.install)

    @staticmethod
    def version() -> str:
        """Version of the installed ONNX Runtime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    @staticmethod
    def unsupported(precision: str) -> str | None:
        """Why ``precision`` cannot be run, or None; the CPU provider computes fp16 graphs between casts."""
        if precision not in OnnxRuntime.variants:
            return f"ONNX Runtime runs {', '.join(OnnxRuntime.variants)} on a CPU"
        return None

    @staticmethod
    def build(graph: Path, out: Path, options: BuildOptions) -> None:
        """Optimise the graph for this machine and write it as ONNX."""
        settings = _settings(options)
        settings.optimized_model_filepath = str(out)
        _session(graph, settings, f"could not compile {graph.name} for {options.precision}")

    def __init__(self, built: Path, options: BuildOptions) -> None:
        import onnxruntime

        settings = _settings(options)
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done by build
        self._session = _session(built, settings, f"could not load the compiled engine {built}")
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def bind(self, inputs: Buffers, outputs: Buffers) -> Runner:
        """Bind arrays by address, without copies."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return _Runner(self._session, binding, (inputs, outputs))

    def close(self) -> None:
        """Release the session."""
        self._session = None


class _Runner:
    def __init__(self, session: Any, binding: Any, buffers: object) -> None:
        self._session, self._binding = session, binding
        self._buffers = buffers  # the binding keeps addresses; this keeps the arrays alive

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def _settings(options: BuildOptions) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # that an optimised model fits this machine only is what we want
    return settings


def _session(path: Path, settings: Any, failure: str) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise EngineError(f"ONNX Runtime {failure}: {error}") from error


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, shape, _DTYPES.get(value.type, value.type))


ENGINES = (OnnxRuntime,)
