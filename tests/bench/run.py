"""The benchmark: every backend side by side in one run, on one machine. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src"), str(ROOT)]

from bench import (  # noqa: E402 - they are found by the lines above
    cost,
    forming,
    light,
    names,
    operator_scale,
    outage,
    pods,
    recovery,
    report,
    servers,
    stores,
)
from bench.lab import Lab  # noqa: E402
from bench.records import Results  # noqa: E402

OUTPUT = ROOT / ".local/bench.json"
PAGE = ROOT / "docs/benchmarks.md"
PODS = {"pods": "", "pods-loaded": pods.LOADED}
SCENARIOS = [
    "form-fixed",
    "form-elastic",
    "recover",
    "requests",
    "outage",
    "stores",
    "library",
    "operator",
    "light",
    *PODS,
]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=os.environ.get("BENCH_ONLY", ""), help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--sizes", default=os.environ.get("BENCH_N", ""), help="agents for form-fixed (2,8,…,1000)")
    parser.add_argument("--backends", default=os.environ.get("BENCH_BACKENDS", ""), help="rows (all)")
    parser.add_argument("--runs", type=int, default=3, help="of each, from which the median is taken (default: 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", action="store_true", help=f"write table and plot into {PAGE.relative_to(ROOT)} too")
    return parser.parse_args()


def measure(
    scenario: str, lab: Lab, results: Results, runs: int, sizes: list[int], wanted: Callable[[str], bool]
) -> None:
    """One of those that need only the light servers."""
    match scenario:
        case "library":
            cost.library(results, runs)
        case "form-fixed":
            forming.form_fixed(lab, results, sizes or forming.default_sizes(), runs, wanted)
        case "form-elastic":
            forming.form_elastic(lab, results, forming.ELASTIC_SIZES, runs, wanted)
        case "recover":
            recovery.recover(lab, results, runs, wanted)
        case "requests":
            cost.requests(lab, results)
        case "outage":
            outage.outage(lab, results)
        case "light":
            light.light(lab, results, sizes or light.SIZES)
        case "operator":
            operator_scale.operator(lab, results)
        case "stores":
            stores.stores(lab, results)
        case _:
            raise SystemExit(f"--only {scenario}: write some of {', '.join(SCENARIOS)}")


@contextmanager
def announced(scenario: str) -> Iterator[None]:
    """Says what begins, and how long it took."""
    print(f"\n{scenario}  (load {os.getloadavg()[0]:.1f})", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    given = options()
    only = [part for part in given.only.split(",") if part] or SCENARIOS
    backends = [part for part in given.backends.split(",") if part]
    sizes = [int(part) for part in given.sizes.split(",") if part]

    def wanted(name: str) -> bool:
        return not backends or name in backends

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # What runs is taken down then too.
    context = forming.machine()
    results = Results(given.output, context, keep=bool(given.only or sizes or backends))
    whole = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-") as place:
        directory = Path(place)
        names.only_from_files(directory)
        light = [scenario for scenario in only if scenario not in PODS]
        if light:
            with servers.running(directory) as found:
                lab = Lab(found, given.output.with_name(f"{given.output.stem}-agents.log"))
                for scenario in light:
                    with announced(scenario):
                        measure(scenario, lab, results, given.runs, sizes, wanted)
        loads = [PODS[scenario] for scenario in only if scenario in PODS]
        if loads:  # They have the machine for themselves.
            with announced("pods"):
                pods.pods(results, given.runs, wanted, loads)
    context |= {"load at the end": os.getloadavg()[0], "minutes": round((time.monotonic() - whole) / 60, 1)}
    print("\n" + report.markdown(results.records, context))
    if given.page:
        report.write(results.records, context, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
