"""Each argument of a trainer's section, of LoRA and of bitsandbytes is counted by plan, has no effect on memory, or is
refused: the table says which, and the traces say whether the table is true."""

import dataclasses
import inspect

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.plan import replay_trace
from hf_recipes.plan.trace import trace
from hf_recipes.plan.trace.cuda_allocator import EMPTY_CACHE
from hf_recipes.plan.trace.field_effects import (
    COUNTED,
    LORA,
    NO_EFFECT,
    REFUSED,
    SFT,
    TABLES,
    TRAINING,
    UNCHANGED,
    find_refusals,
)
from hf_recipes.plan.trace.trace import trace_here
from tests.support.tiny_recipes import BERT, GPT2, LLAMA, tiny

NARROW = {**LLAMA, "num_hidden_layers": 1}


def installed(section):
    if section == "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        return {name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"}
    if section == "LoraConfig":
        from peft import LoraConfig as found
    elif section == "SFTConfig":
        from trl import SFTConfig as found
    else:
        from transformers import TrainingArguments as found
    return {field.name for field in dataclasses.fields(found)}


def traced(*, config=NARROW, task="causal-lm", sft=False, sections=None, evaluation=True, **arguments):
    return trace_here(tiny(task, config, sft=sft, sections=sections, **arguments), evaluation=evaluation)


def is_changed(found, plain):
    """Whether a trace without evaluation is another one than `plain`, which may have one."""
    return found.events != plain.events[: len(found.events)]


@pytest.fixture(scope="module")
def plain():
    return traced(seed=42)


@pytest.fixture(scope="module")
def plain_sft():
    return traced(sft=True, packing=True)


@pytest.fixture(scope="module")
def plain_lora():
    return traced(sections={"LoraConfig": {"r": 4}})


@pytest.mark.parametrize("section", TABLES)
def test_every_field_of_the_installed_class_stands_in_the_table_once_and_no_stale_one(section):
    table, fields = TABLES[section], installed(section)
    assert fields - set(table) == set()
    assert {name for name in set(table) - fields if not table[name].newer} == set()
    for name, effect in table.items():
        assert effect.kind in (COUNTED, NO_EFFECT, REFUSED)
        assert effect.kind != REFUSED or (effect.why and effect.fix), name
        assert effect.traced == UNCHANGED or effect.kind != COUNTED or effect.why or effect.estimate, name


# One value that is not the default, for each field without effect: all of them together leave the trace as it was.
WITHOUT_EFFECT = {
    "output_dir": "runs/other",
    "max_steps": 7,
    "num_train_epochs": 9,
    "learning_rate": 0.5,
    "warmup_steps": 3,
    "adam_beta1": 0.5,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-3,
    "seed": 7,
    "data_seed": 8,
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"factor": 0.5},
    "tf32": True,
    "auto_find_batch_size": True,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": True,
    "log_on_each_node": False,
    "log_level": "error",
    "log_level_replica": "error",
    "disable_tqdm": False,
    "report_to": "tensorboard",
    "run_name": "other",
    "project": "other",
    "trackio_space_id": "me/other",
    "trackio_bucket_id": "other",
    "trackio_static_space_id": "other",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_delay": 1,
    "eval_on_start": True,
    "eval_use_gather_object": True,
    "include_for_metrics": ["inputs"],
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "save_only_model": True,
    "save_on_each_node": True,
    "enable_jit_checkpoint": True,
    "restore_callback_states_from_checkpoint": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "push_to_hub": True,
    "hub_token": "no token",
    "hub_private_repo": True,
    "hub_model_id": "me/other",
    "hub_strategy": "end",
    "hub_always_push": True,
    "hub_revision": "other",
    "resume_from_checkpoint": "nowhere",
    "ignore_data_skip": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
    "use_cpu": False,
    "accelerator_config": {"split_batches": True},
    "dataloader_num_workers": 2,
    "dataloader_pin_memory": True,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_in_order": False,
    "dataloader_drop_last": True,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "length_column_name": "other",
    "train_sampling_strategy": "group_by_length",
    "ddp_find_unused_parameters": True,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 10,
    "local_rank": -1,
    "skip_memory_metrics": False,
}
# Of those that the short run leaves out, what a CPU can do: handed on to the trainer, they change nothing either.
POSSIBLE = {
    "num_train_epochs": 9,
    "lr_scheduler_type": "cosine",
    "auto_find_batch_size": True,
    "eval_delay": 1,
    "eval_use_gather_object": True,
    "include_for_metrics": ["inputs"],
    "restore_callback_states_from_checkpoint": True,
    "train_sampling_strategy": "group_by_length",
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
    "ddp_broadcast_buffers": True,
    "skip_memory_metrics": False,
    "accelerator_config": {"even_batches": False},
}


def test_fields_without_effect_leave_the_trace_to_the_byte_all_of_them_together(plain):
    named = {name for name, effect in TRAINING.items() if effect.kind == NO_EFFECT}
    assert set(WITHOUT_EFFECT) == named
    found = traced(**WITHOUT_EFFECT)
    assert found.events == plain.events and found.estimate == ()


