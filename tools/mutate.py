"""Mutates the CUDA sources one place at a time and counts how many mutants the native cases kill. Run by hand.

    .venv/bin/python tools/mutate.py [--sample N] [--seed N] [--jobs N] [FILE ...]

Each mutant is compiled for the emulator and runs the cases of tests/native in up to four ways (random and reverse
schedules, address and thread sanitizers) until one of them fails. Places whose mutants compute the same are named, with
the reason, in tests/cuda_on_cpu/equivalent_mutants.txt: `file :: text of the line :: old -> new :: reason`, where old
and new may be `*` for all mutants of the line. The exit code is 1 if less than 95 % of the others are killed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "tests" / "cuda_on_cpu" / "equivalent_mutants.txt"
FLOOR = 0.95
TIMEOUT = 300

# What one place becomes. Operators stand between spaces, as clang-format writes them, so that no template is touched.
REPLACEMENTS: dict[str, tuple[str, ...]] = {
    " + ": (" - ",), " - ": (" + ",), " * ": (" + ",), " / ": (" * ",), " % ": (" / ",),
    " < ": (" <= ", " > "), " <= ": (" < ",), " > ": (" >= ", " < "), " >= ": (" > ",),
    " == ": (" != ",), " != ": (" == ",),
    " && ": (" || ",), " || ": (" && ",), " << ": (" >> ",), " >> ": (" << ",), " & ": (" | ",),
    " += ": (" -= ", " = "), " = -": (" = ",),
    "min(": ("max(",), "max(": ("min(",), "true": ("false",), "false": ("true",),
    "__syncthreads();": (";",), "__syncwarp();": (";",), "__threadfence();": (";",),
    "__shfl_xor_sync(": ("__shfl_down_sync(",), "fabsf(": ("(",), "volatile ": ("",),
}  # fmt: skip
OLD = "|".join(re.escape(old) for old in sorted(REPLACEMENTS, key=len, reverse=True))
PLACE = re.compile(OLD + r"|(?<![\w.])\d+u?(?![\w.])")
SKIPPED = re.compile(r"^\s*(//|#|static_assert|using |template|namespace|check\()")


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""

    path: Path
    line: int
    column: int
    old: str
    new: str
    text: str  # of the line

    def __str__(self) -> str:
        change = f"{self.old.strip()} -> {self.new.strip() or 'nothing'}"
        return f"{self.path.name}:{self.line + 1}: {self.text.strip()} :: {change}"

    def source(self) -> str:
        """The mutated file."""
        lines = self.path.read_text(encoding="utf-8").split("\n")
        text = lines[self.line]
        lines[self.line] = text[: self.column] + self.new + text[self.column + len(self.old) :]
        return "\n".join(lines)


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")):
        if SKIPPED.match(text):
            continue
        code = text.split("//")[0]
        for place in PLACE.finditer(code):
            old = place.group()
            if old in REPLACEMENTS:
                for new in REPLACEMENTS[old]:
                    yield Mutant(path, number, place.start(), old, new, text)
            else:
                suffix = "u" if old.endswith("u") else ""
                yield Mutant(path, number, place.start(), old, f"{int(old.rstrip('u')) + 1}{suffix}", text)


def equivalents() -> list[tuple[str, str, str, str]]:
    """(file, text, old, new) of the mutants that compute the same."""
    found = []
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []:
        if line.strip() and not line.startswith("#"):
            name, text, change, _ = (part.strip() for part in line.split(" :: "))
            old, new = (part.strip() for part in change.split(" -> "))
            found.append((name, text, old, new))
    return found


def is_equivalent(mutant: Mutant, known: list[tuple[str, str, str, str]]) -> bool:
    """Whether the list names it."""
    return any(
        (name, text) == (mutant.path.name, mutant.text.strip())
        and (old in ("*", mutant.old.strip()))
        and (new in ("*", mutant.new.strip() or "nothing"))
        for name, text, old, new in known
    )


@dataclass(frozen=True)
class Variant:
    """A build of the native tests, and the schedule of its emulator."""

    preset: str
    schedule: str

    @property
    def build(self) -> Path:
        """Its folder."""
        return ROOT / "build" / "native" / self.preset


VARIANTS = (
    Variant("plain", "random"),
    Variant("plain", "reverse"),
    Variant("asan", "random"),
    Variant("tsan", "random"),
)


def configure() -> Path:
    """Build the variants unmutated; returns the case file."""
    for preset in dict.fromkeys(variant.preset for variant in VARIANTS):
        subprocess.run(["cmake", "--preset", preset], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["cmake", "--build", str(ROOT / "build" / "native" / preset), "--target", "run_cases"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    sys.path.insert(0, str(ROOT / "tests"))
    from native.cases import all_cases, write_cases

    cases = ROOT / "build" / "native" / "mutation_cases.bin"
    write_cases(cases, [case for case in all_cases() if "cuda" in case.devices])
    return cases


class Build:
    """How a variant compiles a .cu and links run_cases with the object in place of its own."""

    def __init__(self, variant: Variant) -> None:
        self.folder = variant.build
        commands = json.loads((self.folder / "compile_commands.json").read_text(encoding="utf-8"))
        wrappers = {Path(entry["file"]).name: entry for entry in commands if entry["file"].endswith(".emulated.cpp")}
        self.compile = {name.split("-")[0]: entry for name, entry in wrappers.items()}
        ninja = ["ninja", "-C", str(self.folder), "-t", "commands", "run_cases"]
        lines = subprocess.run(ninja, check=True, capture_output=True, text=True).stdout.splitlines()
        self.link = next(line for line in reversed(lines) if "-o tests/native/run_cases" in line)

    def make(self, source: Path, overlay: Path, output: Path) -> bool:
        """Compile `source`, a .cu, with the overlay's headers before the project's; False if that fails."""
        entry = self.compile[source.stem]
        wrapper, made = overlay / f"{source.stem}.cpp", output.with_suffix(".o")
        wrapper.write_text(f'#include "cuda_on_cpu.h"\n#include "{source}"\n', encoding="utf-8")
        command = [str(wrapper) if part == entry["file"] else part for part in shlex.split(entry["command"])]
        command[command.index("-o") + 1] = str(made)
        command = [part for part in command if not re.fullmatch(r"-O[0-3s]", part)]
        command[1:1] = ["-O1" if "-fsanitize=thread" in command else "-O0", f"-I{overlay}", "-w"]
        if subprocess.run(command, cwd=self.folder, capture_output=True).returncode != 0:
            return False
        link = self.link.replace("-o tests/native/run_cases", f"-o {output} {made}", 1)
        done = subprocess.run(link, shell=True, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"tools/mutate.py: a mutant does not link: {done.stderr[-2000:]}")
        return True


def passes(program: Path, variant: Variant, cases: Path, name: str) -> bool:
    """Whether the operation's cases give what they must."""
    environment = {**os.environ, "CUDA_ON_CPU_ORDER": variant.schedule, "TSAN_OPTIONS": "halt_on_error=1"}
    for only in ("prepare/", "resize/") if name == "prepare" else (f"{name}/",):  # prepare.cu holds resize as well
        command = [str(program), str(cases), "--device", "cuda", "--only", only]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode != 0:
            return False
    return True


