"""Contradictions and settings without effect are found in the file, and upstream really behaves as the rule says."""

import inspect
import itertools
from types import SimpleNamespace

import pytest

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.device import Device
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.rules import all_rules, precision
from hf_recipes.recipe.rules import model as building
from hf_recipes.recipe.rules import optimizer as optimising
from hf_recipes.recipe.rules.device import OPTIMIZER_PACKAGES, REPORTERS, optimizer_package

CPU = Device(kind="cpu", name="a CPU", bf16=True)
T4 = Device(kind="cuda", name="Tesla T4", count=1, capability=(7, 5), bf16=False)
A100 = Device(kind="cuda", name="NVIDIA A100", count=1, capability=(8, 0), bf16=True)
MPS = Device(kind="mps", name="Apple GPU (MPS)", count=1, bf16=True)
COLUMNS = {"text-classification": "", "token-classification": "", "causal-lm": "", "chat": ""}


@pytest.fixture
def ask(tmp_path):
    """Writes a recipe and returns (faults, doubts) as lines without the path. Line 5 is the first of `training`."""

    def asked(training="", top="", task="text-classification", trainer="TrainingArguments", model="bert-base-uncased"):
        path = tmp_path / "a.yaml"
        source = model if model.startswith("{") else f"{{pretrained_model_name_or_path: {model}}}"
        dataset = "" if "dataset:" in top else "dataset: {path: json, data_files: {train: a.jsonl}}"
        lines = [f"task: {task}", f"model: {source}", dataset, f"{trainer}:"]
        lines += [f"  {line}" for line in [*training.splitlines(), "output_dir: runs/a", "learning_rate: 1e-4"]]
        path.write_text("\n".join(lines) + f"\n{top}\n")
        try:
            recipe = read_recipe(str(path))
        except RecipeError as error:
            return [str(error).replace(f"{path}:", "") for error in error.errors], None
        return [], [str(warning).replace(f"{path}:", "") for warning in recipe.warnings]

    return asked


@pytest.fixture
def arguments(tmp_path):
    """The real TrainingArguments, on the CPU."""

    def made(**words):
        from transformers import TrainingArguments

        return TrainingArguments(output_dir=str(tmp_path), **{"use_cpu": True, **words})

    return made


def recipe_of(sections, **more):
    base = {"task": "chat", "model": {"pretrained_model_name_or_path": "gpt2"}, "dataset": {"path": "json"}}
    return Recipe(path="a.yaml", sections={**base, **sections}, locations={}, **more)


SFT = {"task": "causal-lm", "trainer": "SFTConfig", "model": "gpt2"}
TRAINER = {"task": "causal-lm", "model": "gpt2"}


def test_a_sound_recipe_has_neither_faults_nor_doubts(ask):
    assert ask("fp16: true\nwarmup_steps: 0.06") == ([], [])
    assert ask(**SFT) == ([], [])


def test_every_fault_is_told_at_once_and_by_line(ask):
    errors, _ = ask(
        "fp16: true\nbf16: true\ndataloader_prefetch_factor: 2\nlr_scheduler_type: constant\nwarmup_steps: 9"
    )
    assert [error.split(":")[0] for error in errors] == ["5", "7", "9"]


# ---- data loaders ---------------------------------------------------------------------------------------------------


def test_prefetching_and_persisting_need_workers(ask, arguments):
    """transformers 5.23 training_args.py:1805; torch/utils/data/dataloader.py refuses the other one at train() only."""
    assert ask("dataloader_prefetch_factor: 2\ndataloader_persistent_workers: true")[0] == [
        "5: dataloader_prefetch_factor needs workers, and dataloader_num_workers is 0; "
        "write dataloader_num_workers: 2, or leave it out",
        "6: dataloader_persistent_workers needs workers, and dataloader_num_workers is 0; "
        "write dataloader_num_workers: 2, or leave it out",
    ]
    assert ask("dataloader_num_workers: 2\ndataloader_prefetch_factor: 2\ndataloader_persistent_workers: true")[0] == []
    with pytest.raises(ValueError, match="--dataloader_prefetch_factor can only be set when"):
        arguments(dataloader_prefetch_factor=2)
    arguments(dataloader_persistent_workers=True)  # accepted here
    from torch.utils.data import DataLoader

    with pytest.raises(ValueError, match="persistent_workers option needs num_workers > 0"):
        DataLoader([1], persistent_workers=True)


# ---- the best model -------------------------------------------------------------------------------------------------


def test_the_best_model_needs_checkpoints_where_it_is_evaluated(ask):
    """transformers 5.23 training_args.py:1752."""
    assert ask("load_best_model_at_end: true\neval_strategy: epoch\nsave_strategy: steps")[0] == [
        "5: load_best_model_at_end needs eval_strategy and save_strategy to be the same: epoch, steps; "
        "write save_strategy: epoch, or best"
    ]
    assert ask("load_best_model_at_end: true")[0] == [
        "5: load_best_model_at_end without evaluation knows no best: eval_strategy is no; write eval_strategy: steps"
    ]
    assert ask("load_best_model_at_end: true\neval_strategy: steps\neval_steps: 200\nsave_steps: 300")[0] == [
        "8: load_best_model_at_end needs save_steps: 300 to be a multiple of eval_steps: 200; "
        "write save_steps and eval_steps so that it is"
    ]
    assert ask("load_best_model_at_end: true\neval_strategy: steps\nlogging_steps: 300")[0] == [
        "5: load_best_model_at_end needs save_steps: 500 to be a multiple of eval_steps (by logging_steps): 300; "
        "write save_steps and eval_steps so that it is"
    ]


def test_our_rule_about_the_best_model_refuses_what_upstream_refuses_and_no_more(arguments):
    for evaluate, save, every, kept in itertools.product(
        ("steps", "epoch"), ("steps", "epoch", "no", "best"), (None, 100, 0.1, 150), (100, 300, 0.3, 0.25)
    ):
        words = {"load_best_model_at_end": True, "eval_strategy": evaluate, "save_strategy": save, "save_steps": kept}
        words |= {} if every is None else {"eval_steps": every}
        try:
            arguments(**words)
            refused = False
        except ValueError as error:
            assert "--load_best_model_at_end requires" in str(error)
            refused = True
        told = all_rules.errors(recipe_of({"task": "text-classification", "TrainingArguments": words}))
        assert bool(told) == refused, (words, told)


def test_saving_the_best_needs_evaluation_and_a_metric(ask):
    """transformers 5.23 trainer.py:689: "`args.metric_for_best_model` must be provided when using 'best'"."""
    assert ask("save_strategy: best")[0] == [
        "5: save_strategy: best saves nothing: eval_strategy is no; write eval_strategy: epoch or steps",
        "5: save_strategy: best needs metric_for_best_model; write metric_for_best_model: loss",
    ]
    assert ask("save_strategy: best\neval_strategy: epoch\nmetric_for_best_model: f1")[0] == []


