"""The table of shapes: every number in it is counted on the meta device, where a model weighs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hf_recipes.catalog.model_shapes import READ_BY_GETATTR
from hf_recipes.catalog.presets import PRESETS, SHAPES, Preset

# One name of each shape: a model and its -Instruct share theirs.
EVERY_SHAPE = {**{f"preset {name}": preset for name, preset in PRESETS.items()}} | {
    name: preset for preset, name in reversed({id(preset): (preset, name) for name, preset in SHAPES.items()}.values())
}


def build(preset: Preset):
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**preset.config)
    with torch.device("meta"):
        return getattr(transformers, preset.auto_class).from_config(config)


@pytest.mark.parametrize("name", EVERY_SHAPE)
def test_the_stated_number_of_parameters_is_what_upstream_builds(name):
    model = build(EVERY_SHAPE[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == EVERY_SHAPE[name].parameters


@pytest.mark.parametrize("name", EVERY_SHAPE)
def test_every_word_of_a_shape_is_a_field_of_upstreams_config_class(name):
    import transformers

    config = dict(EVERY_SHAPE[name].config)
    kind = config.pop("model_type")
    fields = set(transformers.CONFIG_MAPPING[kind].__dataclass_fields__) | READ_BY_GETATTR.get(kind, set())
    assert set(config) - fields == set()


@pytest.mark.parametrize("name", EVERY_SHAPE)
def test_every_shape_says_where_its_numbers_come_from(name):
    assert EVERY_SHAPE[name].source


def test_the_presets_are_the_guides_five():
    assert list(PRESETS) == ["gpt-tiny", "gpt-small", "gpt-medium", "gpt-300m", "gemma-270m"]


def test_the_guides_three_hundred_million_cannot_be_24_equal_blocks():
    blocks, embedding = 197_198_080, 51_463_168
    assert blocks % 24 != 0
    assert blocks + 2 * embedding == 300_124_416  # the tied matrix is counted twice
    config = PRESETS["gpt-300m"].config
    assert config["vocab_size"] * config["n_embd"] == embedding


def test_reading_the_table_loads_neither_torch_nor_transformers():
    code = "import sys, hf_recipes.catalog.presets; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
