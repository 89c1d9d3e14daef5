"""The model card: what a visitor of the Hub reads about a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_recipes.hub.model_card import mask_secrets, model_card
from hf_recipes.record.file import parse_record

TOKEN = "hf_" + "abcdefghijABCDEFGHIJ0123456789abcd"

RECIPE = f"""\
task: chat
model: {{pretrained_model_name_or_path: org/base-1b, dtype: bfloat16}}
dataset: {{path: org/talks, revision: v2}}
LoraConfig: {{r: 8}}
SFTConfig:
  output_dir: runs/talk
  hub_model_id: org/talk-lora
  hub_token: {TOKEN}
"""

RECORD = {
    "schema": 1,
    "status": "finished",
    "task": "chat",
    "recipe": {
        "path": "recipes/talk.yaml",
        "text": RECIPE,
        "sections": {
            "model": {"pretrained_model_name_or_path": "org/base-1b", "dtype": "bfloat16"},
            "dataset": {"path": "org/talks", "revision": "v2"},
            "LoraConfig": {"r": 8},
            "SFTConfig": {"output_dir": "runs/talk", "hub_model_id": "org/talk-lora"},
        },
    },
    "model": {
        "class": "LlamaForCausalLM",
        "name": "org/base-1b",
        "parameters": 134515008,
        "trainable_parameters": 460800,
        "adapter": True,
        "dtype": "torch.bfloat16",
    },
    "data": {"train": {"rows": 80, "tokens": 12345, "fingerprint": "0f1e2d"}, "eval": {"rows": 20, "tokens": 3001}},
    "batch": {"per_device": 4, "processes": 2, "accumulation": 8, "sequences_per_step": 64, "tokens_per_step": 8192},
    "steps": 20,
    "epochs": 0.5,
    "time": {"train_seconds": 93.2, "eval_seconds": 4.25, "total_seconds": 3725.0},
    "tokens_per_second": 1259.3,
    "memory": {"peak_allocated_bytes": 3 * 1024**3, "peak_reserved_bytes": None, "peak_rss_bytes": 1024**3},
    "metrics": {
        "before": {"eval_loss": 4.026, "eval_perplexity": 56.04, "eval_runtime": 3.0},
        "eval": {"eval_loss": 3.4521, "eval_perplexity": 31.5667, "eval_runtime": 3.0, "epoch": 0.5},
        "test": {"test_loss": float("nan"), "test_perplexity": 33.25},
    },
    "choices": ["attention: sdpa (flash_attention_2 is not installed)"],
    "translations": ["recipes/talk.yaml:9: warmup_ratio: 0.06 -> warmup_steps: 0.06"],
    "versions": {"transformers": "5.23.0", "peft": "0.21.2"},
    "commit": "abc1234",
    "device": {"kind": "cuda", "name": "NVIDIA A10G", "count": 2},
    "seed": 42,
}


def card(value: dict[str, Any], **options: Any) -> str:
    """The model card of a record as its JSON has it; what every record has is filled in."""
    value = {**value, "schema": 1, "task": value.get("task") or ""}
    return model_card(parse_record(value, "record.json"), **options)


def classifier() -> dict:
    return {
        "status": "finished",
        "task": "text-classification",
        "recipe": {
            "sections": {
                "model": {"pretrained_model_name_or_path": "data/encoder"},
                "dataset": {"path": "json", "data_files": {"train": "data/train.jsonl", "test": ["data/t.jsonl"]}},
                "TrainingArguments": {"output_dir": "runs/mood"},
            }
        },
        "model": {"adapter": False, "class": "BertForSequenceClassification"},
        "metrics": {"eval": {"eval_f1": 0.9467, "eval_accuracy": 1}},
    }


def test_the_front_matter_says_what_the_hub_sorts_and_links_by():
    data = ModelCard(card(RECORD)).data
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.base_model == "org/base-1b"
    assert data.datasets == ["org/talks"]
    assert data.tags == ["hf_recipes", "chat", "lora", "trl", "sft"]
    assert data.metrics == ["loss", "perplexity"]
    assert "license" not in data.to_dict()
    assert ModelCard(card(RECORD, license="apache-2.0")).data.license == "apache-2.0"


def test_perplexity_is_in_the_model_index_and_a_nan_is_not():
    """Upstream's Trainer card drops perplexity: transformers.modelcard.METRIC_TAGS does not list it."""
    source = Path(find_spec("transformers").origin).with_name("modelcard.py").read_text()  # unread: 6 s to import
    tags = source.split("METRIC_TAGS = [")[1].split("]")[0]
    assert '"f1"' in tags
    assert "perplexity" not in tags, "the Trainer's own card would do now: see hub/model_card.py"
    results = ModelCard(card(RECORD)).data.eval_results
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in results}
    assert found == {
        ("validation", "loss"): 3.4521,
        ("validation", "perplexity"): 31.5667,
        ("test", "perplexity"): 33.25,
    }
    assert {(one.task_type, one.dataset_type, one.dataset_name, one.dataset_revision) for one in results} == {
        ("text-generation", "org/talks", "org/talks", "v2")
    }