def test_early_stopping_needs_evaluations_and_a_metric(ask, arguments):
    """transformers 5.23 trainer_callback.py:751: assertions, at the first step."""
    assert ask(top="EarlyStoppingCallback: {}")[0] == [
        "7: EarlyStoppingCallback looks at evaluations, and eval_strategy is no; write eval_strategy: epoch or steps",
        "7: EarlyStoppingCallback needs metric_for_best_model; "
        "write metric_for_best_model, or load_best_model_at_end: true (by loss)",
    ]
    good = "eval_strategy: epoch\nsave_strategy: epoch\nload_best_model_at_end: true"
    assert ask(good, "EarlyStoppingCallback: {early_stopping_patience: 3}") == ([], [])
    errors, warnings = ask("eval_strategy: epoch\nmetric_for_best_model: loss", "EarlyStoppingCallback: {}")
    assert not errors and warnings == [
        "9: EarlyStoppingCallback without load_best_model_at_end: true ends with the last model, not the best; "
        "write load_best_model_at_end: true"
    ]
    from transformers import EarlyStoppingCallback

    with pytest.raises(AssertionError, match="requires metric_for_best_model"):
        EarlyStoppingCallback().on_train_begin(arguments(eval_strategy="epoch"), None, None)
    with pytest.raises(AssertionError, match="requires IntervalStrategy of steps or epoch"):
        EarlyStoppingCallback().on_train_begin(arguments(metric_for_best_model="loss"), None, None)


def test_the_metric_of_the_best_model_must_be_measured(ask, arguments):
    """transformers 5.23 trainer.py:3443: a KeyError, after the first evaluation."""
    assert ask("metric_for_best_model: acuracy")[0] == [
        "5: metric_for_best_model: 'acuracy' is not measured; did you mean 'accuracy'?"
    ]
    assert ask("metric_for_best_model: eval_bleu")[0] == [
        "5: metric_for_best_model: 'bleu' is not measured; this task measures loss, f1, f1_micro, f1_weighted, accuracy"
    ]
    assert ask("metric_for_best_model: accuracy", "metrics: [f1]")[0] == [
        "5: metric_for_best_model: 'accuracy' is not measured; add 'accuracy' to metrics"
    ]
    assert ask("metric_for_best_model: eval_f1_micro")[0] == []
    from transformers import Trainer

    trainer = SimpleNamespace(args=arguments(metric_for_best_model="f2"), state=SimpleNamespace(best_metric=None))
    with pytest.raises(KeyError, match="is set to 'eval_f2', which is not found in the evaluation metrics"):
        Trainer._determine_best_metric(trainer, {"eval_f1": 1.0}, None)


def test_perplexity_is_better_when_it_is_lower_which_upstream_does_not_know(ask, arguments):
    """transformers 5.23 training_args.py:1592: greater_is_better = not metric_for_best_model.endswith("loss")."""
    assert arguments(metric_for_best_model="perplexity").greater_is_better is True
    assert ask("metric_for_best_model: perplexity", **TRAINER)[0] == [
        "5: greater_is_better: true (upstream's default for this name) takes the worst perplexity for the best; "
        "write greater_is_better: false"
    ]
    assert ask("metric_for_best_model: f1\ngreater_is_better: false")[0] == [
        "6: greater_is_better: false takes the worst f1 for the best; write greater_is_better: true"
    ]
    assert ask("metric_for_best_model: bits_per_byte\ngreater_is_better: false", **TRAINER)[0] == []
    assert ask("metric_for_best_model: loss")[0] == ask("metric_for_best_model: eval_loss")[0] == []


def test_metrics_are_those_of_the_task(ask):
    assert ask(top="metrics: [f1, acuracy, bleu]")[0] == [
        "7: task text-classification has no metric 'acuracy'; did you mean 'accuracy'?",
        "7: task text-classification has no metric 'bleu'; it has f1, accuracy",
    ]


def test_words_that_leave_the_metrics_out_are_refused(ask):
    """transformers 5.23 trainer.py: compute_metrics is not called, or called in another way."""
    assert ask("prediction_loss_only: true\nbatch_eval_metrics: true\neval_do_concat_batches: false")[0] == [
        "5: prediction_loss_only: true leaves the metrics out; leave it out",
        "6: batch_eval_metrics: true wants metrics in parts; ours are of the complete set, and need no logits; "
        "leave it out",
        "7: eval_do_concat_batches: false hands the metrics lists of batches; leave it out",
    ]


def test_intervals_of_another_strategy_are_doubted(ask):
    assert ask("eval_strategy: epoch\neval_steps: 10\nsave_strategy: no\nsave_steps: 10\nlogging_steps: 5") == (
        [],
        [
            "6: eval_steps has no effect: eval_strategy is epoch; write eval_strategy: steps, or leave eval_steps out",
            "8: save_steps has no effect: save_strategy is no; write save_strategy: steps, or leave save_steps out",
        ],
    )


def test_resuming_needs_the_optimizers_state(ask):
    """transformers 5.23 trainer.py:3923: without optimizer.pt it resumes silently with a fresh one."""
    assert ask("save_only_model: true\nresume_from_checkpoint: true")[0] == [
        "5: resume_from_checkpoint with save_only_model: its checkpoints hold no optimizer and no schedule; "
        "leave save_only_model out, or start again from the weights"
    ]
    assert ask("save_only_model: true\nignore_data_skip: true") == (
        [],
        ["6: ignore_data_skip: true: a resumed run sees other rows than an uninterrupted one; leave it out"],
    )


def test_a_hidden_nan_and_flags_of_example_scripts_are_doubted(ask):
    """transformers 5.23 trainer.py:1912 logs a NaN loss as 0.0."""
    training = "logging_nan_inf_filter: true\ndo_predict: true\ndo_eval: false\ninclude_for_metrics: [inputs]"
    assert ask(training) == (
        [],
        [
            "5: logging_nan_inf_filter: true logs a NaN loss as 0.0; leave it out: this package turns it off",
            "6: do_predict has no effect: a test split is always evaluated after training; leave it out",
            "7: do_eval: false has no effect: a run ends with evaluation; leave it out",
            "8: include_for_metrics costs memory, and no metric of ours reads it; leave it out",
        ],
    )


# ---- precision ------------------------------------------------------------------------------------------------------


def test_fp16_and_bf16_exclude_each_other(ask, arguments):
    """transformers 5.23 training_args.py:1785: "At most one of fp16 and bf16 can be True, but not both"."""
    assert ask("fp16: true\nbf16: true")[0] == ["5: fp16 and bf16 are both true; keep one; bf16 where the GPU has it"]
    assert ask("bf16_full_eval: true\nfp16_full_eval: true")[0] == [
        "6: fp16_full_eval and bf16_full_eval are both true; keep one; bf16 where the GPU has it"
    ]
    with pytest.raises(ValueError, match="At most one of fp16 and bf16 can be True"):
        arguments(fp16=True, bf16=True)


