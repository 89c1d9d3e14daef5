"""What merging an adapter changes: `python benchmarks/merging.py`, about ten minutes of one core; needs the assets of
recipes/data/prepare.py (smollm2, chitchat).

Trains recipes/quickstart-chat.yaml for a few steps, merges its adapter into SmolLM2-135M-Instruct in each dtype, and
writes the largest difference of a logit and the validation perplexity before and after into results/merging.json.
`python benchmarks/tables.py` makes the table of docs/using.md of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "merging.json"
STEPS, ROWS = 6, 8
DTYPES = ("float32", "bfloat16")


def measure(folder: Path) -> list[dict[str, Any]]:
    from hf_recipes.api import run
    from hf_recipes.inference.merge import merge
    from hf_recipes.inference.trained import find_trained

    changes = {
        "output_dir": str(folder / "run"), "max_steps": STEPS, "eval_on_start": False, "eval_strategy": "no",
        "save_strategy": "no",
    }  # fmt: skip
    split = {"train": "train", "validation": f"validation[:{ROWS}]"}
    overrides = {**{f"SFTConfig.{key}": value for key, value in changes.items()}, "dataset.split": split}
    trained = run("recipes/quickstart-chat.yaml", overrides=overrides).folder
    data = folder / "rows.jsonl"
    with open("runs/assets/chitchat/validation.jsonl", encoding="utf-8") as rows:
        data.write_text("".join(next(rows) for _ in range(ROWS)), encoding="utf-8")
    found = []
    for dtype in DTYPES:
        one = merge(find_trained(str(trained)), str(folder / dtype), dtype=dtype, data=str(data), cpu=True)
        assert one.before is not None and one.after is not None
        metrics = [each.metrics["perplexity"] for each in (one.before, one.after)]
        found.append({"dtype": dtype, "difference": one.difference, "largest": one.largest, "perplexity": metrics})
        shutil.rmtree(folder / dtype)
    return found


def table() -> str:
    """Of docs/using.md."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = ["| written in | largest difference of a logit | logits reach | perplexity, adapter → merged |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in record["rows"]:
        before, after = row["perplexity"]
        lines.append(
            f"| {row['dtype']} | {row['difference']:.2g} | {row['largest']:.0f} | {before:.4f} → {after:.4f} |"
        )
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if name != "hf_recipes")
    steps = f"SmolLM2-135M-Instruct with LoRA after {record['steps']} steps, {record['rows_of_data']} conversations"
    return "\n".join([*lines, "", f"{steps}; {versions}; {record['when'][:10]}."])


def main() -> None:
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from torture.record import provenance

    with tempfile.TemporaryDirectory(prefix="merging-") as folder:
        rows = measure(Path(folder))
    record = {**provenance(), "steps": STEPS, "rows_of_data": ROWS, "rows": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
