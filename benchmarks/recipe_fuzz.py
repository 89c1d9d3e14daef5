"""Mutants of every recipe through `check` and `upgrade`, and settings that upstream's own classes construct.

    python benchmarks/recipe_fuzz.py                      20,000 mutants and 2,000 settings: some minutes on 2 cores
    python benchmarks/recipe_fuzz.py --mutants 500 --settings 0

Each mutant is one recipe with its text, keys, values, encoding, aliases or tags changed, or settings on the command
line; one in a hundred is a file of up to 1 MB. Counted are tracebacks, answers that took more than 2 s of CPU, and
planted tokens that a message shows: 0 of each. Workers are forked after everything is imported, and read the files as
`hf-recipes check` and `hf-recipes upgrade` do.

A setting is a random choice of keys and values of one class of upstream, which is constructed for real. Where that
works, `check` must accept it, or refuse it for a reason that is listed in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recipe_mutants import SHOWN, mutate
from recipe_settings import describe_settings, run_settings

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks/results/recipe_fuzz.json"
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("docs/examples/*.yaml")])
MOST_SECONDS = 2.0
CHUNK = 250


def try_mutant(data: bytes, arguments: list[str]) -> dict[str, Any]:
    """What `check` and `upgrade` made of it: CPU seconds, a traceback or None, and whether a token is shown."""
    from hf_recipes.commands.check import check, upgrade_file
    from hf_recipes.errors import RecipeError

    Path("mutant.yaml").write_bytes(data)
    began, lines, trace = time.process_time(), [], None
    try:
        lines, _ = check("mutant.yaml", arguments)
    except Exception:
        trace = traceback.format_exc()
    seconds = time.process_time() - began
    began = time.process_time()
    try:
        translations, text = upgrade_file("mutant.yaml", dry_run=True)
        lines = [*lines, *translations, text]
    except RecipeError as error:
        lines = [*lines, *map(str, error.errors)]
    except Exception:
        trace = trace or traceback.format_exc()
    seconds = max(seconds, time.process_time() - began)
    return {
        "cpu": seconds,
        "traceback": trace,
        "shown": SHOWN in "\n".join(lines),
    }


def run_chunk(seed: int, count: int) -> dict[str, Any]:
    """`count` mutants drawn with a seed; only what went wrong is kept."""
    rng = random.Random(seed)
    texts = [path.read_text(encoding="utf-8") for path in RECIPES]
    slowest, wrong = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(count):
            data, arguments = mutate(rng, texts)
            found = try_mutant(data, arguments)
            slowest = max(slowest, found["cpu"])
            if found["traceback"] or found["shown"] or found["cpu"] > MOST_SECONDS:
                wrong.append(
                    {"seed": seed, "number": number, **found, "data": repr(data[-300:]), "arguments": arguments}
                )
        os.chdir(ROOT)
    return {"count": count, "slowest": slowest, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--settings", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=RECORD)
    asked = parser.parse_args()
    import hf_recipes.commands.check
    import hf_recipes.data.splits  # noqa: F401

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    run_chunk(-1, 3)  # everything that is imported late, before the workers fork
    record: dict[str, Any] = {"python": platform.python_version(), "seed": asked.seed}
    for key, total in mutants_and_settings(asked).items():
        record[key] = total
    asked.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key != "settings"}, indent=1)[:3000])


def mutants_and_settings(asked: argparse.Namespace) -> dict[str, Any]:
    counts = [min(CHUNK, asked.mutants - start) for start in range(0, asked.mutants, CHUNK)]
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("fork")) as pool:
        chunks = list(pool.map(run_chunk, range(asked.seed, asked.seed + len(counts)), counts))
    wrong = [one for chunk in chunks for one in chunk["wrong"]]
    found: dict[str, Any] = {
        "mutants": {
            "count": sum(counts),
            "tracebacks": sum(bool(one["traceback"]) for one in wrong),
            "over_2_seconds": sum(one["cpu"] > MOST_SECONDS for one in wrong),
            "tokens_shown": sum(one["shown"] for one in wrong),
            "slowest_cpu_seconds": round(max((chunk["slowest"] for chunk in chunks), default=0.0), 2),
            "wrong": wrong[:50],
        }
    }
    if asked.settings:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found["settings"] = describe_settings(pool.submit(run_settings, asked.seed, asked.settings).result())
    return found


if __name__ == "__main__":
    main()