@pytest.mark.parametrize(
    "model",
    [
        "google/gemma-3-270m",  # by the table of shapes
        "google/gemma-2-2b",  # by its name
        "someone/MyGemma3n-E2B-tuned",
        "{preset: gemma-270m}",
        "{config: {model_type: gemma2}}",
    ],
)
def test_fp16_is_refused_for_gemma_2_and_3(ask, model):
    """transformers#39972 and unsloth#4014: activations of about 800,000 are inf in fp16."""
    top = "tokenizer: {pretrained_model_name_or_path: google/gemma-3-270m}" if model.startswith("{") else ""
    assert ask("fp16: true", top, task="causal-lm", model=model)[0] == [
        "5: fp16: true with a Gemma: activations of Gemma 2 and 3 pass 65504, the largest fp16 (transformers#39972); "
        "write bf16: true (fp32 where the GPU has no bf16)"
    ]
    assert ask("bf16: true", top, task="causal-lm", model=model)[0] == []


def test_fp16_is_refused_for_a_gemma_by_its_local_config(ask, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "gemma3_text", "max_position_embeddings": 64}')
    errors, _ = ask(
        "fp16: true", "dataset: {path: json, max_length: 65}", task="causal-lm", model=str(tmp_path / "mine")
    )
    assert [error.split(": ")[1] for error in errors] == ["fp16", "dataset.max_length"]


def test_an_older_or_unknown_gemma_in_fp16_is_doubted_and_other_models_are_not(ask):
    warning = ["5: fp16: true with a Gemma may overflow to NaN; write bf16: true"]
    assert ask("fp16: true", task="causal-lm", model="google/gemma-2b") == ([], warning)  # generation 1
    assert ask("fp16: true", task="causal-lm", model="google/gemma-4-E2B") == ([], warning)
    assert ask("fp16: true", task="causal-lm", model="Qwen/Qwen3-0.6B") == ([], [])


def test_the_loss_scaler_takes_neither_fp16_nor_bf16_weights(ask):
    """torch/amp/grad_scaler.py: "Attempting to unscale FP16 gradients."; bf16: pytorch#127176 (CUDA only)."""
    model = "{pretrained_model_name_or_path: gpt2, dtype: float16}"
    assert ask("fp16: true", task="causal-lm", model=model)[0] == [
        "2: dtype: float16 with fp16: true: torch refuses to unscale fp16 gradients; "
        "write dtype: float32 (autocast), or master_weights: true with fp16: true (O2)"
    ]
    assert ask("", task="causal-lm", model=model)[0] == [
        "2: dtype: float16 trains fp16 weights without fp32 masters: Adam turns to NaN; "
        "write dtype: float32 (autocast), or master_weights: true with fp16: true (O2)"
    ]
    model = "{pretrained_model_name_or_path: gpt2, dtype: bfloat16}"
    assert ask("fp16: true", task="causal-lm", model=model)[0] == [
        "2: fp16: true scales the loss, and torch's scaler cannot unscale the gradients of bfloat16 weights; "
        "write bf16: true instead of fp16: true, or dtype: float32"
    ]
    import torch

    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight * 2).sum().float()).backward()
    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients\."):
        scaler.unscale_(torch.optim.SGD([weight]))


def test_sixteen_bit_weights_under_an_adapter_are_fine_with_scaling(ask):
    lora = "LoraConfig: {r: 8}"
    model = "{pretrained_model_name_or_path: gpt2, dtype: %s}"
    assert ask("fp16: true", lora, task="causal-lm", model=model % "bfloat16") == ([], [])
    assert ask("fp16: true", lora, task="causal-lm", model=model % "float16") == ([], [])
    assert ask("bf16: true", task="causal-lm", model=model % "bfloat16") == ([], [])
    assert ask("", lora, task="causal-lm", model=model % "float16")[1] == [
        "2: dtype: float16 without fp16: true trains without loss scaling: small gradients vanish; "
        "write fp16: true beside it, or dtype: bfloat16"
    ]
    assert ask("fp16: true", task="causal-lm", model=model % "auto")[1] == [
        "2: dtype: auto with fp16: true fails at step 1 if the checkpoint is in 16 bits; write dtype: float32"
    ]


MASTERS = "master_weights: true"


@pytest.mark.parametrize(
    ("training", "top", "model", "error"),
    [
        ("", "", "gpt2", "9: master_weights is the O2 of fp16, and fp16 is not true; "
         "write fp16: true beside it, or leave master_weights out"),
        ("fp16: true", "LoraConfig: {r: 8}", "gpt2", "9: master_weights with LoraConfig: the adapter's weights are "
         "fp32 already, the base is frozen; leave master_weights out, and fp16: true is enough"),
        ("fp16: true", "", "google/gemma-2b", "9: master_weights with a Gemma: activations of Gemma 2 and 3 pass "
         "65504, the largest fp16 (transformers#39972); write bf16: true instead"),
        ("fp16: true\noptim: adafactor", "", "gpt2", "6: master_weights with optim: adafactor: only adamw_torch, "
         "adamw_torch_fused, adamw_bnb_8bit are tested on fp32 masters; use one of them"),
        ("fp16: true", "", "{pretrained_model_name_or_path: gpt2, dtype: bfloat16}", "2: master_weights with dtype: "
         "bfloat16: the model's own weights are float16 then; write dtype: float32, or leave it out"),
    ],
)  # fmt: skip
def test_master_weights_are_refused_where_they_cannot_be(ask, training, top, model, error):
    padding = "seed: 1\n" * (2 - len(training.splitlines()))
    padding = padding.replace("seed: 1\nseed: 1\n", "seed: 1\ndata_seed: 1\n")
    text = f"{training}\n{padding}".strip("\n")
    assert error in ask(text, f"{MASTERS}\n{top}", task="causal-lm", model=model)[0]


def test_master_weights_are_refused_with_quantised_and_sharded_weights(ask):
    bnb = "BitsAndBytesConfig: {load_in_4bit: true}\nLoraConfig: {r: 8}"
    errors, _ = ask("fp16: true\nfsdp: true", f"{MASTERS}\n{bnb}", **TRAINER)
    assert "9: master_weights with BitsAndBytesConfig: quantised weights are not trained, so they have no masters; " \
        "leave master_weights out" in errors  # fmt: skip
    assert (
        "9: master_weights with fsdp: it needs complete fp32 copies, fsdp shards them; write bf16: true instead"
        in errors
    )


def test_master_weights_pass_with_the_optimizers_that_are_tested(ask):
    from hf_recipes.training.master_weights import OPTIMIZERS

    assert OPTIMIZERS == precision.MASTER_OPTIMIZERS
    for optim in OPTIMIZERS:
        assert ask(f"fp16: true\noptim: {optim}", MASTERS, **TRAINER)[0] == []
    model = "{pretrained_model_name_or_path: gpt2, dtype: float16}"
    assert ask("fp16: true", MASTERS, task="causal-lm", model=model)[0] == []


# ---- learning rate and optimizer ------------------------------------------------------------------------------------


def scheduled(name, warmup=10, **words):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    return get_scheduler(name, optimizer, warmup, 100, words or None)


