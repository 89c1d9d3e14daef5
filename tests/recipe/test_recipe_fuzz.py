"""The short form of benchmarks/recipe_fuzz.py; its record has 20,000 mutants and 2,000 settings."""

from __future__ import annotations

import json
from pathlib import Path

import recipe_fuzz
import recipe_settings
from recipe_mutants import SHOWN, TOKEN

from hf_recipes.commands.check import check, upgrade_file
from hf_recipes.errors import RecipeError


def test_mutants_of_recipes_end_in_no_traceback_and_show_no_token(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = recipe_fuzz.run_chunk(7, 120)
    assert [one for one in found["wrong"] if one["traceback"] or one["shown"]] == []


def test_what_goes_wrong_is_counted(monkeypatch, tmp_path):
    def raises(path: str, overrides: object) -> tuple[list[str], int]:
        raise ValueError("planted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_recipes.commands.check.check", raises)
    assert "planted" in recipe_fuzz.try_mutant(b"task: chat\n", [])["traceback"]
    monkeypatch.setattr("hf_recipes.commands.check.check", lambda *_: ([TOKEN], 1))
    assert recipe_fuzz.try_mutant(b"task: chat\n", [])["shown"]


def test_upgrade_shows_no_token_of_an_old_key(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(f"TrainingArguments: {{fp16: true, fp16_opt_level: {TOKEN}}}\n")
    Path("b.yaml").write_text(f"TrainingArguments: {{push_to_hub_token: {TOKEN}, no_cuda: true}}\n")
    said = []
    for name in ("a.yaml", "b.yaml"):
        try:
            lines, text = upgrade_file(name, dry_run=True)
            said += [*lines, text]
        except RecipeError as error:
            said += map(str, error.errors)
    assert SHOWN not in "\n".join(said) and "hf_***" in "\n".join(said)


def test_settings_that_are_harmless_are_accepted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for values in ({"learning_rate": 0}, {"adam_epsilon": 0}, {"weight_decay": 0}, {"max_grad_norm": 0}):
        Path("a.yaml").write_text(recipe_settings.recipe_of("TrainingArguments", values, {}))
        assert check("a.yaml")[1] == 0, values


def test_every_refusal_of_a_setting_that_upstream_constructs_has_its_reason():
    record = json.loads(recipe_fuzz.RECORD.read_text(encoding="utf-8"))
    assert record["mutants"]["count"] >= 20_000 and record["settings"]["count"] >= 2_000
    assert [record["mutants"][key] for key in ("tracebacks", "over_2_seconds", "tokens_shown")] == [0, 0, 0]
    assert [why for why in record["settings"]["reasons"] if recipe_settings.reason_of(why) == ""] == []
