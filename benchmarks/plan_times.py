"""CPU seconds of `hf-recipes plan`, first and second call, beside `import transformers.trainer`, in one run, one core.

    python benchmarks/plan_times.py [--times 5] [RECIPE...]     # default: all recipes; continues its record

A record of another commit is not continued: it begins again. Each first call has an empty cache of its own. Times are
of the whole process and its tracing child (user and system). The record, results/plan_times.json, makes the table in
docs/methods/plan.md (`python benchmarks/tables.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hf_recipes.common.environment import package_commit

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "plan_times.json"
SEARCHED = ("rtx3070", "gpt-small-wikitext103", "phi2-a10g-low")
IMPORT = [sys.executable, "-c", "import transformers.trainer"]


def seconds(command: list[str], cache: str) -> tuple[float, float]:
    """(CPU, wall clock) seconds of a command with its children."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, wall


def measure(name: str) -> dict[str, float]:
    """One run of one recipe."""
    command = [sys.executable, "-m", "hf_recipes", "plan", f"recipes/{name}.yaml", "--gpu", "a100-40gb", "--no-advice"]
    with tempfile.TemporaryDirectory() as cache:
        found = {"import": seconds(IMPORT, cache)[0]}
        seconds([sys.executable, "-m", "hf_recipes", "check", f"recipes/{name}.yaml"], cache)  # upstream's fields
        found["first"] = seconds(command, cache)[0]
        found["second"] = seconds(command, cache)[0]
        if name in SEARCHED:
            found["search_wall"] = seconds([*command, "--search"], cache)[1]
    return {key: round(value, 2) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("recipes", nargs="*")
    words = parser.parse_args()
    every = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    names = words.recipes or [*SEARCHED, *(name for name in every if name not in SEARCHED)]
    rows: dict[str, list[dict[str, float]]] = {}
    commit = package_commit()
    before = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    if before.get("commit") == commit:
        rows = {row["recipe"]: row["runs"] for row in before["rows"]}
    for round_ in range(
        words.times
    ):  # each recipe once, before any of them again: a stop leaves every recipe's medians
        for name in names:
            if len(rows.get(name, [])) > round_:
                continue
            rows.setdefault(name, []).append(measure(name))
            lines = ",\n".join(" " + json.dumps({"recipe": one, "runs": rows[one]}) for one in sorted(rows))
            RECORD.write_text(f'{{"commit": {json.dumps(commit)}, "rows": [\n' + lines + "\n]}\n", encoding="utf-8")
            print(name, rows[name][-1], flush=True)


if __name__ == "__main__":
    main()