def test_a_warm_up_that_the_schedule_ignores_is_refused(ask):
    """transformers/optimization.py:1014: get_scheduler hands `constant` the optimizer alone."""
    assert ask("lr_scheduler_type: constant\nwarmup_steps: 10")[0] == [
        "6: lr_scheduler_type: constant ignores warmup_steps; write lr_scheduler_type: constant_with_warmup"
    ]
    assert ask("lr_scheduler_type: constant")[0] == []
    assert scheduled("constant").get_last_lr() == [1.0]  # no warm-up
    assert scheduled("constant_with_warmup").get_last_lr() == [0.0]
    for name in set(optimising.SCHEDULER_ARGUMENTS) - set(optimising.NO_WARMUP):
        words = {"cosine_with_min_lr": {"min_lr": 0.1}, "cosine_warmup_with_min_lr": {"min_lr": 0.1}}.get(name, {})
        words |= {"num_decay_steps": 10} if name == "warmup_stable_decay" else {}
        assert scheduled(name, **words).get_last_lr()[0] <= 0.1  # these do warm up


def test_warmup_steps_1_0_is_one_step_not_all_of_them(ask, arguments):
    """transformers 5.23 training_args.py:2154: int(warmup_steps) from 1 on."""
    assert ask("warmup_steps: 1.0")[0] == [
        "5: warmup_steps: 1.0 is one step, not 100 %; write 1, or 0.999999999 for all steps"
    ]
    assert ask("warmup_steps: 10.7")[0] == ["5: warmup_steps: 10.7 is cut to 10 steps; write a whole number"]
    for fine in ("1", "100.0", "0.06", "0.999999999"):
        assert ask(f"warmup_steps: {fine}")[0] == []
    assert arguments(warmup_steps=1.0).get_warmup_steps(100) == 1
    assert arguments(warmup_steps=10.7).get_warmup_steps(100) == 10
    assert arguments(warmup_steps=0.999999999).get_warmup_steps(100) == 100


def test_a_run_that_is_all_warm_up_is_doubted(ask):
    assert ask("warmup_steps: 100\nmax_steps: 100")[1] == [
        "5: warmup_steps: 100 of max_steps: 100: the run is all warm-up"
    ]


