"""The part of docs/testing.md about odd recipes, of benchmarks/results/recipe_fuzz.json."""

from __future__ import annotations

import json

from recipe_fuzz import RECORD
from recipe_settings import reason_of


def section() -> str:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    mutants, settings = record["mutants"], record["settings"]
    built = ", ".join(f"{name} {count:,}" for name, count in sorted(settings["built"].items(), key=lambda one: -one[1]))
    lines = [
        "",
        "## Is there a recipe that `check` cannot answer?",
        "",
        "Every recipe of this repository is changed at random: its text, keys, values, encoding, aliases and tags; one",
        "file in a hundred grows to as much as 1 MB, and tokens are planted. `check` and `upgrade` read each.",
        "",
        "```sh",
        "python benchmarks/recipe_fuzz.py",
        "```",
        "",
        "| mutants | tracebacks | over 2 s of CPU | tokens shown | slowest |",
        "| --- | --- | --- | --- | --- |",
        f"| {mutants['count']:,} | {mutants['tracebacks']} | {mutants['over_2_seconds']} | {mutants['tokens_shown']} "
        f"| {mutants['slowest_cpu_seconds']} s |",
        "",
        "## Does `check` refuse what upstream takes?",
        "",
        f"{settings['count']:,} random settings that upstream's own classes construct ({built}):",
        f"{settings['accepted']:,} are accepted, {settings['refused']} are refused. The reasons, most frequent first:",
        "",
        "| refused | message (N is a number) | why |",
        "| --- | --- | --- |",
    ]
    for message, about in settings["reasons"].items():
        lines.append(f"| {about['count']} | {message.replace('|', chr(92) + '|')} | {reason_of(message)} |")
    return "\n".join(lines) + "\n"
