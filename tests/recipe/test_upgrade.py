"""Old recipes run as they are, and `hf-recipes upgrade` rewrites them."""

import textwrap

import pytest

from hf_recipes.common.text import as_yaml
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.bounded_yaml import compose
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.upgrade import upgrade_text
from hf_recipes.recipe.yaml_editor import YamlText
from hf_recipes.recipe.yaml_reader import read_text
from tests.support.old_keys import SAMPLES, UPGRADES, V5, translate


def places(node):
    """Every value of a tree with its place in the text."""
    inner = node.value if not isinstance(node.value, list) else [
        [places(part) for part in (item if isinstance(item, tuple) else (item,))] for item in node.value
    ]  # fmt: skip
    return node.start_mark.index, node.start_mark.column, node.end_mark.index, node.tag, inner


@pytest.fixture(autouse=True)
def trees(monkeypatch):
    """After each edit of any test here: the tree that was patched is the one that a fresh reading gives."""
    spliced, patched = YamlText._spliced, []

    def checked(self, *arguments):
        made = spliced(self, *arguments)
        if "root" in made.__dict__:
            assert places(made.root) == places(compose(made.text))
            patched.append(made)
        return made

    monkeypatch.setattr(YamlText, "_spliced", checked)
    return patched


def test_an_edit_reads_only_the_section_that_it_touches(trees):
    upgrade_text(OLD, "a.yaml")
    assert len(trees) > 8
    trees.clear()
    upgrade_text(OLD.replace("runs/rtx3070", "&name runs/rtx3070"), "a.yaml")  # it may be named anywhere
    assert trees == []


OLD = """\
# BERT on one 8 GB card.
task: text-classification   # ours

model:
  pretrained_model_name_or_path: 'bert-base-uncased'
  torch_dtype:   "float32"   # stated
dataset:
    path: json              # four spaces here
    data_files: {train: "a.jsonl",  validation: b.jsonl}

TrainingArguments:
  output_dir: runs/rtx3070
  per_device_train_batch_size: 64
  optim: adamw_hf
  warmup_ratio: 6.0e-2                 # share
  # workers
  dataloader_num_workers: 4
  overwrite_output_dir: true
  save_safetensors: true               # always
  evaluation_strategy: epoch
  split_batches: true
  dispatch_batches: false
  gradient_checkpointing: true


metrics: [f1, accuracy]
"""


NEW = """\
# BERT on one 8 GB card.
task: text-classification   # ours

model:
  pretrained_model_name_or_path: 'bert-base-uncased'
  dtype:   "float32"   # stated
dataset:
    path: json              # four spaces here
    data_files: {train: "a.jsonl",  validation: b.jsonl}

TrainingArguments:
  output_dir: runs/rtx3070
  per_device_train_batch_size: 64
  optim: adamw_torch
  warmup_steps: 6.0e-2                 # share
  # workers
  dataloader_num_workers: 4
  # always
  eval_strategy: epoch
  accelerator_config: {split_batches: true, dispatch_batches: false}
  activation_checkpointing: true


metrics: [f1, accuracy]
"""


def test_upgrade_rewrites_a_file_and_keeps_comments_order_quotes_and_blanks():
    text, lines = upgrade_text(OLD, "a.yaml")
    assert text == NEW
    assert [line.split(": ")[0] for line in lines] == [f"a.yaml:{n}" for n in (6, 14, 15, 18, 19, 20, 21, 22, 23)]


def test_a_file_without_old_keys_comes_back_byte_for_byte():
    odd = "task:   chat\r\nSFTConfig: {max_length:  10,\r\n  seed: 0x10}   # x\r\n\r\n\r\n# end"
    assert upgrade_text(odd, "a.yaml") == (odd, [])
    assert upgrade_text(NEW, "a.yaml") == (NEW, [])


