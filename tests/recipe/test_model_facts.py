"""Which architecture a recipe names: the recipe, the presets, a file here, the published shapes, in this order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_recipes.catalog.presets import PRESETS, SHAPES
from hf_recipes.recipe.model_facts import PREPARED, ModelFacts, known_config, model_facts
from hf_recipes.recipe.recipe import Recipe


def recipe_with(model: dict, **sections: object) -> Recipe:
    return Recipe(path="a.yaml", sections={"task": "chat", "model": model, **sections}, locations={})


def test_an_inline_config_is_the_config() -> None:
    facts = model_facts({"config": {"model_type": "gpt2", "n_layer": 2}})
    assert facts == ModelFacts(config={"model_type": "gpt2", "n_layer": 2}, source="as the recipe says")
    assert model_facts({"config": {"model_type": 7}}).model_type == ""


def test_a_preset_is_looked_up_and_an_unknown_one_gives_nothing() -> None:
    facts = model_facts({"preset": "gpt-tiny"})
    assert (facts.config, facts.source) == (PRESETS["gpt-tiny"].config, "of the preset")
    for preset in ("gpt-tinny", ["gpt-tiny"], None, 3):
        assert model_facts({"preset": preset}) == ModelFacts()


def test_a_published_name_has_its_shape_from_either_key() -> None:
    for key in ("pretrained_model_name_or_path", "config"):
        assert model_facts({key: "gpt2"}) == ModelFacts(config=SHAPES["gpt2"].config, source="of gpt2")
        assert model_facts({key: "owner/unheard"}) == model_facts({key: 3}) == ModelFacts()


def test_a_folder_that_will_be_prepared_has_the_shape_of_what_goes_there(folder: Path) -> None:
    for path, name in PREPARED.items():
        facts = model_facts({"pretrained_model_name_or_path": f"{path}/"})
        assert (facts.config, facts.source) == (SHAPES[name].config, f"of {name}")


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "config"])
@pytest.mark.parametrize("name", ["gpt2", "./gpt2/config.json"])
def test_a_config_on_this_machine_wins_over_the_table_of_shapes(folder: Path, key: str, name: str) -> None:
    (folder / "gpt2").mkdir()
    (folder / "gpt2/config.json").write_text(json.dumps({"model_type": "llama"}))
    facts = model_facts({key: name})
    path = "gpt2/config.json" if name == "gpt2" else name
    assert facts == ModelFacts(config={"model_type": "llama"}, source=f"of {path}")


@pytest.mark.parametrize("text", ["[1]", "{}", '{"model_type": null}', "{", "\x00"])
def test_a_config_that_names_no_architecture_gives_the_reason(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    facts = model_facts({"config": "config.json"})
    assert facts.config == {} and facts.model_type == "" and facts.source == "of config.json"
    reason = "config.json has no model_type" if text[0] in "[{" and text != "{" else "config.json is not JSON ("
    assert facts.problem.startswith(reason)


def test_the_fields_that_a_recipe_sets_win_and_other_keys_of_the_model_are_no_fields() -> None:
    config = known_config(recipe_with({"preset": "gpt-tiny", "n_layer": 2, "dtype": "float16"}))
    assert config == {**PRESETS["gpt-tiny"].config, "n_layer": 2}
    assert known_config(recipe_with({"pretrained_model_name_or_path": "owner/unheard", "n_layer": 2})) == {}


def test_a_recipe_knows_where_its_length_is_written_and_whether_its_rows_are_generated() -> None:
    sft = recipe_with({}, SFTConfig={}, dataset={"path": "hf_recipes.smoke:chat"})
    plain = recipe_with({}, TrainingArguments={}, dataset={"path": "json"})
    assert (sft.max_length_key, sft.is_generated) == ("SFTConfig.max_length", True)
    assert (plain.max_length_key, plain.is_generated) == ("dataset.max_length", False)