def test_what_the_short_run_leaves_out_would_change_nothing_where_a_cpu_can_try_it(plain, monkeypatch):
    evaluated = {name: dataclasses.replace(TRAINING[name], traced=UNCHANGED) for name in POSSIBLE}
    monkeypatch.setitem(TABLES, "TrainingArguments", {**TRAINING, **evaluated})
    assert traced(**POSSIBLE).events == plain.events


COUNTS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 6,
    "optim": "adamw_torch",
    "gradient_accumulation_steps": 2,
    "label_smoothing_factor": 0.1,
    "use_cache": True,
    "neftune_noise_alpha": 5.0,
    "bf16": True,
    "fp16": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "torch_empty_cache_steps": 1,
    "include_num_input_tokens_seen": "all",
    "average_tokens_across_devices": False,
    "logging_nan_inf_filter": True,
}
OF_EVALUATIONS = {"per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval"}
WITH_OTHERS = {  # field -> (what it is compared with, its value)
    "weight_decay": ({"optim": "sgd"}, 0.1),
    "activation_checkpointing_kwargs": ({"activation_checkpointing": True}, {"offload": True}),
    "gradient_checkpointing_kwargs": ({"gradient_checkpointing": True}, {"use_reentrant": True}),
}
ELSEWHERE = {
    "optim_args": "of optimizers that test_coverage.py has",
    "optim_target_modules": "of optimizers that test_coverage.py has",
    "use_liger_kernel": "marked",
    "liger_kernel_config": "marked",
    "max_grad_norm": "its norms are computed at 0, too",
    "torch_compile": "marked",
    "torch_compile_backend": "marked",
    "torch_compile_mode": "marked",
    "full_determinism": "marked",
    "ddp_bucket_cap_mb": "tests/plan/fit/test_parallel.py",
    "eval_accumulation_steps": "a note",
}


def test_counted_fields_change_what_is_traced(plain):
    named = {name for name, effect in TRAINING.items() if effect.kind == COUNTED}
    assert named == {*COUNTS, *WITH_OTHERS, *ELSEWHERE}
    assert not is_changed(traced(evaluation=False), plain)
    for name, value in COUNTS.items():
        assert is_changed(traced(**{name: value}, evaluation=name in OF_EVALUATIONS), plain), name
    for name, (others, value) in WITH_OTHERS.items():
        without = traced(**others, evaluation=False)
        assert is_changed(traced(**others, **{name: value}, evaluation=False), without), name


def test_counted_fields_of_sftconfig_and_lora_change_what_is_traced(plain_sft, plain_lora):
    for name, value in {
        "max_length": 16,
        "packing": False,
        "packing_strategy": "wrapped",
        "loss_type": "dft",
    }.items():
        found = traced(**{"sft": True, "packing": True, "evaluation": False, name: value})
        assert is_changed(found, plain_sft), name
    padded = traced(sft=True, evaluation=False)
    assert is_changed(traced(sft=True, pad_to_multiple_of=64, evaluation=False), padded)
    assert is_changed(traced(sft=True, padding_free=True, max_length=None, evaluation=False), padded)
    for name, value in {
        "r": 8,
        "target_modules": "all-linear",
        "exclude_modules": ["v_proj"],
        "modules_to_save": ["lm_head"],
        "lora_dropout": 0.1,
        "lora_bias": True,
        "use_dora": True,
        "rank_pattern": {"q_proj": 8},
        "trainable_token_indices": [3],
    }.items():
        assert LORA[name].kind == COUNTED
        found = traced(sections={"LoraConfig": {"r": 4, name: value}}, evaluation=False)
        assert is_changed(found, plain_lora), name
    for config, arguments in ((GPT2, {"bias": "all"}), (LLAMA, {"layers_to_transform": [0]})):
        without = traced(config=config, sections={"LoraConfig": {"r": 4}}, evaluation=False)
        changed = traced(config=config, sections={"LoraConfig": {"r": 4, **arguments}}, evaluation=False)
        assert is_changed(changed, without), arguments
    for name, value in {"lora_alpha": 32, "use_rslora": True, "alpha_pattern": {"q_proj": 4}}.items():
        assert LORA[name].kind == NO_EFFECT
        assert not is_changed(traced(sections={"LoraConfig": {"r": 4, name: value}}, evaluation=False), plain_lora), (
            name
        )


def test_sft_arguments_without_effect_leave_the_trace(plain_sft):
    arguments = {
        "dataset_num_proc": 2,
        "dataset_text_field": "other",
        "chat_template_path": "nowhere.jinja",
        "eos_token": "<other>",
        "pad_token": "<other>",
        "truncation_mode": "keep_start",
        "shuffle_dataset": True,
        "completion_only_loss": True,
        "assistant_only_loss": True,
        "model_init_kwargs": {"dtype": "bfloat16"},
    }
    assert {SFT[name].kind for name in arguments} == {NO_EFFECT}
    assert traced(sft=True, packing=True, **arguments).events == plain_sft.events