def survives(mutant: Mutant, builds: dict[str, Build], cases: Path) -> bool | None:
    """Whether every variant passes; None if it does not compile."""
    name = mutant.path.stem.removesuffix("_device")
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder)
        mutated = overlay / mutant.path.relative_to(ROOT / "csrc")
        mutated.parent.mkdir(parents=True)
        mutated.write_text(mutant.source(), encoding="utf-8")
        source = mutated if mutated.suffix == ".cu" else ROOT / "csrc" / "ops" / f"{name}.cu"
        for variant in VARIANTS:
            program = overlay / f"run_cases_{variant.preset}"
            if not program.exists() and not builds[variant.preset].make(source, overlay, program):
                return None
            if not passes(program, variant, cases, name):
                return False
    return True


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="CUDA sources (all of csrc/ops)")
    parser.add_argument("--sample", type=int, help="try this many mutants, drawn by chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # cmake and ninja
    files = [path.resolve() for path in options.files] or sorted((ROOT / "csrc" / "ops").glob("*.cu*"))
    known = equivalents()
    everything = [mutant for path in files for mutant in mutants(path)]
    candidates = [mutant for mutant in everything if not is_equivalent(mutant, known)]
    chosen = candidates
    if options.sample is not None and options.sample < len(candidates):
        chosen = random.Random(options.seed).sample(candidates, options.sample)
    left_out = len(everything) - len(candidates)
    print(f"{len(everything)} mutants, {left_out} known to be equivalent; trying {len(chosen)}")
    cases = configure()
    builds = {variant.preset: Build(variant) for variant in VARIANTS}
    for variant, name in itertools.product(VARIANTS, ("prepare", "score", "smooth_map")):
        if not passes(variant.build / "tests" / "native" / "run_cases", variant, cases, name):
            raise SystemExit(f"tools/mutate.py: the cases of {name} fail without any mutation ({variant})")
    killed, survivors, invalid = 0, [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, alive in zip(chosen, pool.map(lambda m: survives(m, builds, cases), chosen), strict=True):
            if alive is None:
                invalid += 1
            elif alive:
                survivors.append(mutant)
                print(f"survives: {mutant}", flush=True)
            else:
                killed += 1
    valid = killed + len(survivors)
    share = killed / valid if valid else 1.0
    print(f"{killed} of {valid} killed ({share:.1%}); {invalid} did not compile; {len(survivors)} survive")
    return 0 if share >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