def test_the_text_says_what_it_is_how_it_was_made_and_how_to_load_it():
    text = card(RECORD)
    for line in (
        "# talk-lora",
        "A LoRA adapter for chat, on `org/base-1b` (`LlamaForCausalLM`, 134,515,008 parameters, 460,800 "
        "trainable, bfloat16). Made with hf_recipes from the recipe below.",
        "| metric | before training | after (validation) | after (test) |",
        "| perplexity | 56.04 | 31.57 | 33.25 |",
        "| batch | 4 per device x 2 processes x 8 accumulation = 64 sequences (8,192 tokens) a step |",
        "| training time | 1 min 33 s |",
        "| total time | 1 h 2 min |",
        "| tokens per second | 1,259 |",
        "| device | 2 x NVIDIA A10G |",
        "| peak memory allocated on the device | 3.00 GiB |",
        "transformers 5.23.0, peft 0.21.2",
        "| train | 80 | 12,345 | `0f1e2d` |",
        "- attention: sdpa (flash_attention_2 is not installed)",
        "- recipes/talk.yaml:9: warmup_ratio: 0.06 -> warmup_steps: 0.06",
        "from peft import AutoPeftModelForCausalLM",
        'model_id = "org/talk-lora"  # or a local folder with these files',
        'model = AutoPeftModelForCausalLM.from_pretrained(model_id, dtype="bfloat16")',
        "- The numbers come from one run with one seed (seed 42). How much they vary between seeds was not measured.",
    ):
        assert line in text.splitlines(), line
    assert "runtime" not in text
    assert "reserved" not in text  # a gap in the record leaves its line out


def test_an_adapter_on_random_weights_comes_without_code_that_cannot_load_it():
    sections = {**RECORD["recipe"]["sections"], "model": {"preset": "gpt-small"}}
    text = card({**RECORD, "recipe": {"sections": sections}, "model": {"adapter": True, "dtype": "float32"}})
    assert (
        "The base model had random weights that were not saved, so this adapter cannot be loaded." in text.splitlines()
    )
    assert "from_pretrained(model_id" not in text


def test_the_model_card_shows_the_recipe_without_its_token():
    text = card(RECORD)
    assert RECIPE.replace(TOKEN, "***") in text
    assert TOKEN not in text
    assert TOKEN not in card({**RECORD, "error": TOKEN, "status": "failed", "choices": [TOKEN]})


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("hub_token: secret", "hub_token: ***"),
        ('  token: "secret"', "  token: ***"),
        ("{token: secret, dtype: auto}", "{token: ***, dtype: auto}"),
        ("argument 'SFTConfig.hub_token=secret'", "argument 'SFTConfig.hub_token=***"),
        ("token: null", "token: null"),
        ("eos_token: <|im_end|>", "eos_token: <|im_end|>"),
        ("max_new_tokens: 5", "max_new_tokens: 5"),
        (f"note: {TOKEN}!", "note: hf_***!"),
        ("note: hf_" + 20 * "a", "note: hf_***"),  # the length at which a recipe is refused
        ("api_key: secret", "api_key: ***"),
    ],
)
def test_values_of_token_keys_are_masked_and_special_tokens_are_not(line: str, shown: str):
    assert mask_secrets(line) == shown


