"""The house's directions: who may import whom, what importing kizu loads, and what the native layers include."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import PYTHON, python_output

PACKAGE = PYTHON / "kizu"
SOURCES = PYTHON.parent / "csrc"

# What a module (or folder) of kizu may import from kizu. Everything may import errors, and the version from kizu.
MAY_IMPORT: dict[str, set[str]] = {
    "kizu": {"bundle", "detector", "pipeline", "prepare"},
    "errors": set(),
    "user_cache": set(),
    # the line
    "pixel_format": set(),
    "prepare": {"_core", "pixel_format"},
    "prepare_reference": {"pixel_format", "prepare"},
    "scoring": {"_core"},
    "scoring_reference": {"scoring"},
    "heat_map": {"_core", "prepare"},
    "heat_map_reference": {"heat_map", "scoring_reference"},
    "threshold": set(),
    "engine": {"engines"},  # finds them by their files' names
    "engine_file": {"engine"},
    "engines": {"_core", "engine", "engine_file"},
    "bundle": {"prepare"},
    "pipeline": {"cpu_pipeline", "cuda_pipeline", "engine", "pixel_format", "prepare", "scoring"},  # opens one
    "cpu_pipeline": {"engine", "pipeline", "prepare"},
    "cuda_pipeline": {"_core", "engine", "pipeline", "prepare"},
    "pool": {"engine", "pipeline"},
    "iterated": {"engine"},
    "compiled": {"bundle", "engine", "engine_file", "iterated", "pipeline", "user_cache"},
    "detector": {
        "bundle", "compiled", "engine", "engine_file", "heat_map", "pipeline", "pixel_format", "pool", "prepare",
        "scoring", "threshold",
    },
    # training
    "layers": {"method", "prepare"},  # the contract of a module to export
    "method": {"methods", "prepare"},  # finds them by their files' names
    "methods": {"layers", "method", "prepare"},
    "data": {"prepare", "user_cache"},
    "metrics": set(),
    "evaluate": {"metrics", "prepare"},
    "progress": set(),
    "settings": {"data", "method", "prepare"},
    "run_folder": {"settings"},
    "validation": {"data", "method", "metrics", "prepare", "scoring"},
    "training": {"data", "engine", "method", "prepare", "progress", "run_folder", "settings", "validation"},
    # from training to the line
    "subpixel": set(),
    "variants": set(),
    "export": {
        "bundle", "calibrate", "data", "engine", "engines", "iterated", "method", "pipeline", "prepare", "run_folder",
        "scoring", "settings", "subpixel", "threshold", "validation", "variants",
    },
    # what people see
    "calibrate": {"bundle", "detector", "engine", "evaluate", "threshold"},
    "report": {"evaluate", "metrics"},
    "cli": {
        "_core", "bundle", "calibrate", "compiled", "data", "detector", "engine", "engine_file", "evaluate", "export",
        "method", "pipeline", "prepare", "progress", "report", "scoring", "settings", "threshold", "training",
    },
}  # fmt: skip

RUNTIME = {"numpy", "PIL", "rich"}
TRAIN = {"torch", "onnx", "onnxruntime"}
# Who may import packages beyond numpy, Pillow and rich; each of the others is installed with plain kizu.
MAY_NEED: dict[str, set[str]] = {
    **{n: {"torch"} for n in ("layers", "method", "methods", "run_folder", "settings", "training", "validation")},
    "export": TRAIN,
    "subpixel": TRAIN,
    "variants": TRAIN,
    "report": {"matplotlib"},
    "engines": {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"},
}
LINE = (
    "kizu", "detector", "bundle", "prepare", "scoring", "threshold", "engine", "engine_file", "pipeline", "iterated",
    "compiled", "cli",
)  # fmt: skip


def role(module: str) -> str:
    """The file or folder directly under kizu/ that a module belongs to."""
    return "kizu" if module == "kizu" else module.split(".")[1]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["kizu", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """What a module imports at run time, and whether it does so when it is itself imported."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: relative import"
                assert child.module is not None
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in MODULES or full == "kizu._core" else child.module), at_import
            else:
                inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_import and not inner)

    yield from walk(ast.parse(MODULES[module].read_text()), True)


