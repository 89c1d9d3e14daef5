"""Where a run is spread out, what it reports to, and what goes to the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import is_hub_name, is_path
from hf_recipes.recipe.rules.rule import Rule, is_given, is_true, report_argument, report_key, text_of

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

TOPOLOGY = {
    "fsdp": "accelerate_configs/fsdp2.yaml",
    "fsdp_config": "accelerate_configs/fsdp2.yaml",
    "deepspeed": "accelerate_configs/deepspeed_zero3.yaml",
    "parallelism_config": "an accelerate file with parallelism_config",
}


def topology_in_a_recipe(recipe: Recipe) -> Iterator[Diagnostic]:
    """A recipe's fsdp overrides the accelerate file's values without a message, fsdp with deepspeed is refused
    (5.23 trainer.py:475), and without a launcher so is fsdp alone (trainer.py:478). One place decides: the file."""
    for name, file in TOPOLOGY.items():
        if is_given(recipe, name):
            what = f"{name} says how a run is spread over GPUs, which belongs into the accelerate file"
            yield report_argument(recipe, name, what, f"leave it out and launch with --config_file {file}")


def report_to_null(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1601: null becomes [None], which Trainer refuses as an integration."""
    if "report_to" in recipe.training and recipe.training["report_to"] is None:
        yield report_argument(recipe, "report_to", "report_to: null is not 'none' to upstream", "write report_to: none")


def names_that_the_hub_refuses(recipe: Recipe) -> Iterator[Diagnostic]:
    """huggingface_hub raises HFValidationError: once the model is loaded, or for hub_model_id after training."""
    shape = "a name is letters, digits, '-', '_' and '.', after an owner and '/' perhaps"
    target = text_of(recipe, "hub_model_id")
    if target and not is_hub_name(target):
        what = f"hub_model_id: {target!r} is no name of the Hub"
        yield report_argument(recipe, "hub_model_id", what, f"{shape}, such as owner/{_possible_name(target)}")
    for dotted in ("model.pretrained_model_name_or_path", "model.config", "tokenizer.pretrained_model_name_or_path",
                   "dataset.path"):  # fmt: skip
        name = recipe.get(dotted)
        if not isinstance(name, str) or is_hub_name(name) or recipe.is_generated:
            continue
        if not (is_path(name) or os.path.exists(os.path.expanduser(name))):
            what = f"{dotted}: {name!r} is no name of the Hub, and there is no such folder here"
            yield report_key(recipe, dotted, what, f"{shape}; a folder is written ./{name}")


def _possible_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("/")[2]).strip("-") or "name"


def pushing_nothing(recipe: Recipe) -> Iterator[Diagnostic]:
    """Without training nothing is saved."""
    if is_true(recipe, "push_to_hub") and recipe.training.get("do_train") is False:
        what = "push_to_hub: true with do_train: false: nothing is trained, so there is nothing to push"
        yield report_argument(recipe, "push_to_hub", what, "leave it out")


def pushing_where(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:4253: without hub_model_id the repository is named after output_dir."""
    if is_true(recipe, "push_to_hub") and not text_of(recipe, "hub_model_id"):
        name = os.path.basename(os.path.normpath(text_of(recipe, "output_dir") or "trainer_output"))
        what = f"push_to_hub without hub_model_id: the repository is called {name!r}, after output_dir"
        yield report_argument(recipe, "push_to_hub", what, "write hub_model_id: <user>/<name>")


def pushing_when(recipe: Recipe) -> Iterator[Diagnostic]:
    """This package pushes once, after training: uploads in between fail without a message."""
    if is_given(recipe, "hub_strategy") and text_of(recipe, "hub_strategy") not in ("end", "every_save"):
        what = f"hub_strategy: {text_of(recipe, 'hub_strategy')} has no effect: checkpoints stay in output_dir"
        yield report_argument(
            recipe, "hub_strategy", what, "leave it out: the finished model is pushed once, after training"
        )
    if is_given(recipe, "hub_always_push"):
        what = "hub_always_push has no effect: the finished model is pushed once, after training"
        yield report_argument(recipe, "hub_always_push", what, "leave it out")


ERRORS: tuple[Rule, ...] = (topology_in_a_recipe, report_to_null, names_that_the_hub_refuses, pushing_nothing)
WARNINGS: tuple[Rule, ...] = (pushing_where, pushing_when)
