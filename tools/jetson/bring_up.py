"""Brings kizu up on a Jetson: checks it, installs, builds a bundle's engines, tests, measures, writes the result.

    tools/jetson/bring-up [STEP ...] --bundle part.kizu

Steps, in this order, all by default: check, install, build, test, bench, result. Each can be repeated; one that fails
ends with a sentence that says what to do. --dry-run shows all commands and checks what can be checked without a Jetson.
"""

# Only the standard library, and syntax that Python 3.8 reads, so that an older one gets a sentence too.
from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from result import made_up, write_result

from jetson import ROOT, driver, facts, findings, nvcc, said, temperatures

MEASURE = ROOT / "tools" / "jetson" / "measure.py"
BENCH = ROOT / "tools" / "bench.py"
GPU_BENCHMARKS = ROOT / "benchmarks" / "test_gpu.py"
GPU_TESTS = ("tests/test_cuda.py",)  # those that need no torch, no ONNX and no other engine
STEPS = ("check", "install", "build", "test", "bench", "result")
PRECISIONS = ("fp16", "int8")
COMPARISONS = ("gpu_fp16_p50", "gpu_int8_p50", "gpu_fp16_buffer_p50", "gpu_int8_buffer_p50", "gpu_overhead")
BUILD_TOOLS = ("scikit-build-core>=0.10", "pybind11>=2.13", "cmake>=3.22", "ninja")
TEST_TOOLS = ("pytest>=8", "pytest-benchmark>=5", "hypothesis>=6.100")


class BringUpError(Exception):
    """A step cannot go on; the text says what to do."""


# The steps