def test_the_words_of_every_schedule_are_upstreams():
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_utils import SchedulerType

    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}  # their functions take **kwargs
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    assert set(optimising.SCHEDULER_ARGUMENTS) == {name.value for name in SchedulerType}
    for name, words in optimising.SCHEDULER_ARGUMENTS.items():
        made_by = classes.get(name, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
        assert set(words) == set(inspect.signature(made_by).parameters) - ours, name


def test_strange_words_for_a_schedule_are_refused_with_the_right_one(ask):
    """transformers/optimization.py:960: a TypeError at train(); min_lr_ratio is of warmup_stable_decay only."""
    assert ask("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr_ratio: 0.1")[0] == [
        "6: lr_scheduler_type: cosine_with_min_lr needs one of min_lr and min_lr_rate, and has none; "
        "write lr_scheduler_kwargs: {min_lr_rate: 0.1}",
        "7: lr_scheduler_type: cosine_with_min_lr has no min_lr_ratio; did you mean 'min_lr_rate'?",
    ]
    assert ask("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {min_lr_rate: 0.1}")[0] == [
        "6: lr_scheduler_type: cosine has no min_lr_rate; write lr_scheduler_type: cosine_with_min_lr with min_lr_rate"
    ]
    assert ask("lr_scheduler_type: cosine_with_min_lr")[0] == [
        "5: lr_scheduler_type: cosine_with_min_lr needs one of min_lr and min_lr_rate, and has none; "
        "write lr_scheduler_kwargs: {min_lr_rate: 0.1}"
    ]
    assert ask("lr_scheduler_type: linear\nlr_scheduler_kwargs: {num_cycles: 2}")[0] == [
        "6: lr_scheduler_type: linear has no num_cycles; it has no arguments of its own"
    ]
    assert ask("lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_ende: 0}")[0] == [
        "6: lr_scheduler_type: polynomial has no lr_ende; did you mean 'lr_end'?"
    ]
    plateau = "lr_scheduler_type: reduce_lr_on_plateau\nlr_scheduler_kwargs: {factr: 0.5}\neval_strategy: epoch"
    assert ask(plateau)[0] == ["6: lr_scheduler_type: reduce_lr_on_plateau has no factr; did you mean 'factor'?"]
    assert ask("lr_scheduler_type: warmup_stable_decay")[0] == [
        "5: lr_scheduler_type: warmup_stable_decay needs num_decay_steps; "
        "write lr_scheduler_kwargs: {num_decay_steps: ...}"
    ]
    assert ask("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}")[0] == []
    for name, words in {"cosine": {"min_lr_rate": 0.1}, "cosine_with_min_lr": {"min_lr_ratio": 0.1}}.items():
        with pytest.raises(TypeError, match="unexpected keyword argument 'min_lr_ra"):
            scheduled(name, **words)
    with pytest.raises(ValueError, match="One of min_lr or min_lr_rate should be set"):
        scheduled("cosine_with_min_lr")
    with pytest.raises(ValueError, match="Only one of min_lr or min_lr_rate should be set"):
        scheduled("cosine_with_min_lr", min_lr=0.1, min_lr_rate=0.1)


def test_strange_words_for_checkpointing_are_refused_as_torch_does_in_the_first_step(ask):
    import torch
    from torch.utils.checkpoint import checkpoint

    held = "activation_checkpointing: true\nactivation_checkpointing_kwargs: {use_reentrent: true, every_n_layers: 2}"
    assert ask(held)[0] == ["6: activation_checkpointing_kwargs has no 'use_reentrent'; did you mean 'use_reentrant'?"]
    with pytest.raises(ValueError, match="Unexpected keyword arguments: use_reentrent"):
        checkpoint(torch.sin, torch.ones(1), use_reentrant=True, use_reentrent=True)
    assert {*optimising.CHECKPOINTING_ARGUMENTS, "context_fn"} == {  # the last is a function: no file can hold it
        *set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs"},
        "preserve_rng_state",
    }


def test_a_data_file_that_is_no_name_is_refused(ask):
    top = "dataset:\n  path: json\n  data_files:\n    train: [a.jsonl, 3]\n    validation: null"
    assert ask("seed: 1", top=top)[0] == [
        "11: dataset.data_files.train is 3, not the name of a file; write a path or a pattern",
        "12: dataset.data_files.validation is null, not the name of a file; write a path or a pattern",
    ]


def test_rows_of_one_token_are_refused_for_a_language_model(ask):
    top = "dataset: {path: text, data_files: {train: a.txt}, max_length: 1}"
    assert ask(top=top, task="causal-lm")[0] == [
        "7: dataset.max_length: 1 leaves no token to predict; write a few hundred"
    ]
    assert ask("max_length: 1", task="chat", trainer="SFTConfig")[0] == [
        "5: SFTConfig.max_length: 1 leaves no token to predict; write a few hundred"
    ]
    assert ask(top=top)[0] == []  # a classifier needs one token


def test_sampling_at_temperature_zero_is_refused_as_generate_does_at_the_first_evaluation(ask):
    from transformers.generation.logits_process import TemperatureLogitsWarper

    top = "sample_prompts: [a]\nGenerationConfig: {do_sample: true, temperature: 0.0}"
    assert ask(top=top, task="causal-lm")[0] == [
        "8: GenerationConfig.temperature: 0 cannot be sampled at; write do_sample: false, which is what it means"
    ]
    with pytest.raises(ValueError, match="strictly positive float"):
        TemperatureLogitsWarper(0.0)


def test_an_adapter_on_random_weights_is_doubted_since_its_base_is_saved_nowhere(ask):
    top = "LoraConfig: {target_modules: [c_attn]}\nBpeTrainer: {vocab_size: 500}"
    assert ask(top=top, task="causal-lm", model="{preset: gpt-tiny}")[1] == [
        "7: LoraConfig with model.preset: the adapter is saved without the random weights that it belongs to; "
        "leave LoraConfig out, or start from a pretrained model"
    ]


def test_evaluating_only_neither_resumes_nor_pushes(ask):
    assert ask("do_train: false\nresume_from_checkpoint: true\npush_to_hub: true\nhub_model_id: me/x")[0] == [
        "6: resume_from_checkpoint has no effect with do_train: false: the checkpoint would not be evaluated; "
        "write model.pretrained_model_name_or_path: the checkpoint",
        "7: push_to_hub: true with do_train: false: nothing is trained, so there is nothing to push; leave it out",
    ]


def test_dora_on_8_bit_weights_is_refused_on_a_cpu_where_peft_loses_their_scales():
    import torch
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(4, 4, bias=False, has_fp16_weights=False).to("cpu")
    layer(torch.ones(1, 4))
    layer.weight = layer.weight.to("cpu")  # as peft's dequantize_module_weight does on a CPU, at each forward of DoRA
    with pytest.raises(AttributeError):
        layer(torch.ones(1, 4))  # the day that this works, the rule may go
    sections = {"LoraConfig": {"use_dora": True}, "BitsAndBytesConfig": {"load_in_8bit": True}, "SFTConfig": {}}
    recipe = recipe_of(sections)
    assert [str(error) for error in all_rules.device_errors(recipe, CPU)] == [
        "a.yaml: LoraConfig.use_dora: true with load_in_8bit: true: peft loses the weights' scales on a CPU; "
        "write load_in_4bit: true, or leave use_dora out"
    ]
    assert all_rules.device_errors(recipe, A100) == []


def test_a_schedule_that_follows_evaluations_needs_them(ask, arguments):
    """transformers 5.23 training_args.py:1792: "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy"."""
    for name in optimising.NEED_EVALUATION:
        assert ask(f"lr_scheduler_type: {name}")[0] == [
            f"5: lr_scheduler_type: {name} follows evaluations, and eval_strategy is no; "
            f"write eval_strategy: epoch or steps"
        ]
        with pytest.raises(ValueError, match="requires an eval strategy"):
            arguments(lr_scheduler_type=name)


def handlers():
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS

    return _OPTIMIZER_HANDLERS


def test_optim_args_that_the_optimizer_ignores_are_refused(ask, arguments):
    """transformers/trainer_optimizer.py _get_adamw_torch: optim_args are not looked at."""
    assert ask("optim: adamw_torch\noptim_args: amsgrad=True")[0] == [
        "6: optim: adamw_torch ignores amsgrad in optim_args; leave it out"
    ]
    assert ask("optim: sgd\noptim_args: 'momentum=0.9, nestrov=true'")[0] == [
        "6: optim: sgd ignores nestrov in optim_args; did you mean 'nesterov'?"
    ]
    assert ask("optim: sgd\noptim_args: momentum 0.9")[0] == [
        "6: optim_args: 'momentum 0.9' is not a list of key=value; write it as 'key=value, key=value'"
    ]
    assert ask("optim: sgd\noptim_args: momentum=0.9")[0] == []
    from transformers import Trainer

    args = arguments(optim="adamw_torch", optim_args="amsgrad=True")
    assert "amsgrad" not in Trainer.get_optimizer_cls_and_kwargs(args)[1]


def test_the_table_of_optim_args_is_what_upstreams_handlers_read():
    for name, handler in handlers().items():
        source, known = inspect.getsource(handler), optimising.optim_args_of(name)
        if handler.__name__ == "_get_bitsandbytes_optimizer":
            assert (known is None) == ("rmsprop" in name) and bool(known) == ("ademamix" in name)
            assert all(f'"{word}"' in source for word in known or ())
        elif known:
            assert all(f'"{word}"' in source for word in known), name
            assert source.count("optim_args.pop(") + source.count("optim_args.get(") in (0, len(known))
        else:
            assert "optim_args" not in source, name


def test_low_rank_optimizers_need_their_modules_and_layerwise_ones_no_accumulation(ask):
    """transformers/trainer_optimizer.py _setup_low_rank_optimizer."""
    errors, _ = ask("optim: galore_adamw_layerwise\ngradient_accumulation_steps: 4")
    assert errors == [
        "5: optim: galore_adamw_layerwise needs optim_target_modules; write optim_target_modules: all-linear",
        "6: optim: galore_adamw_layerwise steps inside backward, so it takes no gradient_accumulation_steps; "
        "write 1, or take the optimizer without _layerwise",
    ]


def test_a_batch_size_that_changes_by_itself_is_refused(ask):
    """accelerate/utils/memory.py:167 takes 0.9 of the batch and calls the loop anew, on trained weights."""
    assert ask("auto_find_batch_size: true")[0] == [
        "5: auto_find_batch_size changes the effective batch and restarts the schedule on trained weights; "
        "state per_device_train_batch_size and gradient_accumulation_steps"
    ]
    from accelerate.utils.memory import find_executable_batch_size

    seen = []

    @find_executable_batch_size(starting_batch_size=16)
    def loop(size):
        seen.append(size)
        if size > 10:
            raise RuntimeError("CUDA out of memory.")

    loop()
    assert seen == [16, 14, 12, 10]


def test_epochs_beside_steps_and_tf32_beside_compiling_are_doubted(ask):
    """transformers 5.23 trainer.py:727 (at info level); pytorch#166387."""
    assert ask("max_steps: 10\nnum_train_epochs: 3")[1] == [
        "6: num_train_epochs has no effect: max_steps: 10 wins; keep one of them (max_steps: -1 means none)"
    ]
    assert ask("max_steps: -1\nnum_train_epochs: 3")[1] == []
    assert ask("tf32: true\ntorch_compile: true")[1] == [
        "5: tf32: true with torch_compile may fail in inductor's autotuning (pytorch#166387); "
        "if it does, leave torch_compile_mode: max-autotune out"
    ]


# ---- model, adapter, quantisation, tokenizer ------------------------------------------------------------------------


def test_sections_that_the_task_does_not_use_are_refused(ask):
    assert ask(trainer="SFTConfig")[0] == [
        "4: task text-classification is not trained with SFTConfig; use TrainingArguments"
    ]
    assert ask(top="sample_prompts: [a]\nGenerationConfig: {max_new_tokens: 5}")[0] == [
        "7: task text-classification generates no text: sample_prompts has no effect; leave it out",
        "8: task text-classification generates no text: GenerationConfig has no effect; leave it out",
    ]
    assert ask(top="GenerationConfig: {max_new_tokens: 5}", **TRAINER)[0] == [
        "7: GenerationConfig has no effect: it is for sample_prompts, and there are none; "
        "write sample_prompts, or leave it out"
    ]


def test_the_adapters_task_type_is_the_tasks(ask):
    """peft TaskType: SEQ_CLS trains the classifier beside the adapter, CAUSAL_LM does not."""
    assert ask(top="LoraConfig: {task_type: CAUSAL_LM}")[0] == [
        "7: LoraConfig.task_type: CAUSAL_LM contradicts task: text-classification; leave it out: it is SEQ_CLS"
    ]
    assert ask(top="LoraConfig: {task_type: SEQ_CLS}")[0] == []


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=64, n_positions=16))


