"""OpenVINO: the embedded default on CPUs."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import TYPE_CHECKING, Any, ClassVar

from kizu.engine import BuildOptions, CpuEngine, Runner, TensorSpec, missing
from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kizu.engine import Buffers

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


@functools.cache
def _core() -> Any:
    """One core for all engines of the process: they share its plugins and threads."""
    import openvino

    return openvino.Core()


def _properties(options: BuildOptions) -> dict[str, Any]:
    return {
        # Without it the CPU plugin silently computes in bf16 or f16 where the processor has it.
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Several detectors on one machine must not pin their threads to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


class OpenVino(CpuEngine):
    """A model compiled by OpenVINO's CPU plugin, with a dynamic batch."""

    name: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"
    install: ClassVar[str] = 'pip install "kizu[cpu]"'
    variants: ClassVar[Mapping[str, str]] = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp32", "int8": "int8"}

    @staticmethod
    def unavailable() -> str | None:
        """Why OpenVINO cannot be used here, or None."""
        return missing("openvino", OpenVino.install)

    @staticmethod
    def version() -> str:
        """Version of the installed OpenVINO."""
        return importlib.metadata.version("openvino")

    @staticmethod
    def unsupported(precision: str) -> str | None:
        """Why this processor cannot compute in ``precision`` with OpenVINO, or None."""
        if precision not in OpenVino.variants:
            return f"OpenVINO runs {', '.join(OpenVino.variants)}"
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] not in capabilities:
            return f"this processor has no {precision} arithmetic for OpenVINO (it has {', '.join(capabilities)})"
        return None

    @staticmethod
    def build(graph: Path, out: Path, options: BuildOptions) -> None:
        """Compile for the CPU and write the compiled blob."""
        try:
            compiled = _core().compile_model(str(graph), "CPU", _properties(options))
            out.write_bytes(compiled.export_model().getvalue())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO could not compile {graph.name} for {options.precision}: {error}") from error

    def __init__(self, built: Path, options: BuildOptions) -> None:
        try:
            self._model = _core().import_model(built.read_bytes(), "CPU", _properties(options))
        except (OSError, RuntimeError) as error:
            raise EngineError(f"OpenVINO could not load the compiled engine {built}: {error}") from error
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)

    def bind(self, inputs: Buffers, outputs: Buffers) -> Runner:
        """Bind arrays to an inference request of their own, without copies."""
        import openvino

        request = self._model.create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        for name, array in outputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return _Runner(request, (inputs, outputs))

    def close(self) -> None:
        """Release the compiled model."""
        self._model = None


class _Runner:
    def __init__(self, request: Any, buffers: object) -> None:
        # Without share_outputs each call would copy the outputs into new arrays.
        self.run = functools.partial(request.infer, share_outputs=True)
        self._buffers = buffers  # the request keeps addresses; this keeps the arrays alive


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if d.is_dynamic else int(d.get_length()) for d in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, str(port.get_element_type().to_dtype()))


ENGINES = (OpenVino,)
