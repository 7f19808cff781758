"""The contract of an engine, over all of them: build, load, bind, run; and what it says when it cannot."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import (
    BLOCK_IMPORTS,
    EACH_PRECISION,
    PYTHON,
    Trained,
    installed,
    part,
    python,
    python_output,
    supported,
)
from kizu import Bundle, EngineError
from kizu.bundle import Manifest
from kizu.engine import BuildOptions, CpuEngine, CudaEngine, choose, engines
from kizu.method import available, get
from kizu.prepare_reference import prepare_reference
from kizu.scoring import Scorer
from rows import CUDA_ENGINES, ENGINES, ITERATED, METHODS, TOLERANCES, EngineRow, MethodRow

BY_NAME = {row.name: row for row in ENGINES}


@pytest.fixture(scope="module")
def graphs(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    opened = Bundle.open(bundle_path)
    for name in opened.manifest.graphs:
        (folder / f"{name}.onnx").write_bytes(opened.graph(name))
    return {name: folder / f"{name}.onnx" for name in opened.manifest.graphs}


@pytest.fixture(scope="module")
def inputs(bundle_path: Path) -> NDArray[np.float32]:
    spec, rng = Bundle.open(bundle_path).manifest.prepare, np.random.default_rng(5)
    return np.stack([prepare_reference(part(rng, color=True, scratched=i > 2), spec) for i in range(5)])


@pytest.fixture(params=EACH_PRECISION, ids=[f"{row.name}-{precision}" for row, precision in EACH_PRECISION])
def loaded(request: pytest.FixtureRequest, graphs: dict[str, Path], tmp_path: Path) -> Iterator[tuple[str, CpuEngine]]:
    row, precision = request.param
    engine = supported(row, precision)
    options = BuildOptions(precision, threads=2, max_batch=5)
    built = tmp_path / "engine"
    engine.build(graphs[engine.variant(precision, graphs)], built, options)
    assert built.stat().st_size > 0
    with engine(built, options) as one:
        yield precision, one


def test_there_is_a_row_for_every_engine_and_method() -> None:
    assert {row.name for row in (*ENGINES, *CUDA_ENGINES)} == set(engines())
    assert {row.name for row in (*METHODS, *ITERATED)} == set(available())
    for row in (*ENGINES, *CUDA_ENGINES):
        engine = engines()[row.name]
        assert issubclass(engine, CudaEngine if row in CUDA_ENGINES else CpuEngine)
        assert engine.name == row.name
        assert engine.package == row.package
        assert row.package in engine.install or "kizu[" in engine.install
        assert tuple(sorted(engine.variants)) == tuple(sorted(row.precisions))


@dataclass(frozen=True)
class Expected:
    """Five inputs of a method, torch's scores of them at the epoch that was exported, and the unit of tolerances."""

    row: MethodRow
    manifest: Manifest
    graphs: dict[str, Path]
    inputs: NDArray[np.float32]
    scores: NDArray[np.float32]
    unit: float

    def score(self, x: NDArray[np.float32], outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        scores = np.empty(len(x), np.float32)
        Scorer(self.manifest.scoring, weight=self.manifest.weight)({**outputs, "x": x}, scores)
        return scores


@pytest.fixture(scope="module", params=METHODS, ids=lambda row: row.id)
def each(
    request: pytest.FixtureRequest,
    train_method: Callable[[MethodRow], Trained],
    tmp_path_factory: pytest.TempPathFactory,
) -> Expected:
    import torch

    from kizu.run_folder import load_file
    from kizu.settings import epoch_file

    row: MethodRow = request.param
    trained = train_method(row)
    bundle = Bundle.open(trained.bundle)
    manifest = bundle.manifest
    rng = np.random.default_rng(5)
    frames = [part(rng, color=True, scratched=i > 2) for i in range(5)]
    inputs = np.stack([prepare_reference(frame, manifest.prepare) for frame in frames])
    module = get(row.name).create(manifest.prepare, get(row.name).config_type(**row.config)).export_module()
    module.load_state_dict(load_file(epoch_file(trained.run, manifest.training["epoch_rule"]))["module"])
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(inputs))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        name: (5, *shape) for name, shape in row.outputs.items()
    }
    folder = tmp_path_factory.mktemp("graphs")
    graphs = {name: folder / f"{name}.onnx" for name in manifest.graphs}
    for name, path in graphs.items():
        path.write_bytes(bundle.graph(name))
    unit = float(np.std(manifest.calibration.scores["fp32"]))
    made = Expected(row, manifest, graphs, inputs, np.empty(0, np.float32), unit)
    return replace(
        made, scores=made.score(inputs, {name: value.contiguous().numpy() for name, value in outputs.items()})
    )


