"""Each key below a data set of another tool's file is translated, or named with the reason why not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from datasets import Dataset

from hf_recipes.cli import commands
from hf_recipes.data.chat_rows import choose_reader
from hf_recipes.recipe.convert import LOST, NEEDLESS, Conversion, convert_file, recipe_text
from hf_recipes.recipe.convert_entry import leaves
from hf_recipes.recipe.read import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def axolotl(**keys) -> Conversion:
    values = {"base_model": "gpt2", "sequence_len": 64, "datasets": [{"path": "rows.jsonl", **keys}]}
    Path("a.yaml").write_text(yaml.safe_dump(values))
    return convert_file("a.yaml")


def factory(entry: dict, **keys) -> Conversion:
    Path("data").mkdir(exist_ok=True)
    Path("data/dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json", **entry}}))
    values = {"model_name_or_path": "gpt2", "stage": "sft", "dataset": "a", "cutoff_len": 64}
    Path("a.yaml").write_text(yaml.safe_dump({**values, "finetuning_type": "lora", **keys}))
    return convert_file("a.yaml")


def not_translated(made: Conversion) -> list[str]:
    """Below the data set: in the result, and as comments of the recipe that is written."""
    lost = [key for key, (fate, _) in made.fates.items() if fate == LOST and "[" in key]
    assert all(f"#   {key}: " in recipe_text(made) for key in lost)
    return lost


def data(made: Conversion) -> dict:
    ours = dict(made.sections["dataset"])
    del ours["path"], ours["data_files"]
    return ours


def texts(made: Conversion, **row: str) -> list[str]:
    """The messages that a run makes of the row."""
    Path("recipe.yaml").write_text(recipe_text(made))
    rows = Dataset.from_list([row])
    return [str(one["content"]) for one in choose_reader(read_recipe("recipe.yaml"), rows).read(rows[0]).messages]


def test_texts_around_columns_of_axolotl_are_templates():
    made = axolotl(type={"field_instruction": "q", "field_output": "a", "format": "Q: {instruction} A:\n"})
    assert texts(made, q="1+1", a="2") == ["Q: 1+1 A:\n", "2"]
    assert not_translated(made) == ["datasets[0].type"], "the model's chat template stands around them"


def test_a_system_prompt_and_a_format_for_empty_input_of_axolotl_are_templates():
    kind = {"field_instruction": "q", "field_input": "x", "field_output": "a", "field_system": "s"}
    kind |= {"system_prompt": "Judge {{ well }}.", "system_format": "<<{system}>>"}
    made = axolotl(type=kind | {"format": "{instruction} with {input}", "no_input_format": "{instruction} alone"})
    assert texts(made, q="do", x="it", a="done", s="Be") == ["<<Be>>", "do with it", "done"]
    assert texts(made, q="do", x="", a="done", s="") == ["<<Judge {{ well }}.>>", "do alone", "done"]


def test_plain_columns_of_axolotl_stay_plain_texts():
    made = axolotl(type={"field_instruction": "q", "field_output": "a", "system_prompt": ""})
    assert data(made) == {"prompt_column": "q", "completion_column": "a"} and not_translated(made) == []


def test_a_column_that_no_template_can_read_is_named():
    made = axolotl(type={"field_instruction": "my question", "field_output": "a", "format": "Q: {instruction}"})
    assert data(made) == {} and "datasets[0].type.field_instruction" in not_translated(made)
    made = factory({"columns": {"prompt": "my question", "response": "a"}})
    assert data(made) == {} and "dataset[a].columns.prompt" in not_translated(made)


def test_roles_of_axolotl_are_role_names_and_what_is_learned_otherwise_is_named():
    made = axolotl(
        type="chat_template",
        field_messages="dialog",
        message_property_mappings={"role": "speaker", "content": "text"},
        roles={"assistant": ["bot"], "user": ["me"], "judge": ["j"]},
        roles_to_train=["assistant", "user"],
        train_on_eos="all",
        train_on_eot="turn",
    )
    assert data(made) == {"messages_column": "dialog", "role_names": {"bot": "assistant", "me": "user"}}
    assert not_translated(made) == [
        "datasets[0].message_property_mappings.role",
        "datasets[0].message_property_mappings.content",
        "datasets[0].roles.judge",
        "datasets[0].roles_to_train",
        "datasets[0].train_on_eos",
    ]
    assert made.fates["datasets[0].train_on_eot"][0] == NEEDLESS


def test_what_axolotl_asks_for_as_it_is_here_is_not_lost():
    mapped = {"role": "from", "content": "value"}
    made = axolotl(type="chat_template", message_property_mappings=mapped, roles_to_train=["gpt"], train_on_eos="turn")
    assert not_translated(made) == [] and data(made) == {}


def test_a_test_set_of_axolotl_that_is_another_file_is_named():
    values = {"base_model": "gpt2", "sequence_len": 64, "datasets": [{"path": "a.jsonl", "split": "train"}]}
    for test, lost in (({"path": "b.jsonl", "split": "train"}, True), ({"path": "a.jsonl", "split": "test"}, False)):
        Path("a.yaml").write_text(yaml.safe_dump(values | {"test_datasets": [test]}))
        assert (convert_file("a.yaml").fates["test_datasets"][0] == LOST) is lost


def test_columns_of_llama_factory_are_read_through_the_chat_template():
    columns = {"prompt": "q", "query": "x", "response": "a", "history": "h", "system": "s"}
    made = factory({"columns": columns})
    assert texts(made, q="do", x="it", a="done", s="Be", h="") == ["Be", "do\nit", "done"]
    assert texts(made, q="do", x="", a="done", s="", h="") == ["do", "done"]
    assert not_translated(made) == ["dataset[a].columns.history"]


def test_the_system_column_beside_alpacas_own_columns_is_read():
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "sys"}
    made = factory({"columns": columns})
    assert data(made) == {"system_column": "sys"} and not_translated(made) == []
    assert texts(made, instruction="do", input="it", output="done", sys="Be") == ["Be", "do\nit", "done"]


def test_tags_of_llama_factory_are_role_names():
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "me", "assistant_tag": "bot"}
    made = factory({"formatting": "sharegpt", "columns": {"messages": "conv"}, "tags": tags})
    assert data(made) == {"messages_column": "conv", "role_names": {"me": "user", "bot": "assistant"}}
    assert not_translated(made) == []
    made = factory({"formatting": "sharegpt", "tags": {**tags, "role_tag": "r", "function_tag": "calls"}})
    names = ("role_tag", "content_tag", "function_tag")
    assert not_translated(made) == [f"dataset[a].tags.{name}" for name in names]


def test_text_of_llama_factorys_stage_pt_is_one_column():
    made = factory({"columns": {"prompt": "body", "response": "a"}}, stage="pt")
    assert made.sections["task"] == "causal-lm" and data(made) == {"text_column": "body"}
    assert not_translated(made) == ["dataset[a].columns.response"]


def test_a_part_of_the_rows_is_a_split_or_named():
    made = factory({"num_samples": 10, "split": "old"}, max_samples=20)
    assert data(made) == {"split": {"train": "old[:10]"}} and made.fates["max_samples"][0] == LOST
    assert factory({}, max_samples=20).fates["max_samples"][0] == NEEDLESS
    made = factory({"split": "train[:5%]"}, max_samples=20)
    assert data(made) == {"split": {"train": "train[:5%]"}} and made.fates["max_samples"][0] == LOST


def test_preferences_and_pictures_below_a_data_set_are_named():
    made = factory({"ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r", "images": "i"}})
    names = ("ranking", "columns.chosen", "columns.rejected", "columns.images")
    assert not_translated(made) == [f"dataset[a].{name}" for name in names]


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_quantised_weights_without_an_adapter_are_named(method):
    made = factory({}, finetuning_type=method, quantization_bit=4)
    assert made.fates["quantization_bit"] == (
        LOST,
        "quantised weights are trained through an adapter only, and this file asks for none",
    )
    assert "BitsAndBytesConfig" not in made.sections
    assert "BitsAndBytesConfig" in factory({}, quantization_bit=4).sections
    Path("a.yaml").write_text("base_model: a\ndatasets: [{path: a.jsonl}]\nload_in_4bit: true\nlora_r: 8\nadapter:\n")
    fates = convert_file("a.yaml").fates
    assert (fates["load_in_4bit"][0], fates["lora_r"][0]) == (LOST, NEEDLESS)


MESSAGES = {
    "type": "chat_template",
    "split": "train",
    "name": "en",
    "revision": "main",
    "field_messages": "dialog",
    "field_tools": "functions",
    "message_property_mappings": {"role": "from", "content": "value", "tool_calls": "calls"},
    "roles": {"assistant": ["bot"], "user": ["me"]},
    "roles_to_train": ["assistant"],
    "train_on_eos": "turn",
    "train_on_eot": "turn",
    "chat_template": "chatml",
    "drop_system_message": True,
    "shards": 4,
    "split_thinking": True,
}
COLUMNS = {
    "type": {
        "field_instruction": "q",
        "field_input": "x",
        "field_output": "a",
        "field_system": "s",
        "format": "{instruction}{input}",
        "no_input_format": "{instruction}",
        "system_format": "{system}!",
        "system_prompt": "Be",
    },
    "trust_remote_code": True,
}
ALPACA = {
    "subset": "en",
    "split": "train",
    "folder": "part",
    "num_samples": 5,
    "formatting": "alpaca",
    "ranking": False,
    "columns": {
        "prompt": "q",
        "query": "x",
        "response": "a",
        "history": "h",
        "system": "s",
        "tools": "t",
        "images": "i",
    },
}
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "m", "system": "s", "tools": "t"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "me", "observation_tag": "tool_says"},
}


@pytest.mark.parametrize(
    ("make", "prefix", "entry"),
    [
        (lambda entry: axolotl(**entry), "datasets[0]", MESSAGES),
        (lambda entry: axolotl(**entry), "datasets[0]", COLUMNS),
        (lambda entry: axolotl(**entry), "datasets[0]", {"type": "completion", "field": "body", "text_column": "body"}),
        (factory, "dataset[a]", ALPACA),
        (factory, "dataset[a]", SHAREGPT),
    ],
)
def test_each_leaf_changes_the_recipe_or_is_named(make, prefix, entry):
    """Other values of a leaf make another recipe or another line; an invented one, at any depth, is named."""
    before = make(entry)
    for leaf in leaves(entry):
        changed = copy.deepcopy(entry)
        *parents, last = leaf.split(".")
        home = changed
        for name in parents:
            home = home[name]
        home[f"x_{last}"] = "invented"
        assert f"{prefix}.{'.'.join([*parents, f'x_{last}'])}" in not_translated(make(changed)), leaf
        del home[f"x_{last}"]
        home[last] = 7 if isinstance(home[last], int) else ["z"] if isinstance(home[last], list) else "zzz"
        after = make(changed)
        assert after.sections != before.sections or after.fates != before.fates, leaf


def test_names_with_dots_and_numbers_are_named_too():
    made = axolotl(**{"a.b": 1, "roles": {"x.y": ["z"], 3: ["w"]}, "type": {"format": "Q", 4: "n"}})
    assert {"datasets[0].a.b", "datasets[0].type.4"} <= set(not_translated(made))
    made = axolotl(roles={"x.y": ["z"], 3: ["w"]})
    assert not_translated(made) == ["datasets[0].roles.x.y", "datasets[0].roles.3"]
    made = factory({"num_samples": {"a": 1}, "tags": ["x"]})
    assert not_translated(made) == ["dataset[a].num_samples", "dataset[a].tags"]


def test_a_data_set_of_a_handbook_mixture_is_accounted_for_too():
    mixture = {"datasets": [{"id": "a/b", "columns": ["messages"], "weight": 0.5, "x_y": 1}], "seed": 1, "z": 2}
    Path("a.yaml").write_text(yaml.safe_dump({"model_name_or_path": "gpt2", "dataset_mixture": mixture, "lora_r": 8}))
    made = convert_file("a.yaml")
    assert not_translated(made) == ["dataset_mixture.datasets[0].weight", "dataset_mixture.datasets[0].x_y"]
    assert made.fates["dataset_mixture.z"][0] == LOST


def test_the_command_shows_and_counts_what_stands_below_a_data_set():
    Path("a.yml").write_text(
        "base_model: gpt2\nsequence_len: 64\ndatasets: [{path: a.jsonl, roles_to_train: [user]}]\n"
    )
    done = CliRunner().invoke(commands, ["convert", "a.yml"], catch_exceptions=False)
    assert "datasets[0].roles_to_train  not translated: [user]: " in done.output
    assert "(3 translated, 0 left out, 1 not translated)" in done.output
