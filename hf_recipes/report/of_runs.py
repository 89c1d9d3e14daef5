"""One page of many runs: a table that filters and sorts, chosen curves, the settings that differ.

The page is runs.html.j2; everything that it draws stands in it as JSON, and it loads nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

from hf_recipes.common.text import as_yaml
from hf_recipes.record import RunRecord
from hf_recipes.report.page import PAGE
from hf_recipes.report.plots import VARIABLES

POINTS = 300  # of a curve; more are left out evenly
LONGEST = 80  # characters of a setting
NOT_A_CURVE = ("step", "epoch", "total_flos", "num_input_tokens_seen", "num_tokens", "train_loss", "train_runtime")
NOT_A_SETTING = ("output_dir", "run_name", "hub_model_id", "logging_dir")


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run as the page shows it. `reason`: why it has not finished; `interval`: "90.1 to 94.2" """

    name: str
    status: str
    failed: bool
    reason: str
    task: str
    model: str
    steps: int | None
    metric: str
    value: float | None
    interval: str
    peak_gib: float | None
    tokens_per_second: float | None
    ended: str
    settings: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def read_settings(record: RunRecord) -> dict[str, str]:
    """Dotted key -> value as YAML, of what a recipe says."""
    found: dict[str, str] = {}
    for name, part in record.recipe.sections.items():
        pairs = part.items() if isinstance(part, Mapping) else [("", part)]
        for key, value in pairs:
            if key not in NOT_A_SETTING:
                text = as_yaml(value)
                found[f"{name}.{key}" if key else name] = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return found


def read_curves(record: RunRecord) -> dict[str, list[tuple[float, float]]]:
    """What was logged more than once, as (step, value)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in record.log_history:
        for key, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and key not in NOT_A_CURVE and not key.endswith(("_runtime", "_per_second")):
                found.setdefault(str(key), []).append((float(entry.get("step", 0)), float(value)))
    return {key: _thinned(points) for key, points in found.items() if len(points) > 1}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def differing_settings(runs: Sequence[RunEntry]) -> list[str]:
    """The keys whose values are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def page_of_runs(runs: Sequence[RunEntry], title: str) -> str:
    """The page's text."""
    from jinja2 import Environment, StrictUndefined

    data: dict[str, Any] = {"runs": [asdict(run) for run in runs], "differing": differing_settings(runs)}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":  # so that no text of a record ends the script
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("hf_recipes.report").joinpath("runs.html.j2").read_text(encoding="utf-8")
    colours = [*PAGE, *VARIABLES.values()]
    return environment.from_string(template).render(title=title, data=text, colours=colours, count=len(runs)) + "\n"