def test_a_frozen_adapter_is_refused(ask):
    """peft sets requires_grad to False on an adapter in inference_mode."""
    assert ask(top="LoraConfig: {inference_mode: true}")[0] == [
        "7: LoraConfig.inference_mode: true freezes the adapter: nothing would be trained; leave it out"
    ]
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_gpt2(), LoraConfig(inference_mode=True, target_modules=["c_attn"], fan_in_fan_out=True))
    assert model.get_nb_trainable_parameters()[0] == 0


def test_lora_targets_that_the_architecture_has_not_are_refused_or_doubted(ask):
    """peft: "Target modules ... not found in the base model" if none is there, and nothing if only some are missing."""
    assert ask(top="LoraConfig: {target_modules: [q_proj, v_proj]}")[0] == [
        "7: LoraConfig.target_modules: a bert has no q_proj, v_proj; it has word_embeddings, position_embeddings, "
        "token_type_embeddings, query, key, value, dense, classifier; or write all-linear"
    ]
    assert ask(top="LoraConfig: {target_modules: [query, vlaue]}") == (
        [],
        ["7: LoraConfig.target_modules: a bert has no vlaue; did you mean 'value'?"],
    )
    for fine in ("[attention.self.query]", "all-linear", "'.*query'"):
        assert ask(top=f"LoraConfig: {{target_modules: {fine}}}") == ([], [])
    assert ask(top="LoraConfig: {target_modules: [whatever]}", model="someone/unknown") == ([], [])
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(tiny_gpt2(), LoraConfig(target_modules=["q_proj"]))


TINY = {
    "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
TINY_DISTILBERT = {"n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 8, "vocab_size": 16}


@pytest.mark.parametrize("kind", building.LORA_TARGETS)
def test_the_table_of_lora_targets_is_the_installed_architectures(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, Conv1D
    from transformers import AutoModelForTokenClassification as AutoModelForTokens

    config = AutoConfig.for_model(kind, **(TINY_DISTILBERT if kind == "distilbert" else TINY))
    names = set()
    encoder = kind in ("bert", "distilbert")
    for auto in (AutoModelForSequenceClassification, AutoModelForTokens if not encoder and kind in ("gpt2", "phi") else
                 AutoModelForSequenceClassification if encoder else AutoModelForCausalLM,
                 AutoModelForSequenceClassification if encoder else AutoModelForCausalLM):  # fmt: skip
        with torch.device("meta"):
            model = auto.from_config(config)
        kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
        names |= {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    assert names == set(building.LORA_TARGETS[kind])


def test_an_adapter_on_the_head_is_refused_under_sfttrainer(ask):
    """trl 1.16 sft_trainer.py:1070: "Applying a PEFT adapter to `lm_head` is not supported"."""
    assert ask(top="LoraConfig: {target_modules: [c_attn, lm_head]}", **SFT)[0] == [
        "7: LoraConfig.target_modules has lm_head, which SFTTrainer reads without its adapter; "
        "take it out, or write modules_to_save: [lm_head]"
    ]
    assert ask(top="LoraConfig: {target_modules: [c_attn, lm_head]}", **TRAINER)[0] == []


def test_quantised_weights_need_an_adapter_and_must_be_there(ask):
    """transformers 5.23 trainer_utils.py:133: "You cannot perform fine-tuning on purely quantized models"."""
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true}")[0] == [
        "7: BitsAndBytesConfig without LoraConfig: quantised weights cannot be trained; "
        "add LoraConfig (QLoRA), or leave BitsAndBytesConfig out"
    ]
    top = "BitsAndBytesConfig: {load_in_4bit: true}\nLoraConfig: {r: 8}\nBpeTrainer: {vocab_size: 2000}"
    assert ask(top=top, task="causal-lm", model="{preset: gpt-tiny}")[0] == [
        "7: BitsAndBytesConfig with model.preset: a model from scratch has no weights to quantise; leave it out"
    ]
    from transformers.trainer_utils import validate_quantization_for_training

    with pytest.raises(ValueError, match="You cannot perform fine-tuning on purely quantized models"):
        validate_quantization_for_training(SimpleNamespace(is_quantized=True))


def test_quantisation_says_one_thing(ask):
    """transformers/utils/quantization_config.py: "only one can be used at the same time"."""
    lora = "\nLoraConfig: {r: 8}"
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true, load_in_8bit: true}" + lora)[0] == [
        "7: BitsAndBytesConfig has load_in_4bit and load_in_8bit; keep one of them"
    ]
    assert ask(top="BitsAndBytesConfig: {bnb_4bit_quant_type: nf4}" + lora)[0] == [
        "7: BitsAndBytesConfig quantises nothing: neither load_in_4bit nor load_in_8bit is true; "
        "write load_in_4bit: true"
    ]
    assert ask(top="BitsAndBytesConfig: {load_in_8bit: true, bnb_4bit_quant_type: nf4}" + lora)[0] == [
        "7: BitsAndBytesConfig.bnb_4bit_quant_type has no effect with load_in_8bit; "
        "leave it out, or write load_in_4bit: true"
    ]
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true, llm_int8_threshold: 5.0}" + lora)[0] == [
        "7: BitsAndBytesConfig.llm_int8_threshold has no effect with load_in_4bit; "
        "leave it out, or write load_in_8bit: true"
    ]
    from transformers import BitsAndBytesConfig

    names = set(inspect.signature(BitsAndBytesConfig).parameters)
    assert {*building.ONLY_4BIT, *building.ONLY_8BIT} <= names
    with pytest.raises(ValueError, match="only one can be used at the same time"):
        BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True)


def test_a_trained_tokenizer_is_for_a_model_from_scratch_alone(ask):
    assert ask(top="BpeTrainer: {vocab_size: 2000}\ntokenizer: {pretrained_model_name_or_path: gpt2}")[0] == [
        "7: BpeTrainer with a pretrained model: its embeddings belong to its own tokenizer's tokens; "
        "leave it out, or start from scratch with model.preset or model.config",
        "7: BpeTrainer trains a tokenizer, and one is given (8); keep one of BpeTrainer and tokenizer",
    ]
    assert ask(top="BpeTrainer: {vocab_size: 256}", task="causal-lm", model="{preset: gpt-tiny}")[0] == [
        "7: BpeTrainer.vocab_size: 256 leaves no room beside 256 bytes and the end token; write some thousands"
    ]