def reached(start: str) -> set[str]:
    """All modules of kizu and packages that importing ``start`` loads."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            todo += [target for target, at_import in imports(name) if at_import and target != "kizu"]
            parent = name.rpartition(".")[0]
            if parent and parent != "kizu":
                todo.append(parent)
    return seen


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    assert role(module) in MAY_IMPORT, f"say in MAY_IMPORT what {module} may import"
    for target, _ in imports(module):
        if target.partition(".")[0] == "kizu" and role(target) not in (role(module), "errors", "kizu"):
            assert role(target) in MAY_IMPORT[role(module)], f"{module} may not import {target}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_packages_are_imported_where_they_may_be(module: str) -> None:
    for target, at_import in imports(module):
        package = target.partition(".")[0]
        if package in sys.stdlib_module_names or package == "kizu":
            continue
        allowed = RUNTIME | MAY_NEED.get(role(module), set())
        assert package in allowed, f"{module} may not import {package}"
        if package in ("openvino", "tensorrt", "tensorrt_rtx", "matplotlib"):
            assert not at_import, f"{module} must import {package} only when it is used"


def test_the_table_has_no_one_who_left() -> None:
    roles = {role(module) for module in MODULES}
    assert set(MAY_IMPORT) <= roles
    assert set(MAY_NEED) <= roles


def test_there_is_no_circle() -> None:
    targets = {
        module: {t for t, at_import in imports(module) if at_import and t in MODULES and t != "kizu"}
        for module in MODULES
        if module != "kizu"
    }
    while targets:
        free = [module for module, of in targets.items() if not of & set(targets) - {module}]
        assert free, f"these import one another: {sorted(targets)}"
        for module in free:
            del targets[module]


def test_methods_and_engines_meet_only_in_a_bundle() -> None:
    for module in MODULES:
        if role(module) in ("methods", "method", "layers"):
            assert not {role(m) for m in reached(module) if m in MODULES} & {"engine", "engines", "pipeline", "bundle"}
        if role(module) in ("engine", "engines", "pipeline", "compiled", "detector", "bundle"):
            met = {role(m) for m in reached(module) if m in MODULES}
            assert not met & {"methods", "method", "layers", "training", "export"}


@pytest.mark.parametrize("name", LINE)
def test_what_the_line_loads_needs_no_torch(name: str) -> None:
    packages = reached("kizu" if name == "kizu" else f"kizu.{name}")
    assert not packages & {"torch", "onnx", "onnxruntime", "openvino", "matplotlib"}


def test_importing_kizu_loads_neither_torch_nor_an_engine() -> None:
    loaded = python_output("import sys, kizu; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert {"kizu", "numpy"} <= set(loaded)
    assert not set(loaded) & {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "matplotlib", "rich", "cv2"}


def test_scoring_a_bundle_never_imports_torch(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    script = """
import sys
import numpy as np
import kizu
for engine in ("openvino", "onnxruntime"):
    with kizu.load(sys.argv[1], engine=engine, threads=1, cache=sys.argv[2]) as detector:
        detector.score_batch([np.zeros((60, 72, 3), np.uint8)] * 3)
print(*{name.partition('.')[0] for name in sys.modules})
"""
    for cache in (tmp_path, engine_cache):  # compiled and proved here, then from a cache
        loaded = set(python_output(script, bundle_path, cache).split())
        assert {"openvino", "onnxruntime"} <= loaded
        assert not loaded & {"torch", "onnx", "matplotlib"}


def test_the_public_names_are_what_they_are() -> None:
    import kizu

    for name in kizu.__all__:
        assert getattr(kizu, name).__module__.startswith("kizu.")
    assert len(kizu.__all__) <= 12


# csrc: py -> pipeline -> ops -> core

LAYERS = ("core", "ops", "pipeline", "py")


def native() -> list[Path]:
    found = [p for p in SOURCES.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(found) > 5
    return found


@pytest.mark.parametrize("path", native(), ids=lambda path: path.relative_to(SOURCES).as_posix())
def test_native_includes_point_one_way(path: Path) -> None:
    layer = path.relative_to(SOURCES).parts[0]
    for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        first = include.partition("/")[0]
        if first in LAYERS:
            assert LAYERS.index(first) <= LAYERS.index(layer), f"{layer} may not include {include}"
        if first == "pybind11" or include == "Python.h":
            assert layer == "py", f"only csrc/py may include {include}"
        if re.match(r"cuda|cub/|cooperative_groups|nv|Nv", include):
            allowed = path.suffix in (".cu", ".cuh") or path.name in ("cuda.cpp", "cuda_check.h")
            assert allowed, f"{path.name} may not include {include}"
