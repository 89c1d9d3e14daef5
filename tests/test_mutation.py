"""The mutation tester plants what it says, puts it back, and its record keeps what was promised."""

from __future__ import annotations

import ast
from pathlib import Path

import mutants
import mutation
import mutation_page

SOURCE = '''
LIMIT = 10

def judge(values, strict=True):
    """Text that says 1 < 2."""
    total = 0
    for value in values:
        if value < LIMIT and not strict:
            continue
        total += value
    print(f"{total + 1}")
    return total - 1 if strict else None
'''


def test_each_mutant_is_one_edit_and_the_tree_is_put_back() -> None:
    tree = ast.parse(SOURCE)
    found = mutants.mutants(tree)
    assert ast.unparse(tree) == ast.unparse(ast.parse(SOURCE))
    shown = {(one.kind, one.before, one.after) for one in found}
    condition = "if value < LIMIT and (not strict):"
    assert shown >= {
        ("constant", "LIMIT = 10", "LIMIT = 11"),
        ("constant", "def judge(values, strict=True)", "def judge(values, strict=False)"),
        ("comparison", condition, "if value <= LIMIT and (not strict):"),
        ("comparison", condition, "if value >= LIMIT and (not strict):"),
        ("and / or", condition, "if value < LIMIT or not strict:"),
        ("not dropped", condition, "if value < LIMIT and strict:"),
        ("statement removed", "continue", "(removed)"),
        ("arithmetic", "total += value", "total -= value"),
        ("arithmetic", "return total - 1 if strict else None", "return total + 1 if strict else None"),
        ("return value removed", "return total - 1 if strict else None", "return None"),
    }
    assert not any("1 > 2" in one.after or "total - 1}" in one.after for one in found)  # no text, no f-string
    for one in found:
        old = one.edit.swap(one.edit.new)
        changed = ast.unparse(ast.fix_missing_locations(tree))
        one.edit.swap(old)
        assert changed != ast.unparse(ast.parse(SOURCE)), one


def test_every_module_and_test_of_the_table_is_there(root: Path) -> None:
    for modules, tests, _ in mutation.GROUPS:
        assert [path for path in modules if not (root / "hf_recipes" / path).is_file()] == []
        assert [path for path in tests if not (root / path).exists()] == []


def test_the_committed_record_notices_what_was_promised_and_covers_every_module() -> None:
    record = mutation_page.read_record()
    assert [one["module"] for one in record["modules"]] == [path for paths, _, _ in mutation.GROUPS for path in paths]
    assert mutation_page.noticed_share(record) >= 0.85
    for one in record["modules"]:
        assert one["tried"] == one["noticed"] + len(one["survivors"]) and one["tried"] <= one["mutants"]