def test_a_methods_graphs_have_the_rows_outputs(each: Expected) -> None:
    import onnx

    assert each.manifest.scoring == each.row.scoring
    another = {"int8-full"} if "x_hat" in each.row.outputs else set()
    assert set(each.graphs) == {"fp32", "fp16", "int8", "int8+fp16", *another}  # none was left out
    for path in each.graphs.values():
        graph = onnx.load(path).graph
        assert [value.name for value in graph.output] == list(each.row.outputs)
        assert [value.name for value in graph.input] == ["x"]


@pytest.mark.parametrize(("engine_row", "precision"), EACH_PRECISION, ids=lambda value: getattr(value, "name", value))
def test_it_computes_what_torch_computes(each: Expected, engine_row: EngineRow, precision: str, tmp_path: Path) -> None:
    row = each.row
    engine = supported(engine_row, precision)
    options = BuildOptions(precision, threads=2, max_batch=5)
    engine.build(each.graphs[engine.variant(precision, each.graphs)], tmp_path / "engine", options)
    assert np.ptp(each.scores) > 0.5 * each.unit  # the images differ by more than any tolerance
    with engine(tmp_path / "engine", options) as one:
        assert [(x.name, x.shape, x.dtype) for x in one.inputs] == [
            ("x", (None, *each.inputs.shape[1:]), "float32"),
        ]
        # How an engine tells the other sides differs: OpenVINO leaves some free that cannot be.
        assert [(y.name, len(y.shape), y.shape[0], y.dtype) for y in one.outputs] == [
            (name, 1 + len(shape), None, "float32") for name, shape in row.outputs.items()
        ]
        for n in (1, 2, 3, 4, 5, 2):
            x = np.empty((n, *each.inputs.shape[1:]), np.float32)
            outputs = {name: np.empty((n, *shape), np.float32) for name, shape in row.outputs.items()}
            runner = one.bind({"x": x}, outputs)
            for first in range(5 - n + 1):
                x[:] = each.inputs[first : first + n]  # into the bound memory; the engine must read it anew
                for output in outputs.values():
                    output.fill(np.nan)
                runner.run()
                off = np.abs(each.score(x, outputs) - each.scores[first : first + n])
                np.testing.assert_array_less(off, TOLERANCES[precision] * each.unit, err_msg=f"batch {n}")


def test_several_bindings_live_side_by_side(loaded: tuple[str, CpuEngine], inputs: NDArray[np.float32]) -> None:
    _, engine = loaded
    buffers = [(inputs[:n].copy(), np.empty(n, np.float32)) for n in (1, 3, 5)]
    runners = [engine.bind({"x": x}, {"logit": logit}) for x, logit in buffers]
    for runner in runners:
        runner.run()
    first = [logit.copy() for _, logit in buffers]
    for runner in reversed(runners):
        runner.run()
    for (_, logit), before in zip(buffers, first, strict=True):
        np.testing.assert_array_equal(logit, before)


def test_the_gil_is_released_while_it_runs(loaded: tuple[str, CpuEngine]) -> None:
    _, engine = loaded
    x, logit = np.zeros((64, 5, 32, 32), np.float32), np.empty(64, np.float32)
    runner = engine.bind({"x": x}, {"logit": logit})
    runner.run()
    steps, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            steps[0] += 1
            time.sleep(1e-5)

    thread, interval = threading.Thread(target=count), sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(3600)  # another thread moves only when this one lets go of the GIL
        before, end = steps[0], time.perf_counter() + 0.15
        while time.perf_counter() < end:
            runner.run()
        moved = steps[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert moved > 3


def test_closing_twice_is_nothing(loaded: tuple[str, CpuEngine]) -> None:
    loaded[1].close()
    loaded[1].close()  # no error


@pytest.mark.parametrize("precision", BY_NAME["openvino"].precisions)
def test_openvino_is_told_the_precision(precision: str, graphs: dict[str, Path], tmp_path: Path) -> None:
    # Left to itself it computes in bf16 or f16 where the processor can.
    row = BY_NAME["openvino"]
    engine = supported(row, precision)
    options = BuildOptions(precision, threads=1)
    engine.build(graphs[engine.variants[precision]], tmp_path / "engine", options)
    with engine(tmp_path / "engine", options) as one:
        model: Any = one._model  # type: ignore[attr-defined]
        assert model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == row.hints[precision]
        assert model.get_property("INFERENCE_NUM_THREADS") == 1
        assert not model.get_property("ENABLE_CPU_PINNING")


@pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)
def test_an_unknown_precision_is_unsupported_with_those_it_has(row: EngineRow) -> None:
    reason = installed(row).unsupported("int4")
    assert reason is not None
    for precision in row.precisions:
        assert precision in reason


@pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)
def test_a_file_that_is_no_graph_is_refused(row: EngineRow, tmp_path: Path) -> None:
    (tmp_path / "part.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(EngineError, match=r"could not compile part\.onnx for fp32"):
        installed(row).build(tmp_path / "part.onnx", tmp_path / "engine", BuildOptions("fp32"))


@pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)
@pytest.mark.parametrize("data", [b"not a compiled engine", b"", None], ids=["text", "empty", "missing"])
def test_a_file_that_is_no_engine_is_refused(row: EngineRow, data: bytes | None, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "engine").write_bytes(data)
    with pytest.raises(EngineError, match="could not load the compiled engine"):
        installed(row)(tmp_path / "engine", BuildOptions("fp32"))


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: "no CUDA driver")


@pytest.mark.usefixtures("no_device")
def test_engines_are_offered_in_order_of_preference() -> None:
    assert list(engines()) == ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
    names = [name for name in engines() if name in BY_NAME]
    assert choose("auto").name == "openvino"
    for name in names:
        assert choose(name) is engines()[name]


def test_an_engine_nobody_knows_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no engine is called 'onyx'; known engines: .*openvino, onnxruntime"):
        choose("onyx")


class _Missing:
    """importlib.util.find_spec on a machine without some packages."""

    def __init__(self, *names: str) -> None:
        import importlib.util

        self.names, self.find = names, importlib.util.find_spec

    def __call__(self, name: str, package: str | None = None) -> Any:
        return None if name.partition(".")[0] in self.names else self.find(name, package)


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("row", [*ENGINES, *CUDA_ENGINES], ids=lambda row: row.name)
def test_a_missing_engine_says_how_to_get_it(row: EngineRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", _Missing(row.package))
    engine = engines()[row.name]
    reason = engine.unavailable()
    assert reason == f"not installed ({engine.install})"
    with pytest.raises(EngineError, match=f"the engine {row.name} cannot be used here: not installed"):
        choose(row.name)
    others = [other.name for other in ENGINES if other is not row]
    assert choose("auto").name == others[0]


LOAD_AND_SCORE = """
import numpy as np
import kizu
detector = kizu.load(sys.argv[2], cache=sys.argv[3], precision="fp32", engine=sys.argv[4])
frame = np.random.default_rng(0).integers(0, 256, (60, 72, 3), np.uint8)
print(detector.engine, detector.score(frame).score, "torch" in sys.modules, "onnx" in sys.modules)
"""


@pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)
def test_kizu_needs_one_engine_and_no_other(row: EngineRow, bundle_path: Path, engine_cache: Path) -> None:
    blocked = [other.package for other in (*ENGINES, *CUDA_ENGINES) if other is not row]
    blocked += ["torch", "onnx", "matplotlib"]
    script = BLOCK_IMPORTS + LOAD_AND_SCORE
    name, score, torch, onnx = python_output(script, ",".join(blocked), bundle_path, engine_cache, "auto").split()
    assert (name, torch, onnx) == (row.name, "False", "False")
    frame = np.random.default_rng(0).integers(0, 256, (60, 72, 3), np.uint8)
    with kizu.load(bundle_path, engine=row.name, precision="fp32", cache=engine_cache) as detector:
        assert detector.score(frame).score == float(score)


def test_without_any_engine_it_says_what_to_install(bundle_path: Path, engine_cache: Path) -> None:
    blocked = ",".join([*(row.package for row in (*ENGINES, *CUDA_ENGINES)), "torch"])
    done = python(BLOCK_IMPORTS + LOAD_AND_SCORE, blocked, bundle_path, engine_cache, "auto")
    assert done.returncode != 0
    assert 'no engine is installed. On a CPU: pip install "kizu[cpu]"' in done.stderr
    for row in (*ENGINES, *CUDA_ENGINES):
        assert f"{row.name}: not installed" in done.stderr


def test_a_damaged_installation_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise OSError('libopenvino.so: cannot open')\n")
    script = "from kizu.engine import choose, engines\nprint(choose().name, '|', engines()['openvino'].unavailable())"
    said = python_output(script, environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PYTHON}"})
    name, _, reason = said.partition(" | ")
    assert name == "onnxruntime"
    assert "cannot be imported: libopenvino.so" in reason
