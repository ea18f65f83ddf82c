"""Run the benchmarks beside this file, store their numbers and print them as one table."""

import argparse
import json
import operator
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("name", "value", "unit", "peer", "ratio", "target")
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        return re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def machine() -> dict:
    """What the numbers depend on: the hardware and the versions of what does the arithmetic."""
    versions = {}
    for package in ("spectra_nn", "torch", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def slug(facts: dict) -> str:
    """A file name for a machine."""
    words = re.sub(r"\((?:R|TM)\)|@.*|\bCPU\b", " ", facts["processor"])
    return re.sub(r"[^a-z0-9]+", "-", f"{facts['system']} {words} {facts['cores']} cores".lower()).strip("-")


def parse(line: str) -> dict | None:
    """The result in a line of output, if it holds one."""
    try:
        result = json.loads(line)
    except json.JSONDecodeError:
        return None
    return result if isinstance(result, dict) else None


def run(script: Path) -> tuple[list[dict], int]:
    """Run one benchmark, showing what it says as it says it; its results and its exit code."""
    print(f"== {script.name}", flush=True)
    start, results = time.perf_counter(), []
    with subprocess.Popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if (result := parse(line)) is not None:
                results.append({"benchmark": script.stem.removeprefix("bench_"), **result})
    print(f"{script.name}: {len(results)} results, {time.perf_counter() - start:.0f} s, exit code {process.returncode}", flush=True)
    return results, process.returncode


def met(result: dict) -> bool | None:
    """Whether the ratio (or, without one, the value) reaches the target; None where there is none."""
    number, target = result.get("ratio", result.get("value")), str(result.get("target", ""))
    if between := re.fullmatch(r"\s*([\d.]+)-([\d.]+)\s*", target):
        return isinstance(number, (int, float)) and float(between[1]) <= number <= float(between[2])
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*([\d.eE+-]+)\s*\S*\s*", target)
    if found is None or not isinstance(number, (int, float)):
        return None
    return COMPARE[found[1]](number, float(found[2]))


def shown(value: object) -> str:
    """A number with as many digits as one reads."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value).replace("|", "/")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    rows = ["| benchmark | measured | ours | unit | peer | ratio | target | met | details |", "|---|---|--:|---|--:|--:|--:|---|---|"]
    for result in results:
        details = ", ".join(f"{key} {shown(value)}" for key, value in result.items() if key not in (*COLUMNS, "benchmark"))
        verdict = {True: "yes", False: "no", None: ""}[met(result)]
        cells = [result["benchmark"], *(shown(result.get(key)) for key in COLUMNS), verdict, details]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def store(path: Path, facts: dict, results: list[dict]) -> list[dict]:
    """Write `results` over those of the same benchmarks in `path`; all that the file then holds."""
    ran = {result["benchmark"] for result in results}
    old = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    merged = [result for result in old if result["benchmark"] not in ran] + results
    path.parent.mkdir(exist_ok=True)
    lines = ",\n  ".join(json.dumps(result) for result in merged)
    text = f'{{"machine": {json.dumps(facts)},\n "date": "{time.strftime("%Y-%m-%d")}",\n "results": [\n  {lines}\n ]}}\n'
    path.write_text(text, encoding="utf-8")
    return merged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run, as in bench_NAME.py (all)")
    parser.add_argument("--table", action="store_true", help="print the stored results of this machine and run nothing")
    options = parser.parse_args()

    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    if unknown := set(options.names) - set(scripts):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(scripts) or 'none yet'}")
    facts = machine()
    path = HERE / "results" / f"{slug(facts)}.json"
    if options.table:
        print(table(json.loads(path.read_text(encoding="utf-8"))["results"]) if path.exists() else f"nothing stored for {path.stem}")
        return 0

    runs = {name: run(scripts[name]) for name in options.names or scripts}
    results = [result for found, _ in runs.values() for result in found]
    failed = [name for name, (_, code) in runs.items() if code]
    if results:
        print(f"\n{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}, numpy {facts['numpy']}\n")
        print(table(store(path, facts, results)))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
