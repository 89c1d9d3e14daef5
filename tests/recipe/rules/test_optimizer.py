"""Rules about optimizer, learning rate, warm-up and batches. Upstream really behaves as each rule says."""

import inspect

import pytest

from hf_recipes.recipe.rules import optimizer as optimising
from tests.support.rule_recipes import handlers


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


def test_a_run_that_is_all_warm_up_is_warned_about(ask):
    assert ask("warmup_steps: 100\nmax_steps: 100")[1] == [
        "5: warmup_steps: 100 of max_steps: 100: the run is all warm-up"
    ]


def test_the_arguments_of_every_schedule_are_upstreams():
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_utils import SchedulerType

    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}  # their functions take **kwargs
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    assert set(optimising.SCHEDULER_ARGUMENTS) == {name.value for name in SchedulerType}
    for name, words in optimising.SCHEDULER_ARGUMENTS.items():
        made_by = classes.get(name, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
        assert set(words) == set(inspect.signature(made_by).parameters) - ours, name


def test_unknown_arguments_for_a_schedule_are_refused_with_the_right_one(ask):
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


def test_unknown_arguments_for_checkpointing_are_refused_as_torch_does_in_the_first_step(ask):
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


def test_a_schedule_that_follows_evaluations_needs_them(ask, arguments):
    """transformers 5.23 training_args.py:1792: "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy"."""
    for name in optimising.NEED_EVALUATION:
        assert ask(f"lr_scheduler_type: {name}")[0] == [
            f"5: lr_scheduler_type: {name} follows evaluations, and eval_strategy is no; "
            f"write eval_strategy: epoch or steps"
        ]
        with pytest.raises(ValueError, match="requires an eval strategy"):
            arguments(lr_scheduler_type=name)


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


def test_epochs_beside_steps_and_tf32_beside_compiling_are_warned_about(ask):
    """transformers 5.23 trainer.py:727 (at info level); pytorch#166387."""
    assert ask("max_steps: 10\nnum_train_epochs: 3")[1] == [
        "6: num_train_epochs has no effect: max_steps: 10 wins; keep one of them (max_steps: -1 means none)"
    ]
    assert ask("max_steps: -1\nnum_train_epochs: 3")[1] == []
    assert ask("tf32: true\ntorch_compile: true")[1] == [
        "5: tf32: true with torch_compile may fail in inductor's autotuning (pytorch#166387); "
        "if it does, leave torch_compile_mode: max-autotune out"
    ]
