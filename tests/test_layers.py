"""The house: every import goes down, and what answers at once imports nothing heavy."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# Top to bottom. An entry imports entries of lower layers only; entries on one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__", "run"),
    ("cli", "api"),
    ("commands",),
    ("pipeline",),
    ("inference",),
    ("plan",),
    ("report", "training"),
    ("compare", "models"),
    ("evaluation", "checkpoints", "hub"),
    ("data", "record"),
    ("recipe",),
    ("catalog",),
    ("common",),
    ("errors",),
    ("__init__",),
)
MOST_ENTRIES = 22
# The folders of `plan`, in the same way.
PLAN_LAYERS: tuple[tuple[str, ...], ...] = (("measure", "preflight"), ("fit",), ("time",), ("trace",))
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "bitsandbytes", "sklearn"}
# Files that may import torch when they are imported; every other file imports what is heavy inside functions.
HEAVY_FILES = {
    "hf_recipes.evaluation.exact",
    "hf_recipes.evaluation.length_order",
    "hf_recipes.data.streamed_rows",
    "hf_recipes.training.sample_text",
    "hf_recipes.models.half_precision",
    "hf_recipes.training.master_weights",
    "hf_recipes.training.trainer",
    "hf_recipes.training.plain_head",
    "hf_recipes.training.classification_loss",
    "hf_recipes.training.step_timer",
    "hf_recipes.training.step_work",
    "hf_recipes.training.even_ranks",
    "hf_recipes.evaluation.compute_metrics",
    "hf_recipes.checkpoints.saving",
    "hf_recipes.checkpoints.loop_state",
    "hf_recipes.checkpoints.settings",
    "hf_recipes.checkpoints.sharded",
    "hf_recipes.checkpoints.zero",
    "hf_recipes.training.stop_callback",
    "hf_recipes.training.trainable_parts",
    "hf_recipes.training.step_guard",
    "hf_recipes.training.screen",
    "hf_recipes.training.trackers",
    "hf_recipes.training.out_of_memory",
    "hf_recipes.training.overrides",
    "hf_recipes.training.trainer_members",
    "hf_recipes.training.window",
    "hf_recipes.training.batch_split",
}


@functools.cache
def _modules(root: Path) -> Mapping[str, ast.Module]:
    found = {}
    for path in sorted((root / "hf_recipes").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _imports(name: str, tree: ast.AST, modules: Mapping[str, ast.Module]) -> set[tuple[str, int]]:
    """(imported module of ours, line): plain imports, those inside functions and those for types only."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            while full and full not in modules:
                full = full.rpartition(".")[0]
            if full and full != name:
                found.add((full, node.lineno))
    return found


def _entry(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward_imports(modules: Mapping[str, ast.Module]) -> list[str]:
    """One line for each import that does not go to a lower layer."""
    rank = {entry: n for n, layer in enumerate(LAYERS) for entry in layer}
    inner = {folder: n for n, layer in enumerate(PLAN_LAYERS) for folder in layer}
    wrong = []
    for name, tree in modules.items():
        for found, line in sorted(_imports(name, tree, modules)):
            here, there = _entry(name), _entry(found)
            if here != there and rank[there] <= rank[here]:
                wrong.append(f"{name}:{line} imports {found}")
            a, b = name.split(".")[2:3], found.split(".")[2:3]
            if here == there == "plan" and a != b and a and b and inner.get(b[0], 99) <= inner.get(a[0], -1):
                wrong.append(f"{name}:{line} imports {found}")
    return wrong


def test_the_package_has_few_entries_each_on_a_layer(root: Path) -> None:
    entries = {
        path.stem for path in (root / "hf_recipes").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert entries == {entry for layer in LAYERS for entry in layer}
    assert len(entries) <= MOST_ENTRIES


def test_every_import_goes_to_a_lower_layer(root: Path) -> None:
    assert upward_imports(_modules(root)) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from hf_recipes.training.trainer import build_trainer",
        "import hf_recipes.training.trainer",
        "from hf_recipes.training import trainer",
        "def work():\n    from hf_recipes.training.trainer import build_trainer",
        "if TYPE_CHECKING:\n    from hf_recipes.training.trainer import build_trainer",
    ],
)
def test_a_planted_upward_import_is_found(root: Path, planted: str) -> None:
    modules = dict(_modules(root))
    modules["hf_recipes.data.planted"] = ast.parse(planted)
    line = planted.count("\n") + 1
    assert upward_imports(modules) == [f"hf_recipes.data.planted:{line} imports hf_recipes.training.trainer"]


def test_no_two_files_import_each_other(root: Path) -> None:
    modules = _modules(root)
    arrows = {
        name: {found for found, _ in _imports(name, tree, modules) if not name.startswith(f"{found}.")}
        for name, tree in modules.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as circle:
        raise AssertionError(f"these files import each other: {' -> '.join(circle.args[1])}") from None


def test_no_file_imports_a_name_with_an_underscore_from_another(root: Path) -> None:
    found = [
        f"{name}:{node.lineno} {alias.name}"
        for name, tree in _modules(root).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_recipes")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
    assert found == []


def _when_imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported when the file is."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _when_imported(node)


def test_only_the_files_that_compute_import_what_is_heavy(root: Path) -> None:
    heavy = {
        name
        for name, tree in _modules(root).items()
        if any(found.partition(".")[0] in HEAVY for found in _when_imported(tree))
    }
    # the evaluate modules are loaded by evaluate itself; plan traces in a process of its own
    elsewhere = ("hf_recipes.evaluation.metrics.", "hf_recipes.plan.")
    assert {name for name in heavy if not name.startswith(elsewhere)} == HEAVY_FILES
