"""Rules about evaluation, the best model, metrics and resuming. Upstream really behaves as each rule says."""

import itertools
from types import SimpleNamespace

import pytest

from hf_recipes.recipe.rules import all_rules
from tests.support.rule_recipes import TRAINER, recipe_of


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


def test_keys_that_leave_the_metrics_out_are_refused(ask):
    """transformers 5.23 trainer.py: compute_metrics is not called, or called in another way."""
    assert ask("prediction_loss_only: true\nbatch_eval_metrics: true\neval_do_concat_batches: false")[0] == [
        "5: prediction_loss_only: true leaves the metrics out; leave it out",
        "6: batch_eval_metrics: true wants metrics in parts; here they are of the complete set, and need no logits; "
        "leave it out",
        "7: eval_do_concat_batches: false hands the metrics lists of batches; leave it out",
    ]


def test_intervals_of_another_strategy_are_warned_about(ask):
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


def test_a_hidden_nan_and_flags_of_example_scripts_are_warned_about(ask):
    """transformers 5.23 trainer.py:1912 logs a NaN loss as 0.0."""
    training = "logging_nan_inf_filter: true\ndo_predict: true\ndo_eval: false\ninclude_for_metrics: [inputs]"
    assert ask(training) == (
        [],
        [
            "5: logging_nan_inf_filter: true logs a NaN loss as 0.0; leave it out: this package turns it off",
            "6: do_predict has no effect: a test split is always evaluated after training; leave it out",
            "7: do_eval: false has no effect: a run ends with evaluation; leave it out",
            "8: include_for_metrics costs memory, and no metric of this package reads it; leave it out",
        ],
    )


def test_evaluating_only_neither_resumes_nor_pushes(ask):
    assert ask("do_train: false\nresume_from_checkpoint: true\npush_to_hub: true\nhub_model_id: me/x")[0] == [
        "6: resume_from_checkpoint has no effect with do_train: false: the checkpoint would not be evaluated; "
        "write model.pretrained_model_name_or_path: the checkpoint",
        "7: push_to_hub: true with do_train: false: nothing is trained, so there is nothing to push; leave it out",
    ]
