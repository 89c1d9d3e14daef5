"""The house: arrows go down only, and what answers at once imports nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "bitsandbytes", "sklearn"}
# Rooms that may import torch at module level; every other file is light, and imports what is heavy inside functions.
HEAVY_ROOMS = {
    "hf_recipes.evaluation.exact",
    "hf_recipes.training.sample_text",
    "hf_recipes.models.half_precision",
    "hf_recipes.training.master_weights",
    "hf_recipes.training.trainer",
    "hf_recipes.training.step_timer",
    "hf_recipes.plan.measure.gpu",
    "hf_recipes.evaluation.compute_metrics",
    "hf_recipes.evaluation.scoring",
    "hf_recipes.checkpoints.saving",
    "hf_recipes.checkpoints.loop_state",
    "hf_recipes.training.stop_callback",
    "hf_recipes.training.trainable_parts",
    "hf_recipes.training.step_guard",
    "hf_recipes.training.trackers",
    "hf_recipes.training.out_of_memory",
    "hf_recipes.training.batch_split",
}
# `python -m hf_recipes.run` is the verb `run`: the module that is a command calls the one that parses.
SCRIPTS = {("hf_recipes.run", "hf_recipes.cli")}


def _modules(root: Path) -> dict[str, ast.Module]:
    found = {}
    for path in sorted((root / "hf_recipes").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Names of imported modules; `if TYPE_CHECKING:` blocks are no imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node, inside_functions=inside_functions)


def test_arrows_go_down_only(root: Path) -> None:
    modules = _modules(root)
    arrows = {
        name: {
            found
            for found in _imports(tree, inside_functions=True)
            if found in modules and found != name and (name, found) not in SCRIPTS and not name.startswith(f"{found}.")
        }
        for name, tree in modules.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as circle:
        raise AssertionError(f"these files import each other: {' -> '.join(circle.args[1])}") from None


def test_only_the_rooms_that_compute_import_what_is_heavy(root: Path) -> None:
    heavy = {
        name
        for name, tree in _modules(root).items()
        if any(found.partition(".")[0] in HEAVY for found in _imports(tree, inside_functions=False))
    }
    # the evaluate modules are loaded by evaluate itself
    assert {
        name for name in heavy if not name.startswith(("hf_recipes.evaluation.metrics.", "hf_recipes.plan."))
    } <= HEAVY_ROOMS
    assert heavy >= HEAVY_ROOMS - {"hf_recipes.evaluation.scoring"}
