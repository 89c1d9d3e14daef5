"""Whether two versions of this package plan the same, to the byte: a digest of each recipe's whole trace.

    python benchmarks/plan_digests.py before.json                    # in the older tree
    python benchmarks/plan_digests.py after.json --against before.json

Every allocation and release in its order, each module's peak, the work and the notes count; the seconds that the trace
took do not. Reserved bytes follow from the order. Nothing is read from the cache of earlier plans.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from hf_recipes.errors import RecipeError
from hf_recipes.plan.trace.cuda_allocator import replay_trace
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.worker import iterate_traces
from hf_recipes.recipe.global_batch import with_accumulation
from hf_recipes.recipe.read import read_recipe

ROOT = Path(__file__).resolve().parent.parent
CAPABILITIES = ((8, 0), (7, 5))  # an A100 and a T4: other attention, other workspaces
NOT_COMPARED = ("seconds",)


def digest(trace: Trace | RecipeError) -> dict[str, object]:
    """What a plan says, and a digest of what it is made of."""
    if isinstance(trace, RecipeError):
        return {"refused": str(trace)}
    reserved = replay_trace(trace)
    every = {name: value for name, value in asdict(trace).items() if name not in NOT_COMPARED}
    parts = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in every.items()
    }
    return {"allocated": trace.allocated, "reserved": reserved.peak, "events": len(trace.events), "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--against")
    words = parser.parse_args()
    paths = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    output, against = Path(words.output).resolve(), words.against and Path(words.against).resolve()
    os.chdir(ROOT)
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for capability in CAPABILITIES:
            recipes = [with_accumulation(read_recipe(path, ()), 1) for path in paths]
            for path, trace in zip(paths, iterate_traces(recipes, workers=1, capability=capability), strict=True):
                found[f"{path} {capability[0]}.{capability[1]}"] = digest(trace)
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} plans in {output}")
    if against is None:
        return
    before = json.loads(against.read_text(encoding="utf-8"))
    differing = [name for name in found if found[name] != before.get(name)]
    for name in differing:
        print(f"{name}: {before.get(name)} -> {found[name]}")
    print(f"{len(found) - len(differing)} of {len(found)} plans are the same to the byte")


if __name__ == "__main__":
    main()