def test_reading_the_rewritten_file_gives_the_same_recipe_as_reading_the_old_one(tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(OLD)
    new.write_text(upgrade_text(OLD, "old.yaml")[0])
    before, after = read_recipe(str(old)), read_recipe(str(new))
    assert before.sections == after.sections
    assert len(before.translations) == 9 and not after.translations


def test_windows_line_ends_stay():
    text, _ = upgrade_text(
        "task: chat\r\nSFTConfig:\r\n  fp16: true\r\n  fp16_opt_level: O2\r\n  split_batches: true\r\n", "a"
    )
    assert text == (
        "task: chat\r\nmaster_weights: true\r\nSFTConfig:\r\n  fp16: true\r\n"
        "  accelerator_config: {split_batches: true}\r\n"
    )


def test_a_new_section_stands_below_the_model_and_joins_one_that_is_there():
    old = "task: chat\nmodel:\n  config: gpt2\n  load_in_4bit: true  # small\n\nSFTConfig: {}\n"
    assert upgrade_text(old, "a")[0] == (
        "task: chat\nmodel:\n  config: gpt2\n  # small\nBitsAndBytesConfig: {load_in_4bit: true}\n\nSFTConfig: {}\n"
    )
    old = "model: {config: gpt2, load_in_4bit: true}\nBitsAndBytesConfig:\n  bnb_4bit_quant_type: nf4 # q\ntask: chat\n"
    assert upgrade_text(old, "a")[0] == (
        "model: {config: gpt2}\nBitsAndBytesConfig:\n  bnb_4bit_quant_type: nf4 # q\n  load_in_4bit: true\ntask: chat\n"
    )


@pytest.mark.parametrize("style", ["block", "flow", "flow over lines", "alone", "last without newline"])
@pytest.mark.parametrize("row", UPGRADES, ids=lambda row: f"{row.sections[0]}.{row.old}")
def test_whatever_the_key_and_the_layout_the_rewritten_text_reads_back_and_needs_no_second_upgrade(row, style):
    samples = {key: value for key, value, _ in SAMPLES}
    value = next(iter(row.values)) if row.values else samples.get(row.old, "full_shard" if row.old == "fsdp" else True)
    value = {"fp16_opt_level": "O2", "tp_size": 0, "push_to_hub_token": None, "from_tf": False, "from_flax": False}.get(
        row.old, value
    )
    section, entry = row.sections[0], f"{row.old}: {as_yaml(value)}"
    top = {
        "block": f"task: chat  # a\n# b\n{entry}  # c\n# d\nmetrics: []\n",
        "flow": f"{{task: chat, {entry}, metrics: []}}\n",
        "flow over lines": f"{{task: chat,  # a\n  {entry},\n  metrics: []   # b\n  }}\n",
        "alone": f"{entry}\n",
        "last without newline": f"task: chat\nmetrics: []\n{entry}",
    }
    inside = {
        "block": f"task: chat\n{section}:\n  fp16: true   # a\n  # b\n  {entry}  # c\n  seed: 1\n# d\nmetrics: []\n",
        "flow": f"{{task: chat, {section}: {{fp16: true, {entry}, seed: 1}}, metrics: []}}\n",
        "flow over lines": f"task: chat\n{section}: {{\n  fp16: true,  # a\n  {entry},\n  seed: 1   # b\n  }}\n",
        "alone": f"task: chat\n{section}:\n  {entry}\nmetrics: []\n",
        "last without newline": f"task: chat\nmetrics: []\n{section}:\n  fp16: true\n  {entry}",
    }
    text = (inside if section else top)[style]
    new, lines = upgrade_text(text, "a.yaml")
    assert lines
    document = read_text(text, lambda line: f"a.yaml:{line}", "a.yaml")
    assert read_text(new, str, "").values == translate(document.values, document.locations)[0]
    assert upgrade_text(new, "a.yaml") == (new, [])
    for comment in ("# a", "# b", "# c", "# d"):
        assert text.count(comment) == new.count(comment)


def test_text_that_cannot_be_rewritten_is_refused_with_its_location():
    for text, message in {
        "task: chat\nSFTConfig: [": "a.yaml:2: is not YAML: ",
        "- a\n": "a.yaml: is not a mapping of sections; begin with 'task:'",
        "": "a.yaml: is empty; a recipe begins with 'task:'",
        "SFTConfig: {tp_size: 2}": "a.yaml:1: tp_size: 2 is gone between transformers 4.51 and 4.52; ",
    }.items():
        with pytest.raises(RecipeError) as error:
            upgrade_text(text, "a.yaml")
        assert str(error.value).startswith(message)


def test_an_old_key_behind_an_alias_is_rewritten_at_its_anchor_or_left_to_the_author():
    text = "SFTConfig: &base {warmup_ratio: 0.1}\nTrainingArguments:\n  <<: *base\n"
    assert upgrade_text(text, "a")[0] == "SFTConfig: &base {warmup_steps: 0.1}\nTrainingArguments:\n  <<: *base\n"
    text = "tokenizer: &base {use_fast: true}\nmodel:\n  <<: *base\n"  # where model.use_fast is no old key
    with pytest.raises(RecipeError) as error:
        upgrade_text(text, "a.yaml")
    assert str(error.value) == (
        "a.yaml: anchors, aliases or merge keys stand in the way of rewriting its old keys; change them by hand:\n"
        f"a.yaml:1: use_fast: true -> dropped ({V5}; tokenizers are always the fast ones)"
    )


def test_a_childs_new_key_wins_over_its_parents_old_one(tmp_path):
    recipe = "task: chat\nmodel: {pretrained_model_name_or_path: gpt2}\ndataset: {path: json, data_files: a.jsonl}\n"
    (tmp_path / "parent.yaml").write_text(recipe + "SFTConfig: {evaluation_strategy: steps, learning_rate: 1e-4}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nSFTConfig: {eval_strategy: epoch}\n")
    read = read_recipe(str(tmp_path / "child.yaml"), ["SFTConfig.warmup_ratio=0.1"])
    assert read.training["eval_strategy"] == "epoch" and read.training["warmup_steps"] == 0.1
    assert read.translations[-1] == (
        "argument 'SFTConfig.warmup_ratio=0.1': warmup_ratio: 0.1 -> warmup_steps: 0.1 "
        "(gone between transformers 4.57 and 5.23; a value below 1 is a share of all steps)"
    )


def test_old_keys_of_this_package_still_work_in_files_arguments_and_parents_and_are_rewritten(tmp_path):
    recipe = "task: chat\nmodel: {pretrained_model_name_or_path: gpt2}\ndataset: {path: json, data_files: a.jsonl}\n"
    old = recipe + "train_despite: [overlap]  # the same rows\nresume_despite: [data]\nSFTConfig: {}\n"
    (tmp_path / "parent.yaml").write_text(old)
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\ndisable_guards: [end_token]\n")
    read = read_recipe(str(tmp_path / "child.yaml"), ["resume_despite=[recipe]"])
    assert (read.get("disable_guards"), read.get("resume_allow")) == (["end_token"], ["recipe"])
    assert "train_despite" not in read.sections and "resume_despite" not in read.sections
    parent = tmp_path / "parent.yaml"
    assert list(read.translations) == [
        f"{parent}:4: train_despite: [overlap] -> disable_guards: [overlap] (renamed in hf_recipes 0.1)",
        f"{parent}:5: resume_despite: [data] -> resume_allow: [data] (renamed in hf_recipes 0.1)",
        "argument 'resume_despite=[recipe]': resume_despite: [recipe] -> resume_allow: [recipe] "
        "(renamed in hf_recipes 0.1)",
    ]
    new, lines = upgrade_text(old, "a.yaml")
    assert len(lines) == 2
    assert new == old.replace("train_despite", "disable_guards").replace("resume_despite", "resume_allow")


def test_the_snippets_of_the_rtx_3070_guide_run_as_they_stand(tmp_path):
    """Its table's settings under their upstream names, its YAML snippets, and the two keys of transformers 4."""
    guide = tmp_path / "guide.yaml"
    guide.write_text(
        textwrap.dedent("""\
        task: text-classification
        model: {pretrained_model_name_or_path: bert-base-uncased}
        dataset: {path: json, data_files: {train: a.jsonl}}
        TrainingArguments:
          per_device_train_batch_size: 48  # instead of 64
          gradient_accumulation_steps: 3   # instead of 2
          gradient_checkpointing: true  # trades compute for memory
          per_device_eval_batch_size: 96  # instead of 128
          dataloader_num_workers: 6  # instead of 4
          dataloader_persistent_workers: false
          optim: "adamw_torch"  # instead of adamw_bnb_8bit
          fp16: true
          fp16_opt_level: O2
          warmup_ratio: 0.06
          tf32: true
        """)
    )
    recipe = read_recipe(str(guide))
    assert recipe.get("master_weights") is True
    assert recipe.training["activation_checkpointing"] is True and recipe.training["warmup_steps"] == 0.06
    assert [line.split(" (")[0].removeprefix(f"{guide}:") for line in recipe.translations] == [
        "7: gradient_checkpointing: true -> activation_checkpointing: true",
        "13: fp16_opt_level: O2 -> master_weights: true",
        "14: warmup_ratio: 0.06 -> warmup_steps: 0.06",
    ]


def test_values_are_shown_as_yaml_that_reads_back():
    for value in (
        True,
        None,
        1,
        -0.5,
        1e-9,
        0.999999999,
        "a",
        "no",
        "1e-4",
        "",
        " x",
        "a: b",
        "#",
        "null",
        "O2",
        "1",
        "~",
    ):
        assert read_text(f"k: {as_yaml(value)}", str, "").values == {"k": value}
    for value in ([1, "a, b", None], {"a": {"b: c": [True]}}, ["x]"], {"x": ".5"}, [".inf", ".nan", "0x10", "1_0"]):
        assert read_text(f"k: {as_yaml(value)}", str, "").values == {"k": value}


def test_a_recipe_of_today_runs_on_a_transformers_that_has_the_old_names_alone(monkeypatch):
    from hf_recipes.recipe import upgrade as upgrades

    sections = {"task": "causal-lm", "TrainingArguments": {"activation_checkpointing": True}}
    assert translate(sections, {}) == (sections, {}, [], [])
    installed = upgrades._installed
    monkeypatch.setattr(upgrades, "_installed", lambda name: (5, 17) if name == "transformers" else installed(name))
    found, _, lines, errors = translate(sections, {})
    assert errors == [] and found["TrainingArguments"] == {"gradient_checkpointing": True}
    assert "activation_checkpointing: true -> gradient_checkpointing: true (new in transformers 5.23)" in str(lines)