def test_rows_longer_than_the_models_positions_are_refused(ask):
    """A table of positions has an end: an IndexError on the CPU, a crash of the card on CUDA."""
    top = "dataset: {path: json, data_files: a.jsonl, max_length: 513}"
    error = (
        "dataset.max_length: 513 tokens are more than the model's 512 positions; set dataset.max_length: 512 or less"
    )
    assert ask(top=top)[0] == [f"7: {error}"]
    assert ask("max_length: 1025", **SFT)[0] == [
        "5: SFTConfig.max_length: 1025 tokens are more than the model's 1024 positions; "
        "set SFTConfig.max_length: 1024 or less"
    ]
    scratch = {**SFT, "model": "{preset: gpt-tiny, n_positions: 64}"}
    assert ask("max_length: 65", "BpeTrainer: {vocab_size: 2000}", **scratch)[0] == [
        "5: SFTConfig.max_length: 65 tokens are more than the model's 64 positions; "
        "set SFTConfig.max_length: 64 or less"
    ]
    import torch

    with pytest.raises(IndexError):
        tiny_gpt2()(torch.zeros(1, 17, dtype=torch.long))


def test_an_adapter_with_a_learning_rate_for_full_fine_tuning_is_doubted():
    warnings = all_rules.warnings(recipe_of({"SFTConfig": {}, "LoraConfig": {"r": 8}}))
    assert [str(warning) for warning in warnings] == [
        "a.yaml: LoraConfig with SFTConfig's default learning_rate (2e-05), which is for full fine-tuning; "
        "state learning_rate; 2e-4 is usual for LoRA"
    ]


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_columns_of_other_tasks_are_refused(ask):
    top = "dataset: {path: json, data_files: a.jsonl, tokens_column: words, text_column: text}"
    assert ask(top=top)[0] == [
        "7: dataset.tokens_column is not for task text-classification; its columns are text_column, label_column"
    ]
    top = "dataset: {path: json, data_files: a.jsonl, messages_column: m, prompt_column: p}"
    assert ask(top=top, task="chat", trainer="SFTConfig", model="gpt2")[0] == [
        "7: dataset.prompt_column has no effect beside dataset.messages_column; keep one of them"
    ]


def test_a_second_length_and_streaming_are_refused(ask):
    top = "dataset: {path: json, data_files: a.jsonl, max_length: 128, streaming: true}"
    assert ask(top=top, **SFT)[0] == [
        "7: dataset.max_length stands beside SFTConfig, which has its own max_length; "
        "write SFTConfig.max_length instead",
        "7: dataset.streaming: true: rows are prepared once as tables on disk, which need not fit in memory; "
        "leave it out",
    ]


def test_a_share_beside_a_validation_file_is_doubted(ask):
    top = "dataset: {path: json, data_files: {train: a.jsonl, validation: b.jsonl}, test_size: 0.1}"
    assert ask(top=top)[1] == ["7: dataset.test_size has no effect: a validation split is given; leave it out"]
    assert ask(top="dataset: {path: json, data_files: {train: a.jsonl, test: b.jsonl}, test_size: 0.1}")[1] == []


@pytest.fixture
def sft(tmp_path):
    """The real SFTTrainer on two rows of tokens."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    rows = Dataset.from_dict({"input_ids": [[1, 1, 0]] * 2, "labels": [[1, 1, 0]] * 2})

    def built(model=None, **more):
        base = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "activation_checkpointing": False}
        args = SFTConfig(**base, **more)
        return SFTTrainer(model=model or tiny_gpt2(), args=args, train_dataset=rows, processing_class=tokenizer)

    return built


def test_packing_words_that_trl_refuses_late_are_refused_early(ask, sft):
    """trl 1.16 sft_trainer.py:1001 and :1468."""
    assert ask("packing: true\nmax_length: null", **SFT)[0] == [
        "6: packing: true needs max_length, and it is null; write max_length: 1024"
    ]
    assert ask("padding_free: true", **SFT)[0] == [
        "5: padding_free: true without packing: true ignores max_length; write packing: true, or max_length: null"
    ]
    assert ask("padding_free: true\nmax_length: null", **SFT)[0] == []
    with pytest.raises(ValueError, match="When `padding_free=True` without packing, `max_length` is not enforced"):
        sft(padding_free=True)
    with pytest.raises(ValueError, match="When packing is enabled, `max_length` can't be `None`"):
        sft(packing=True, max_length=None)


def test_assistant_loss_a_second_fused_head_and_an_adapter_on_the_head_are_refused_as_trl_does(ask, sft):
    """trl 1.16 sft_trainer.py:935, :1137 and :1070."""
    assert ask("assistant_only_loss: true", **SFT)[0] == [
        "5: assistant_only_loss: true: task causal-lm has no assistant; leave it out, or write task: chat"
    ]
    with pytest.raises(ValueError, match="the dataset is not conversational"):
        sft(assistant_only_loss=True)
    errors, _ = ask("use_liger_kernel: true\nliger_kernel_config: {fused_linear_cross_entropy: true}", **SFT)
    assert errors == [
        "6: liger_kernel_config.fused_linear_cross_entropy: true: SFTTrainer has a fused head of its own; leave it out"
    ]
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_gpt2(), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        sft(model)


def test_packed_documents_must_not_see_each_other(ask):
    """transformers/masking_utils.py:876: the block mask is derived only without a cache."""
    assert ask("packing: true\nuse_cache: true", **SFT)[0] == [
        "6: use_cache: true with packing or padding_free: packed documents would see each other; leave use_cache out"
    ]
    chat = {**SFT, "task": "chat"}
    assert ask("packing: true\npacking_strategy: wrapped", **chat)[1] == [
        "6: packing_strategy: wrapped lets a conversation see the one before it in its block; "
        "bfd and bfd_split keep them apart"
    ]
    assert ask("packing: true\npacking_strategy: wrapped", **SFT) == ([], [])
    assert ask("packing_strategy: bfd", **SFT)[1] == [
        "5: packing_strategy has no effect: packing is not true; write packing: true, or leave it out"
    ]


def test_words_about_rows_that_reach_nothing_are_doubted(ask):
    """Rows come to SFTTrainer tokenized and labelled by this package."""
    training = "dataset_text_field: body\nmodel_init_kwargs: {use_cache: false}\ncompletion_only_loss: true"
    training += "\neval_packing: true"
    assert ask(training, **SFT)[1] == [
        "5: SFTConfig.dataset_text_field has no effect here; write dataset.text_column",
        "6: SFTConfig.model_init_kwargs has no effect here; write its keys into the model section",
        "7: SFTConfig.completion_only_loss has no effect: task causal-lm has no chat; leave it out",
        "8: SFTConfig.eval_packing has no effect here; evaluation rows are never packed",
    ]
    assert ask("label_smoothing_factor: 0.1\nremove_unused_columns: false", **SFT)[1] == [
        "5: label_smoothing_factor makes SFTTrainer run each forward twice; trl 2.0 drops it; leave it out",
        "6: remove_unused_columns: false has no effect: rows hold only what the model takes; leave it out",
    ]
    assert ask("truncation_mode: keep_end", **SFT)[1] == [
        "5: SFTConfig.truncation_mode: keep_end has no effect here: long rows lose their end; leave it out; "
        "trl 2.0 drops it"
    ]


# ---- spreading, reporting, publishing -------------------------------------------------------------------------------


def test_topology_belongs_into_the_accelerate_file(ask):
    """transformers 5.23 trainer.py:475 and :478; A recipe's fsdp overrides the file's values in silence."""
    assert ask("fsdp: true\ndeepspeed: ds.json")[0] == [
        "5: fsdp says how a run is spread over GPUs, which belongs into the accelerate file; "
        "leave it out and launch with --config_file accelerate_configs/fsdp2.yaml",
        "6: deepspeed says how a run is spread over GPUs, which belongs into the accelerate file; "
        "leave it out and launch with --config_file accelerate_configs/deepspeed_zero3.yaml",
    ]
    assert ask("fsdp: false")[0] == []


def test_report_to_null_is_refused(ask, arguments):
    """transformers 5.23 training_args.py:1601: report_to None becomes [None]."""
    assert ask("report_to: null")[0] == ["5: report_to: null is not 'none' to upstream; write report_to: none"]
    from transformers.integrations import get_reporting_integration_callbacks

    assert arguments(report_to=None).report_to == [None]
    with pytest.raises(ValueError, match="None is not supported"):
        get_reporting_integration_callbacks([None])


def test_pushing_without_a_name_and_with_another_strategy_is_doubted(ask):
    """transformers 5.23 trainer.py:4253 names the repository after output_dir."""
    assert ask("push_to_hub: true\nhub_strategy: checkpoint")[1] == [
        "5: push_to_hub without hub_model_id: the repository is called 'a', after output_dir; "
        "write hub_model_id: <user>/<name>",
        "6: hub_strategy: checkpoint has no effect: checkpoints stay in output_dir; "
        "leave it out: the finished model is pushed once, after training",
    ]
    assert ask("push_to_hub: true\nhub_model_id: me/a\nhub_strategy: every_save")[1] == []


# ---- the machine ----------------------------------------------------------------------------------------------------


def device_errors(device, sections):
    return [str(error) for error in all_rules.device_errors(recipe_of(sections), device)]


def test_precisions_that_the_card_has_not_are_refused():
    """transformers 5.23 training_args.py:1682: "--tf32 requires Ampere or a newer GPU arch"."""
    words = {"SFTConfig": {"tf32": True, "bf16": True}}
    assert device_errors(T4, words) == [
        "a.yaml: tf32: true needs a GPU of compute capability 8.0 or later; Tesla T4 has 7.5; leave tf32 out",
        "a.yaml: bf16: true needs a GPU of compute capability 8.0 or later; Tesla T4 has 7.5; "
        "write fp16: true (for a Gemma, neither)",
    ]
    assert device_errors(A100, words) == device_errors(CPU, words) == device_errors(MPS, words) == []


def test_tf32_is_really_refused_by_upstream_without_such_a_card(arguments):
    with pytest.raises(ValueError, match="--tf32 requires Ampere or a newer GPU arch"):
        arguments(tf32=True)


def test_kernels_that_the_device_has_not_are_refused():
    """bitsandbytes 0.50.2, platform table of its description: 8-bit optimizers on MPS "in progress"."""
    words = {"SFTConfig": {"optim": "adamw_bnb_8bit"}}
    assert device_errors(MPS, words) == [
        "a.yaml: optim: adamw_bnb_8bit has no kernel on an Apple GPU; "
        "write optim: adamw_torch_fused, or adafactor to save memory"
    ]
    assert device_errors(CPU, words) == device_errors(A100, words) == []
    assert device_errors(MPS, {"SFTConfig": {"optim": "lion_32bit"}}) == []
    assert device_errors(MPS, {"SFTConfig": {"optim": "paged_adamw_32bit"}}) != []


def test_fp16_on_quantised_weights_under_sfttrainer_is_refused_on_a_card():
    """trl 1.16 sft_trainer.py:911 casts the adapters to bf16; trl#4901, pytorch#127176."""
    words = {"SFTConfig": {"fp16": True}, "BitsAndBytesConfig": {"load_in_4bit": True}, "LoraConfig": {"r": 8}}
    assert device_errors(T4, words) == [
        "a.yaml: fp16: true with BitsAndBytesConfig: SFTTrainer's adapters are bf16, which torch's scaler cannot "
        "unscale; "
        "write bf16: true, or bf16: false without fp16 where the GPU has no bf16"
    ]
    assert device_errors(CPU, words) == []


