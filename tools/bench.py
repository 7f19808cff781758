"""Runs the comparisons of benchmarks/ and prints one line each: ``NAME value floor PASS|FAIL``.

Where a limit does not bind (it is for AMX processors, or for another GPU) the verdict is UNBOUND with what the machine
has. The records go to build/bench.json. The exit code is 1 if a value falls short or could not be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from comparisons import COMPARISONS, Comparison, gpu, instruction_set, sides  # noqa: E402


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    names = [comparison.name for comparison in COMPARISONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"comparisons (all): {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="name the comparisons and leave")
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "build" / "bench.json",
        metavar="FILE",
        help="the records (build/bench.json)",
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(names))
        return 0
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"no comparison is called {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    chosen = [c for c in COMPARISONS if not options.names or c.name in options.names]

    records = measure(chosen)
    found = sides(records)
    instructions, device = instruction_set(), gpu(records)
    failed, results = 0, []
    for comparison in chosen:
        value = comparison.value(found)
        limit = comparison.limit_on(device)
        verdict = comparison.verdict(value, instructions=instructions, device=device)
        failed += verdict == "FAIL"
        shown = ("unmeasured" if value is None else f"{value:.3g}", "-" if limit is None else f"{limit:g}")
        print(comparison.name, *shown, verdict)
        results.append({"name": comparison.name, "value": value, "limit": limit, "verdict": verdict})
    report = {
        "comparisons": results,
        "sides": found,
        "instruction_set": instructions,
        "device": device,
        "benchmarks": records,
    }
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if failed else 0


def measure(chosen: list[Comparison]) -> list[dict[str, Any]]:
    """Run the benchmarks that give the sides of these comparisons; their records."""
    wanted = ",".join(sorted({side for comparison in chosen for side in (*comparison.sides, *comparison.instead)}))
    raw = ROOT / "build" / "pytest-benchmark.json"
    raw.parent.mkdir(exist_ok=True)
    raw.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "benchmarks", "--sides", wanted]
    code = subprocess.run([*command, f"--benchmark-json={raw}"], cwd=ROOT, stdout=sys.stderr).returncode
    if code:
        raise SystemExit(f"tools/bench: the benchmarks failed (pytest's exit code {code}); see above")
    if not raw.exists():  # all were skipped
        return []
    records: list[dict[str, Any]] = json.loads(raw.read_text(encoding="utf-8"))["benchmarks"]
    return records


if __name__ == "__main__":
    sys.exit(main())
