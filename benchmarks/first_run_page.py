"""docs/first-run.md, from benchmarks/results/first_run.json, which `python benchmarks/first_run.py` writes.

python benchmarks/tables.py     writes the page with the other generated ones
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parent / "results" / "first_run.json"
TITLES = {
    "reviews.csv": "A CSV file with classes",
    "messages.jsonl": "Conversations: messages",
    "sharegpt.jsonl": "Conversations: ShareGPT",
    "names.conll": "A CoNLL file with entities",
    "novel.txt": "A text file",
}
OTHERS = re.compile(
    r"^Failed to load CPU gemm_4bit|real_accelerator\.py|site-packages/.*Warning: |^  (warnings\.)?warn\("
)
INTRODUCTION = """# From a data file to a model in use

What `python benchmarks/first_run.py` typed and saw: the package installed from its wheel into a new environment, in an
empty folder, on a CPU, without the Hub. Each file is small, so that all of it takes minutes, and the model starts from
random weights (`--model scratch`), so that nothing is downloaded: the commands are the point here, not the scores. With
a Hub or a model's folder, leave `--model scratch` out or name the folder.

Lines in which other packages warn of themselves are left out. A slow test runs the same script. This page is made of
its record (`benchmarks/results/first_run.json`).
"""


def page() -> str:
    """The page's text."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    how = "every package installed anew" if record["installed"] else "the other packages shared with the clone's"
    parts = [INTRODUCTION, f"Here: Python {record['python']}, {record['machine']}; {how}.\n"]
    for number, (file, steps) in enumerate(record["files"].items()):
        parts.append(f"## {TITLES[file]}\n\n`{file}`: `init` says what it takes it for, and writes a recipe.\n")
        for step in steps:
            parts.append(_block(step, complete=number == 0))
            if "recipe" in step and number == 0:
                parts.append(f"The recipe:\n\n```yaml\n{step['recipe'].rstrip()}\n```\n")
    return "\n".join(parts)


def _block(step: dict[str, Any], *, complete: bool) -> str:
    lines = [line for line in step["output"].rstrip().splitlines() if not OTHERS.search(line)]
    if not complete and step["command"].startswith("hf-recipes run"):
        end = next((i for i, line in enumerate(lines) if line.startswith("finished after")), 0)
        lines = ["...", *lines[end:]]
    return "\n".join(["```console", f"$ {step['command']}", *lines, "```", ""])
