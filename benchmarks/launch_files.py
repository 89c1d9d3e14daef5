"""What each file of accelerate_configs/ has really run on: recipes/gpt-300m-4xa100.yaml in its smoke form under each.

    python benchmarks/launch_files.py          all files that this machine can start, two at a time

Writes benchmarks/results/launch_files.json; `python benchmarks/tables.py` makes the table of docs/launching.md of it.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/launch_files.json"
sys.path[:0] = [str(ROOT)]

from tests.support.launch_files import FILES, start  # noqa: E402

RECIPE = ROOT / "recipes/gpt-300m-4xa100.yaml"
SIDE_BY_SIDE = 2


def measure(name: str) -> dict[str, Any]:
    """One file: the smoke run under it."""
    with tempfile.TemporaryDirectory() as folder:
        status, output = start(name, Path(folder), [str(RECIPE), "--smoke"], seconds=3600)
        if status:
            return {"file": name, "status": f"exit status {status}", "error": output[-2000:]}
        return describe(name, Path(folder))


def describe(name: str, folder: Path) -> dict[str, Any]:
    """What the run in `folder` says of itself, and whether its model loads in plain transformers."""
    from transformers import AutoModelForCausalLM

    (path,) = folder.glob("runs/*/record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    losses = [one["loss"] for one in record["log_history"] if "loss" in one]
    model = AutoModelForCausalLM.from_pretrained(str(path.parent))
    loaded = all(bool(tensor.isfinite().all()) for tensor in model.parameters())
    return {
        "file": name,
        "status": record["status"],
        "ranks": record["batch"]["processes"],
        "steps": record["steps"],
        "losses": losses,
        "eval_loss": record["metrics"]["eval"]["eval_loss"],
        "loads": loaded and math.isfinite(losses[-1]),
    }


def main() -> None:
    import transformers.models.auto  # noqa: F401  before the threads, which would import it at once

    names = sys.argv[1:] or list(FILES)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        rows = list(pool.map(measure, names))
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "deepspeed")}
    body = {"date": datetime.date.today().isoformat(), "packages": packages, "rows": rows}
    RESULT.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print({key: value for key, value in row.items() if key != "error"}, row.get("error", "")[-1500:])


if __name__ == "__main__":
    main()