def test_packages_that_are_not_installed_are_a_doubt_for_check_and_a_fault_for_run(ask):
    assert ask("optim: galore_adamw\noptim_target_modules: all-linear\nreport_to: [tensorboard, wandb]")[1] == [
        "5: optim: galore_adamw needs galore-torch, which is not installed here; pip install galore-torch",
        "7: report_to: wandb needs wandb, which is not installed here; pip install wandb",
    ]
    words = {"SFTConfig": {"use_liger_kernel": True}}
    assert device_errors(A100, words) == [
        "a.yaml: use_liger_kernel: true needs liger-kernel, which is not installed here; pip install liger-kernel"
    ]
    assert "a.yaml: use_liger_kernel: true: Liger's Triton kernels need a CUDA GPU, this is a CPU; " \
        "leave use_liger_kernel out" in device_errors(CPU, words)  # fmt: skip
    model = {"pretrained_model_name_or_path": "gpt2", "attn_implementation": "flash_attention_2"}
    assert device_errors(T4, {"SFTConfig": {}, "model": model}) == [
        "a.yaml: attn_implementation: flash_attention_2 needs flash-attn, which is not installed here; "
        "pip install flash-attn",
        "a.yaml: attn_implementation: flash_attention_2 needs a CUDA GPU of compute capability 8.0; this is Tesla T4; "
        "write attn_implementation: sdpa",
    ]


def test_every_optimizer_of_upstream_is_torchs_own_or_names_its_package():
    own = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    names = {str(name.value) for name in handlers()} | {"adamw_torch_xla", "adamw_torch_npu_fused"}
    assert {name for name in names if optimizer_package(name) is None} == own
    for start in OPTIMIZER_PACKAGES:
        assert any(name.startswith(start) for name in names)


def test_the_reporters_are_upstreams():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(REPORTERS) <= set(INTEGRATION_TO_CALLBACK)


def test_what_only_the_device_can_answer_is_listed(ask):
    recipe = recipe_of({"SFTConfig": {"tf32": True, "torch_compile": True, "optim": "adamw_bnb_8bit"}})
    assert all_rules.device_requirements(recipe) == [
        "bf16 needs compute capability 8.0 or later (RTX 30, A100 and newer); a CPU is slow in it",
        "tf32 needs a CUDA GPU of compute capability 8.0 or later; a CPU run drops it, and prints that",
        "optim: adamw_bnb_8bit has no 8-bit and no paged kernels on an Apple GPU yet",
        "torch_compile takes minutes for the first steps, and not every model compiles",
        "memory: `hf-recipes plan` shows whether model and batch fit the GPU",
    ]
    assert all_rules.device_requirements(recipe_of({"TrainingArguments": {"fp16": True}})) == [
        "fp16 needs a GPU; a CPU trains in fp32 instead, and the run prints that",
        "memory: `hf-recipes plan` shows whether model and batch fit the GPU",
    ]


# ---- robustness -----------------------------------------------------------------------------------------------------

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
def test_every_rule_stands_in_one_list_and_none_speaks_about_a_sound_recipe(rule):
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
