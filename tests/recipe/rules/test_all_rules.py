"""All rules together: every error at once, no rule on a sound recipe, none that breaks on a wrong type."""

import itertools

import pytest

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.recipe.rules import all_rules
from tests.support.rule_recipes import SFT, T4, recipe_of


def test_a_sound_recipe_has_neither_errors_nor_warnings(ask):
    assert ask("fp16: true\nwarmup_steps: 0.06") == ([], [])
    assert ask(**SFT) == ([], [])


def test_every_error_is_reported_at_once_and_by_line(ask):
    errors, _ = ask(
        "fp16: true\nbf16: true\ndataloader_prefetch_factor: 2\nlr_scheduler_type: constant\nwarmup_steps: 9"
    )
    assert [error.split(":")[0] for error in errors] == ["5", "7", "9"]


WRONG = ["x", "", -1, 0, 1.5, True, False, None, [], [1], ["x", None], {}, {"a": 1}, float("nan"), 10**30]


@pytest.mark.parametrize("task", TASKS)
def test_no_value_of_a_wrong_type_breaks_a_rule(task):
    from hf_recipes.recipe.schema import installed

    for trainer in ("TrainingArguments", "SFTConfig"):
        sections = ("model", "dataset", "LoraConfig", "BitsAndBytesConfig", "BpeTrainer", "EarlyStoppingCallback")
        for section, wrong in itertools.product((trainer, *sections), WRONG):
            names = [*installed.fields(section), "preset", "config"]
            held = dict.fromkeys(names, wrong)
            everything = {trainer: {}, **{name: {} for name in sections}, section: held, "task": task, "metrics": wrong}
            everything |= {"master_weights": True, "sample_prompts": wrong, "GenerationConfig": {}}
            recipe = recipe_of(everything)
            for told in (all_rules.errors(recipe), all_rules.warnings(recipe), all_rules.device_errors(recipe, T4)):
                assert all(error.message and error.location for error in told)
            all_rules.device_requirements(recipe)


@pytest.mark.parametrize("rule", [*all_rules.ERRORS, *all_rules.WARNINGS], ids=lambda rule: rule.__name__)
def test_every_rule_stands_in_one_list_and_none_reports_a_sound_recipe(rule):
    assert [*all_rules.ERRORS, *all_rules.WARNINGS].count(rule) == 1
    for task, facts in TASKS.items():
        for trainer in facts.trainers:
            assert list(rule(recipe_of({"task": task, trainer: {"output_dir": "a"}}))) == []


def test_the_checks_import_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; import hf_recipes.recipe.upgrade; from hf_recipes.recipe.rules import all_rules as rules\n"
        "from hf_recipes.recipe.recipe import Recipe\n"
        "base = {'task': 'chat', 'model': {}, 'dataset': {}, 'SFTConfig': {'metric_for_best_model': 'loss'}}\n"
        "recipe = Recipe(path='a', sections=base, locations={})\n"
        "rules.errors(recipe), rules.warnings(recipe), rules.device_requirements(recipe)\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'numpy', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
