"""What `hf-recipes --help` and `hf-recipes check` cost: CPU seconds of a process, and times those of `python -c pass`.

    python benchmarks/check_speed.py                      into benchmarks/results/check_speed.json
    python benchmarks/check_speed.py --tree OTHER         another checkout of this repository: printed only

A busy machine stretches every figure, so the commands take turns within a round and the best of the rounds counts; the
ratios to `pass`, which is measured beside them, say more than the seconds. Bytecode and the schema's cache lie in
folders of the measurement's own:

pass         python -c pass
help         hf-recipes --help
warm         check of each recipe, its schema in the cache
first        check with an empty cache, which is written
unwritable   check with a cache folder that cannot be written
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks/results/check_speed.json"
RECIPES = ("recipes/rtx3070.yaml", "recipes/phi2-a10g-high.yaml", "recipes/quickstart-tokens.yaml")
ROUNDS = 7


def cpu_seconds(command: list[str], environment: dict[str, str], tree: Path) -> float:
    """User and system time of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(tree: Path, rounds: int) -> dict[str, float]:
    """Best CPU seconds by name."""
    python = sys.executable
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "XDG_CACHE_HOME")}
        plain |= {"PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        warm = {**plain, "XDG_CACHE_HOME": f"{folder}/warm"}
        first = {**plain, "XDG_CACHE_HOME": f"{folder}/first"}
        unwritable = {**plain, "XDG_CACHE_HOME": f"{folder}/file"}
        Path(folder, "file").write_text("")
        commands = {"pass": ([python, "-c", "pass"], plain), "help": ([python, "-m", "hf_recipes", "--help"], plain)}
        for recipe in RECIPES:
            for kind, environment in (("warm", warm), ("first", first), ("unwritable", unwritable)):
                commands[f"{kind} {recipe}"] = ([python, "-m", "hf_recipes", "check", recipe], environment)
        for turn in range(rounds + 1):
            for name, (command, environment) in commands.items():
                shutil.rmtree(f"{folder}/first", ignore_errors=True)
                seconds = cpu_seconds(command, environment, tree)
                if turn:  # the first round writes bytecode and the warm cache
                    best[name] = min(seconds, best.get(name, seconds))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    best = measure(arguments.tree.resolve(), arguments.rounds)
    found: dict[str, Any] = {
        name: {"cpu_seconds": round(seconds, 3), "times_pass": round(seconds / best["pass"], 2)}
        for name, seconds in best.items()
    }
    for name, row in found.items():
        print(f"{name:45s} {row['cpu_seconds']:.3f} s  {row['times_pass']:5.2f} x pass")
    if arguments.tree == ROOT:
        record = {"python": platform.python_version(), "rounds": arguments.rounds, "commands": found}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