def test_a_local_model_or_data_set_is_not_named_as_if_it_were_on_the_hub():
    data = ModelCard(card(classifier(), is_local=lambda name: name == "data/encoder")).data
    assert data.base_model is None
    assert data.datasets is None
    assert {(one.dataset_type, one.dataset_name) for one in data.eval_results} == {("local", "train.jsonl, t.jsonl")}
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {"f1": 0.9467, "accuracy": 1}
    record = classifier()
    assert ModelCard(card(record, is_local=lambda name: False)).data.base_model == "data/encoder"
    record["model"]["source"] = "folder"  # what the record says counts more than what is on this disk
    assert ModelCard(card(record, is_local=lambda name: False)).data.base_model is None
    for path in ("/srv/models/bert", "../bert", "./bert", "a/b/c"):
        record = classifier()
        record["recipe"]["sections"]["model"]["pretrained_model_name_or_path"] = path
        assert ModelCard(card(record, is_local=lambda name: False)).data.base_model is None, path


def test_a_classifier_adapter_is_loaded_with_its_number_of_labels():
    record = classifier()
    record["model"] |= {"adapter": True, "num_labels": 26}
    assert "AutoPeftModelForSequenceClassification.from_pretrained(model_id, num_labels=26)" in card(record)


def test_a_recipe_with_code_fences_stays_inside_its_block():
    text = card({"recipe": {"text": "sample_prompts: ['```python']\n"}})
    assert "````yaml\nsample_prompts: ['```python']\n````" in text


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"schema": 1, "status": "failed", "where": "data"},
        dict.fromkeys(RECORD),
        {**{key: {} for key, value in RECORD.items() if isinstance(value, dict)}, "task": "made-up"},
        {"recipe": {"sections": None}, "data": {"train": None}, "metrics": {"eval": {"eval_loss": None}}},
    ],
)
def test_a_minimal_record_still_gives_a_model_card_that_the_hub_can_read(record: dict):
    found = ModelCard(card(record))
    assert found.data.library_name == "transformers"
    assert "hf_recipes" in found.data.tags
    assert "## Limits" in found.text
    assert "None" not in found.content


@pytest.mark.parametrize("key", sorted(RECORD))
def test_no_single_gap_in_the_record_breaks_the_model_card(key: str):
    for record in ({**RECORD, key: None}, {name: value for name, value in RECORD.items() if name != key}):
        assert "None" not in ModelCard(card(record)).content


def test_a_run_that_did_not_finish_says_so_first():
    text = card({**RECORD, "status": "out of memory", "where": "training"})
    assert text.split("# talk-lora\n\n")[1].startswith("> **This run did not finish: out of memory (training).**")


def test_a_record_read_from_json_gives_the_same_model_card():
    record = json.loads(json.dumps(RECORD))
    assert card(record) == card(RECORD)


def test_a_model_card_needs_no_torch():
    code = (
        "import sys; from hf_recipes.hub.model_card import model_card; "
        "from hf_recipes.record import Metrics, RunRecord; "
        "model_card(RunRecord(task='chat', metrics=Metrics(eval={'eval_f1': 0.5}))); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


HTML = "<script>alert(1)</script>](http:x)\n# no"


def test_a_name_never_becomes_html_a_link_or_broken_yaml():
    """Of a folder, a label, a data file, a metric."""
    record = parse_record(
        {
            "schema": 1,
            "status": "finished",
            "task": "text-classification",
            "recipe": {
                "sections": {
                    "model": {"pretrained_model_name_or_path": f"org/{HTML}"},
                    "dataset": {"path": "json", "data_files": {"train": f"a/{HTML}.jsonl"}, "label_column": HTML},
                    "TrainingArguments": {"output_dir": f"runs/{HTML}"},
                }
            },
            "model": {"name": HTML, "source": "local"},
            "choices": [f"label column {HTML}"],
            "data": {"train": {"rows": 3, "tokens": 4, "fingerprint": "ab"}},
            "metrics": {"eval": {f"eval_{HTML}": 0.5}},
            "device": {"name": HTML, "count": 1, "kind": "cpu"},
        },
        "record.json",
    )
    text = model_card(record)
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["tags"]
    outside = re.sub(r"(?s)(`{3,}).*?\1|(`+)[^`].*?\2", "", body)
    assert "<script" not in outside and re.search(r"(?<!\\)\]\(", outside) is None
    assert all(line.startswith(("# ", "## ")) for line in outside.splitlines() if line.startswith("#"))
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.splitlines()[1]]