class BringUp:
    """One call of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dry: bool = options.dry_run
        self.bin: Path = options.venv / "bin"
        self.python = str(self.bin / "python")
        self.wrong: list[str] = []  # what a dry run found

    def run(self, command: Sequence[str], fix: str, *, accept: Sequence[int] = (0,), **environment: str) -> None:
        """Run a command from the tree's root; raises BringUpError with what to do if it fails."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        shown = " ".join([*settings, *map(shlex.quote, command)]).replace(os.environ.get("PATH", os.defpath), "$PATH")
        print(f"$ {shown}", flush=True)
        if self.dry:
            return
        try:
            code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
        except OSError as error:
            raise BringUpError(f"{command[0]} cannot be run ({error.strerror}). {fix}") from error
        if code not in accept:
            raise BringUpError(f"this failed with exit code {code}: {shown}\n{fix}")

    def bundle(self) -> Path:
        """The bundle, if it is one."""
        path: Path | None = self.options.bundle
        if path is None:
            if self.dry:
                return Path("part.kizu")
            raise BringUpError(
                "name the bundle with --bundle part.kizu: kizu export writes it on the machine that trained, and it is "
                "copied here, e.g. with scp; training does not run on the Jetson"
            )
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise BringUpError(f"{path} is not a whole bundle: copy it again from the machine that ran kizu export")
        return path.resolve()

    def installed(self) -> None:
        """Raise BringUpError if the step install has not run."""
        if not self.dry and not Path(self.python).exists():
            raise BringUpError(f"kizu is not installed in {self.options.venv}: run tools/jetson/bring-up install first")

    def check(self) -> None:
        """Look at the system."""
        faults = 0
        for finding in findings(facts(self.options.root, self.options.python)):
            faults += finding.fault is not None
            mark = "FAULT" if finding.fault else "note" if finding.note else "ok"
            said_of_it = finding.fault or finding.note
            print(f"{mark:<6}{finding.what}: {finding.found or 'not found'}{f'; {said_of_it}' if said_of_it else ''}")
        if faults and not self.dry:
            raise BringUpError(f"not all is as kizu needs it: see the lines that begin with FAULT ({faults})")

    def install(self) -> None:
        """Make the environment and compile kizu for this GPU."""
        options = self.options
        network = "If pip could not download: connect the Jetson, or see 'Without a network' in tools/jetson/README.md."
        if self.dry or not Path(self.python).exists():
            # The system's packages stay visible: JetPack's TensorRT is one of them.
            self.run(
                [options.python, "-m", "venv", "--system-site-packages", str(options.venv)],
                "sudo apt install python3-venv, delete the folder and run this step again.",
            )
        pip = [self.python, "-m", "pip", "install", "--disable-pip-version-check"]
        self.run([*pip, *BUILD_TOOLS, *TEST_TOOLS], network)
        gpu = driver()
        architecture = options.architecture or (gpu["compute_capability"].replace(".", "") if gpu else None)
        if architecture is None:
            if not self.dry:
                raise BringUpError("the CUDA driver offers no device to compile for: run tools/jetson/bring-up check")
            architecture = "87"
        compiler = nvcc(options.root) or "/usr/local/cuda/bin/nvcc"
        settings = (
            "KIZU_CUDA=ON",
            f"CMAKE_CUDA_ARCHITECTURES={architecture}-real",  # this GPU alone: the default takes minutes
            f"CMAKE_CUDA_COMPILER={compiler}",
        )
        self.run(
            [*pip, "--no-build-isolation", *(f"--config-settings=cmake.define.{s}" for s in settings), "."],
            "kizu did not compile; the compiler's words are above. A compiler that was killed had too little memory: "
            f"close other programs and set CMAKE_BUILD_PARALLEL_LEVEL=1. {network}",
            PATH=f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        )
        self.run(
            [self.python, "-c", "import sys; from kizu import _core; sys.exit(_core.cuda_devices() == 0)"],
            "kizu is installed but finds no CUDA device: run tools/jetson/bring-up check",
        )
        self.run([str(self.bin / "kizu"), "engines"], "kizu is installed but does not start; its words are above.")

    def build(self) -> None:
        """Compile the bundle with TensorRT; each engine must reproduce the golden scores before it is kept."""
        self.installed()
        for precision in self.options.precision:
            self.run(
                self.build_command(precision),
                "The engine's reason is above. If it does not reproduce the golden scores in this precision, leave the "
                "precision out with --precision.",
            )

    def build_command(self, precision: str) -> list[str]:
        """``kizu build``."""
        options = ["--engine", self.options.engine, "--precision", precision]
        return [str(self.bin / "kizu"), "build", str(self.bundle()), *options]

    def test(self) -> None:
        """The tests that need a device."""
        self.installed()
        self.run(
            [self.python, "-m", "pytest", "-m", "gpu", "-q", *GPU_TESTS],
            "A test failed on this device. Please report the text above with what tools/jetson/bring-up check prints.",
            KIZU_REQUIRE_GPU="1",
        )

    def bench(self) -> None:
        """Measure, with the temperature before and after."""
        self.installed()
        output: Path = self.options.output
        if not self.dry:
            output.mkdir(parents=True, exist_ok=True)
        before = temperatures(self.options.root)
        known = facts(self.options.root, self.options.python)
        for precision in self.options.precision:
            self.run(self.measure_command(precision), "Nothing was measured; the reason is above.")
        report = output / "bench.json"
        if not self.dry and report.exists():
            report.unlink()
        self.run(
            [self.python, str(BENCH), *COMPARISONS, "--json", str(report)],
            "The benchmarks did not run; their words are above.",
            accept=(0, 1),  # 1: a limit was missed, which the result says, or a benchmark failed
            KIZU_BUNDLE=str(self.bundle()),
            KIZU_REQUIRE_GPU="1",
        )
        if self.dry:
            return
        if not report.exists():
            raise BringUpError(
                "a benchmark failed. Please report the text above with what tools/jetson/bring-up check prints"
            )
        conditions = {
            "device": known,
            "temperature": {"before": before, "after": temperatures(self.options.root)},
            "comparisons": json.loads(report.read_text(encoding="utf-8"))["comparisons"],
        }
        (output / "conditions.json").write_text(json.dumps(conditions, indent=1), encoding="utf-8")

    def measured(self, precision: str) -> Path:
        """Where a precision's measurements lie."""
        return Path(self.options.output / f"measure-{precision}.json")

    def measure_command(self, precision: str) -> list[str]:
        """measure.py."""
        named = ["--engine", self.options.engine, "--precision", precision, "--json", str(self.measured(precision))]
        return [self.python, str(MEASURE), str(self.bundle()), *named]

    def result(self) -> None:
        """Write result.json and result.md from what bench left."""
        if self.dry:
            with tempfile.TemporaryDirectory() as folder:
                found = made_up(self.options.precision)
                write_result(found, Path(folder))
                print((Path(folder) / "result.md").read_text(encoding="utf-8"))
            return
        output: Path = self.options.output
        try:
            conditions = json.loads((output / "conditions.json").read_text(encoding="utf-8"))
            measurements = [
                json.loads(self.measured(precision).read_text(encoding="utf-8")) for precision in self.options.precision
            ]
        except (OSError, ValueError) as error:
            raise BringUpError(f"nothing is measured yet ({error}): run tools/jetson/bring-up bench first") from error
        write_result({**conditions, "measurements": measurements}, output)
        print(f"wrote {output / 'result.json'} and {output / 'result.md'}")

    # The dry run's own

    def examine(self) -> None:
        """What can be known without a Jetson: that what the steps call is there and takes the options it is given."""
        files = (MEASURE, BENCH, GPU_BENCHMARKS, *(ROOT / name for name in GPU_TESTS))
        self.wrong += [f"{path} is missing" for path in files if not path.exists()]
        for precision in self.options.precision:
            self.try_options("measure", "parser", self.measure_command(precision)[2:])
            self.try_options("kizu.cli", "_parser", self.build_command(precision)[1:])
        known = said(sys.executable, str(BENCH), "--list")
        if known is not None:
            missing = set(COMPARISONS) - set(known.split())
            self.wrong += [f"tools/bench.py has no comparison {name}" for name in sorted(missing)]
        else:
            print("not checked: tools/bench.py does not run with this Python")

    def try_options(self, module: str, parser: str, arguments: Sequence[str]) -> None:
        """Whether a command's parser takes these arguments."""
        program = f"import sys; from {module} import {parser}; {parser}().parse_args(sys.argv[1:])"
        paths = [str(MEASURE.parent), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 2:  # argparse's
            self.wrong.append(f"{module} does not take {' '.join(arguments)}: {done.stdout.strip().splitlines()[-1]}")
        elif done.returncode != 0:
            print(f"not checked: {module} cannot be imported here ({done.stdout.strip().splitlines()[-1]})")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="tools/jetson/bring-up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("steps", nargs="*", metavar="STEP", help=f"all by default: {', '.join(STEPS)}")
    made.add_argument("--bundle", type=Path, help="what to build and measure: a .kizu file exported elsewhere")
    made.add_argument("--precision", nargs="+", default=list(PRECISIONS), help=f"({' '.join(PRECISIONS)})")
    made.add_argument("--engine", default="tensorrt", help="(tensorrt)")
    made.add_argument("--architecture", help="compute capability to compile for, without its dot (this GPU's)")
    made.add_argument("--venv", type=Path, default=ROOT / ".venv-jetson", help="the environment (.venv-jetson)")
    made.add_argument("--output", type=Path, default=ROOT / "runs" / "jetson", help="the result's folder (runs/jetson)")
    made.add_argument("--dry-run", action="store_true", help="show the commands; check what needs no Jetson")
    made.add_argument("--python", default=sys.executable, help="the interpreter of the environment (this one)")
    made.add_argument("--root", type=Path, default=Path("/"), help="where the system's files are looked for (/)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    unknown = set(options.steps) - set(STEPS)
    if unknown:
        command.error(f"no step is called {', '.join(sorted(unknown))}; there are: {', '.join(STEPS)}")
    options.venv, options.output = options.venv.absolute(), options.output.absolute()
    bring_up = BringUp(options)
    for step in STEPS:
        if options.steps and step not in options.steps:
            continue
        print(f"\n== {step} ==", flush=True)
        try:
            getattr(bring_up, step)()
        except BringUpError as error:
            print(f"\nbring-up stopped at {step}: {error}", file=sys.stderr)
            return 1
    if options.dry_run:
        bring_up.examine()
        for wrong in bring_up.wrong:
            print(f"WRONG {wrong}", file=sys.stderr)
    return 1 if bring_up.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
