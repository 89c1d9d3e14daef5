"""docs/testing.md: what the tests notice, of benchmarks/results/mutation.json and mutation_reasons.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NO_REASON = "a test is missing"


def read_record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results/mutation.json").read_text(encoding="utf-8"))
    return found


def reason(module: str, survivor: dict[str, Any]) -> str:
    """The first row of mutation_reasons.json whose texts are in the survivor's."""
    for row in json.loads((HERE / "mutation_reasons.json").read_text(encoding="utf-8")):
        texts = {"module": module, **survivor}
        if all(str(row[name]) in str(texts[name]) for name in row if name != "reason"):
            return str(row["reason"])
    return NO_REASON


def noticed_share(record: dict[str, Any]) -> float:
    """Of all mutants that were tried."""
    tried = sum(one["tried"] for one in record["modules"])
    return sum(one["noticed"] for one in record["modules"]) / tried


def page() -> str:
    record = read_record()
    lines = [
        "# Do the tests notice?",
        "",
        "<!-- Written by `python benchmarks/tables.py`. -->",
        "",
        "A test suite can run a line without checking it. So small errors (mutants) are planted in the core, one at a",
        "time: a comparison flipped or moved by one, `and` for `or`, another arithmetic operator, another number, a",
        "condition negated, a statement or a returned value removed. The tests nearest to each then run. A mutant that",
        "no test notices survives, and shows a test that is missing, or code whose change changes nothing.",
        "",
        "```sh",
        "python benchmarks/mutation.py                       # every module of the table; hours on 2 cores",
        "python benchmarks/mutation.py compare/verdict.py    # one",
        "python benchmarks/mutation.py --sample 40           # a sample of each, drawn with a fixed seed",
        "```",
        "",
        "Texts are not changed, so no message's wording counts as noticed. Tests that start a process of their own (a",
        "launcher, a command line) run unchanged code there and notice nothing.",
        "",
        "## How many are noticed",
        "",
        "| module | possible mutants | tried | noticed | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in record["modules"]:
        share = f"{one['noticed'] / max(1, one['tried']):.0%}"
        lines.append(f"| `{one['module']}` | {one['mutants']} | {one['tried']} | {one['noticed']} | {share} |")
    mutants, tried, noticed = (sum(one[name] for one in record["modules"]) for name in ("mutants", "tried", "noticed"))
    lines.append(f"| **all** | {mutants:,} | {tried:,} | {noticed:,} | **{noticed_share(record):.1%}** |")
    lines += [
        "",
        f"Python {record['python']}, {record['date']}, seed {record['seed']}. Where fewer were tried than there are,",
        "they are a random sample of the module.",
        "",
        "## What survived, and why",
        "",
        "| where | change | why no test notices it |",
        "| --- | --- | --- |",
    ]
    for one in record["modules"]:
        for survivor in one["survivors"]:
            fault = f"{_code(survivor['before'])} → {_code(survivor['after'])}"
            lines.append(f"| `{one['module']}:{survivor['line']}` | {fault} | {reason(one['module'], survivor)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Inline code in a table's cell."""
    return "`` " + text.replace("|", "\\|") + " ``"
