"""Published shapes for `check` and `plan` offline (model_shapes.json), joined into presets.SHAPES.

Imports neither torch nor transformers. Each config has the fields of the model's own config.json that have a shape;
tests/catalog/test_presets.py holds it to the published number of parameters, which it counts on meta. Heads, positions
and windows have no parameters and are not held by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

TABLE = "model_shapes.json"
# Fields of a published config.json that upstream's modeling file reads though its config class has no such field.
READ_BY_GETATTR = {"deberta-v2": {"position_buckets", "norm_rel_ebd", "share_att_key"}}
SOURCE = "config.json of the model; its parameters as published with its weights"


@dataclass(frozen=True, kw_only=True)
class PublishedShape:
    """One shape under all names that share it."""

    names: tuple[str, ...]  # on the Hub
    config: Mapping[str, Any]  # keyword arguments of AutoConfig.for_model
    parameters: int  # tied matrices once
    counted_as: str  # the Auto class that they are counted for


def published_shapes() -> list[PublishedShape]:
    """The rows of model_shapes.json."""
    table = json.loads((files("hf_recipes.catalog") / TABLE).read_text(encoding="utf-8"))
    return [PublishedShape(**{**row, "names": tuple(row["names"])}) for row in table["shapes"]]