def test_what_plan_does_not_support_is_refused_by_name_with_its_line_and_a_fix():
    for section, table in TABLES.items():
        for name, effect in table.items():
            if effect.kind != REFUSED:
                continue
            value = True not in effect.fine
            sft = section == "SFTConfig"
            recipe = tiny("causal-lm", NARROW, sft=sft, sections={} if sft else {section: {name: value}})
            recipe = recipe.with_values({f"{section}.{name}": value}, "tiny.yaml:9")
            found = [
                error for error in find_refusals(recipe) if error.message.startswith(f"plan does not support {name}: ")
            ]
            assert [(error.location, error.fix) for error in found] == [("tiny.yaml:9", effect.fix)], name
            recipe = recipe.with_values({f"{section}.{name}": effect.fine[0]}, "tiny.yaml:9")
            assert [error for error in find_refusals(recipe) if f" {name}: " in error.message] == []
    with pytest.raises(RecipeError) as caught:
        traced(debug="underflow_overflow")
    assert str(caught.value) == (
        "tiny.yaml: plan does not support debug: it reads the numbers of every layer, and plan has none; "
        "leave it out for the plan"
    )


def test_an_optimizer_whose_package_is_not_installed_is_refused_by_name():
    with pytest.raises(RecipeError) as caught:
        traced(optim="adamw_anyprecision")
    assert str(caught.value) == (
        "tiny.yaml: plan traces the optimizer's own code, and optim: adamw_anyprecision needs torchdistx, which is "
        "not installed; pip install torchdistx, or plan optim: adamw_torch_fused"
    )


def test_what_is_not_modelled_to_the_byte_makes_the_answer_an_estimate_with_its_reason(plain):
    found = traced(torch_compile=True, torch_compile_backend="inductor", full_determinism=True)
    assert found.events == plain.events
    assert [line.partition(" ")[0] for line in found.estimate] == ["torch_compile", "full_determinism's"]
    assert plain.estimate == ()


def test_a_field_that_is_newer_than_the_table_is_traced_as_it_is(monkeypatch, plain):
    without = {name: effect for name, effect in TRAINING.items() if name != "neftune_noise_alpha"}
    monkeypatch.setitem(TABLES, "TrainingArguments", without)
    assert traced(neftune_noise_alpha=5.0).events != plain.events


def test_the_cache_is_emptied_where_the_recipe_says_so_and_the_allocator_gives_back(plain):
    found = traced(torch_empty_cache_steps=1)
    assert found.events.count(EMPTY_CACHE) == 2 and EMPTY_CACHE not in plain.events
    assert found.allocated == plain.allocated
    assert replay_trace(found).peak <= replay_trace(plain).peak
    every = traced(torch_empty_cache_steps=4, gradient_accumulation_steps=2)
    assert every.events.count(EMPTY_CACHE) == 2  # both micro-batches of step 0


def test_the_last_evaluation_is_in_halves_and_those_between_steps_are_not(plain):
    last, both = traced(bf16_full_eval=True), traced(bf16_full_eval=True, eval_strategy="epoch")
    assert last.phases["evaluation"] < plain.phases["evaluation"] == both.phases["evaluation"]


@pytest.mark.parametrize("task, config", [("causal-lm", NARROW), ("token-classification", BERT)])
def test_an_evaluation_batch_larger_than_the_train_batch_holds_what_trainers_own_loop_holds(task, config, monkeypatch):
    recipe = tiny(task, config, per_device_train_batch_size=4, per_device_eval_batch_size=8)
    planned = trace_here(recipe, cpu=True)
    evaluated = []
    monkeypatch.setattr(trace, "evaluate_once", lambda trainer, dtype: evaluated.append(trainer.evaluate()) or 0)
    real = trace_here(recipe, cpu=True, real=True)
    assert len(evaluated) == 1 and planned.eval_batch == 8
    # every position counts as labelled, and the real rows have one that nothing predicts
    assert planned.phases["evaluation"] == pytest.approx(real.phases["evaluation"], rel=0.01)


def test_what_an_evaluation_keeps_of_each_row_is_in_a_note_where_it_is_much():
    found = traced(task="token-classification", config=BERT, per_device_eval_batch_size=4)
    assert [note for note in found.notes if note.startswith("evaluation:")] == []  # 32 tokens a row
    recipe = tiny("token-classification", BERT).with_values({"dataset.max_length": 128}, "here")
    notes = [note for note in trace_here(recipe).notes if note.startswith("evaluation:")]
    assert notes == [
        "evaluation: 2,064 bytes of each row stay on the GPU until its end, which are not counted "
        "(20 MiB for 10,000 rows); eval_accumulation_steps bounds them"
    ]
    bounded = recipe.with_values({"TrainingArguments.eval_accumulation_steps": 8}, "here")
    assert [note for note in trace_here(bounded).notes if note.startswith("evaluation:")] == []
