"""master_weights: fp16 weights and gradients, fp32 masters, dynamic loss scaling, on small real models on a CPU."""

import importlib.util
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import set_seed

from hf_recipes.errors import RecipeError
from hf_recipes.training.master_weights import OPTIMIZERS, LossScaling, MasterWeights, prepare_model
from tests.support.forks import run_ranks
from tests.support.master_weights_runs import (
    Count,
    Watch,
    arguments,
    bert,
    ddp_rank,
    gpt2,
    logged,
    master_trainer,
    rows,
    sha256,
    train,
)

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "master_weights.py"


@pytest.fixture(autouse=True)
def one_thread_and_fresh_bitsandbytes():
    import bitsandbytes

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # its overrides outlive a trainer
    yield
    torch.set_num_threads(threads)


# --- training --------------------------------------------------------------------------------------------------------

# Without a skipped step (scale 2^10): the largest distance from fp32's loss over 40 steps. Measured: see the record in
# benchmarks/results for 150 steps of larger models on text.
DISTANCE = 2e-3


def distance(left, right):
    return max(abs(a - b) for a, b in zip(logged(left), logged(right), strict=True))


CASES = [("gpt2", optim) for optim in OPTIMIZERS] + [(name, "adamw_torch_fused") for name in ("llama", "bert")]


@pytest.mark.parametrize(("name", "optim"), CASES)
def test_the_loss_stays_as_close_to_fp32_as_stated(name, optim, tmp_path):
    full = train(name, tmp_path, master=False, optim=optim)
    ours = train(name, tmp_path, scaling=LossScaling(initial=2.0**10), optim=optim)
    assert logged(full)[-1] < 0.8 * logged(full)[0]  # it learns something
    assert logged(ours, "skipped_steps")[-1] == 0
    assert distance(ours, full) < DISTANCE


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_sfttrainer_stays_as_close_to_fp32(name, tmp_path):
    full = train(name, tmp_path, master=False, sft=True)
    ours = train(name, tmp_path, sft=True, scaling=LossScaling(initial=2.0**10))
    assert logged(full)[-1] < 0.8 * logged(full)[0]
    assert logged(ours, "skipped_steps")[-1] == 0
    assert distance(ours, full) < DISTANCE


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_the_logged_loss_and_gradient_norm_are_the_true_ones(max_grad_norm, tmp_path):
    words = {"max_steps": 3, "max_grad_norm": max_grad_norm, "gradient_accumulation_steps": 2}
    full = train("gpt2", tmp_path, master=False, **words)
    ours = train("gpt2", tmp_path, scaling=LossScaling(initial=2.0**10), **words)
    assert logged(ours, "grad_norm") == pytest.approx(logged(full, "grad_norm"), rel=2e-3)
    assert logged(ours) == pytest.approx(logged(full), rel=1e-4)
    assert logged(ours, "learning_rate") == logged(full, "learning_rate")
    assert logged(ours, "loss_scale") == [2.0**10] * 3


def test_an_evaluation_sees_the_true_loss_and_scales_nothing(tmp_path):
    full = train("gpt2", tmp_path, master=False, max_steps=2).evaluate(rows(8))["eval_loss"]
    trainer = train("gpt2", tmp_path, max_steps=2)
    assert trainer.evaluate(rows(8))["eval_loss"] == pytest.approx(full, rel=1e-3)
    inputs = {name: torch.tensor(rows(4)[name][:]) for name in ("input_ids", "labels")}
    assert trainer.compute_loss(trainer.model, inputs).item() < 10  # outside of training_step, in train mode or not


def test_weight_decay_and_learning_rate_groups_are_upstreams(tmp_path):
    ours = train("llama", tmp_path, max_steps=1, weight_decay=0.1).parts.masters.optimizer
    full = train("llama", tmp_path, max_steps=1, weight_decay=0.1, master=False).optimizer
    shapes = [[(g["weight_decay"], tuple(p.shape)) for g in o.param_groups for p in g["params"]] for o in (ours, full)]
    assert shapes[0] == shapes[1] and {decay for decay, _ in shapes[0]} == {0.0, 0.1}


def test_tied_embeddings_have_one_master(tmp_path):
    trainer = train("gpt2", tmp_path, max_steps=1)
    assert trainer.model.lm_head.weight is trainer.model.transformer.wte.weight
    assert len(trainer.parts.masters.optimizer.pairs) == len(list(trainer.model.parameters()))
    assert len({id(master) for _, master in trainer.parts.masters.optimizer.pairs}) == len(
        trainer.parts.masters.optimizer.pairs
    )


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_bnb_8bit"])
def test_bytes_per_parameter_are_those_of_the_documentation(optim, tmp_path):
    count = Count()
    trainer = train("gpt2", tmp_path, optim=optim, max_steps=2, callbacks=[count])
    model = trainer.model
    total = model.num_parameters()
    exact = {"weights": 2, "gradients of the model": 0, "gradients of the masters": 4, "masters": 4}
    assert {part: count.count[part] / total for part in exact} == exact
    if optim == "adamw_torch_fused":
        steps = 4 * len(trainer.parts.masters.optimizer.pairs)
        assert count.count["states"] == 8 * total + steps
    else:  # two states of 1 byte and their scales, 4 bytes for 256; embeddings and small tensors in 32 bits
        embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
        quantized = [p for p in model.parameters() if p.numel() >= 4096 and not any(p is e for e in embeddings)]
        assert len(quantized) == 8
        in_8_bits = sum(p.numel() for p in quantized)
        maps = 2 * 256 * 4
        blocks = sum(2 * 4 * math.ceil(p.numel() / 256) for p in quantized)
        assert count.count["states"] == 2 * in_8_bits + 8 * (total - in_8_bits) + blocks + maps


def test_gradients_are_fp16_between_backward_and_the_update(tmp_path):
    set_seed(0)
    trainer = master_trainer(model=prepare_model(gpt2()), args=arguments(tmp_path, max_steps=1), train_dataset=rows(8))
    seen = []
    step = trainer.training_step

    def training_step(*args, **kwargs):
        loss = step(*args, **kwargs)
        seen.extend(param.grad.dtype for param in trainer.model.parameters())
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert set(seen) == {torch.float16} and len(seen) == len(list(trainer.model.parameters()))
    assert all(param.grad is None for param in trainer.model.parameters())


# --- overflow --------------------------------------------------------------------------------------------------------


def test_an_overflowing_step_is_skipped_and_logged_and_touches_nothing_but_the_scale(tmp_path, caplog):
    watch = Watch()
    with caplog.at_level(logging.WARNING, logger="hf_recipes.training.master_weights"):
        trainer = train("llama", tmp_path, max_steps=20, scaling=LossScaling(initial=2.0**24), callbacks=[watch])
    skipped = logged(trainer, "skipped_steps")
    skips = [after > before for before, after in zip([0, *skipped], skipped, strict=False)]
    first = skips.index(False)  # good step
    assert first >= 2 and skips.count(False) >= 10
    assert watch.steps == ["untouched" if skip else "moved" for skip in skips]
    assert logged(trainer, "loss_scale") == [2.0 ** (24 - count) for count in skipped]
    assert [not math.isfinite(norm) for norm in logged(trainer, "grad_norm")] == skips
    # Warm-up begins with the first good step: the learning rate waited.
    assert logged(trainer, "learning_rate")[: first + 2] == [0.0] * (first + 1) + [2e-3 / 5]
    assert caplog.records[0].getMessage() == (
        "step 1 is skipped: fp16 gradients overflowed at loss scale 1.67772e+07, which becomes 8.38861e+06"
    )
    assert len(caplog.records) == skipped[-1]


def test_a_poisoned_batch_is_skipped_and_training_continues(tmp_path):
    set_seed(0)
    args, scaling = arguments(tmp_path, max_steps=6), LossScaling(initial=2.0**10)
    trainer = master_trainer(scaling=scaling, model=prepare_model(gpt2()), args=args, train_dataset=rows(64))
    watch = Watch()
    trainer.add_callback(watch)
    compute = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return loss * math.nan if trainer.state.global_step == 2 else loss

    trainer.compute_loss = compute_loss
    trainer.train()
    assert watch.steps == ["moved", "moved", "untouched", "moved", "moved", "moved"]
    assert logged(trainer, "loss_scale") == [1024.0, 1024.0, 512.0, 512.0, 512.0, 512.0]
    assert all(param.isfinite().all() for param in trainer.model.parameters())
    # Upstream's running sum would stay NaN for the rest of the run (inf - inf), and every logged loss with it.
    assert [math.isfinite(loss) for loss in logged(trainer)] == [True, True, False, True, True, True]


def test_the_scale_grows_after_as_many_good_steps_as_stated(tmp_path):
    trainer = train("llama", tmp_path, max_steps=7, scaling=LossScaling(initial=4.0, growth_interval=3))
    assert logged(trainer, "loss_scale") == [4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 16.0]
    assert LossScaling() == LossScaling(initial=65536.0, growth=2.0, backoff=0.5, growth_interval=2000, minimum=1.0)


def test_a_model_that_makes_nan_itself_ends_with_the_cause_and_how_to_fix_it():
    weight = nn.Parameter(torch.ones(2, dtype=torch.float16))
    masters = MasterWeights(torch.optim.AdamW([weight]), LossScaling(initial=2.0))

    def step():
        weight.grad = torch.full_like(weight, math.nan)
        masters.step()

    step()
    assert masters.scale == 1.0
    with pytest.raises(RecipeError) as raised:
        step()
    assert str(raised.value) == (
        "master_weights: gradients still overflow at loss scale 1 (2 steps were skipped): a value above 65504 or a NaN "
        "arises in the model itself; lower learning_rate, look at the data of these steps, or use bf16: true instead "
        "of it"
    )


# --- saving and resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [*OPTIMIZERS[:-1], pytest.param(OPTIMIZERS[-1], marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(optim, tmp_path):
    words = {
        "max_steps": 12,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 6,
        "optim": optim,
    }
    words |= {"dropout": 0.1, "lr_scheduler_type": "cosine", "scaling": LossScaling(initial=2.0**20, growth_interval=5)}
    straight = train("gpt2", tmp_path / "straight", data=rows(36), **words)
    skipped = logged(straight, "skipped_steps")
    assert skipped[5] > 0 and len(set(logged(straight, "loss_scale")[6:])) > 1  # skips before, a new scale after
    resumed = train(
        "gpt2", tmp_path / "resumed", data=rows(36), resume=str(tmp_path / "straight/checkpoint-6"), **words
    )
    for word in ("loss", "grad_norm", "learning_rate", "loss_scale", "skipped_steps"):
        assert str(logged(resumed, word)) == str(logged(straight, word)), word  # nan is not nan
    assert sha256(resumed.model) == sha256(straight.model)
    pairs = zip(resumed.parts.masters.optimizer.pairs, straight.parts.masters.optimizer.pairs, strict=True)
    assert all(torch.equal(ours[1], theirs[1]) for ours, theirs in pairs)


def test_a_checkpoint_loads_with_weights_only_and_holds_fp32_masters(tmp_path):
    trainer = train("gpt2", tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert sorted(saved) == ["good_steps", "inner", "loss_scale", "masters", "skipped_steps"]
    assert {master.dtype for master in saved["masters"]} == {torch.float32}
    for (param, master), value in zip(trainer.parts.masters.optimizer.pairs, saved["masters"], strict=True):
        assert torch.equal(master, value) and torch.equal(param, value.half())
    assert any((value.half().float() != value).any() for value in saved["masters"])  # they know more than the model


def test_a_checkpoint_without_master_weights_is_refused(tmp_path):
    train("gpt2", tmp_path, master=False, max_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(RecipeError) as raised:
        train("gpt2", tmp_path, max_steps=4, resume=str(tmp_path / "checkpoint-2"))
    assert str(raised.value) == (
        "master_weights: the checkpoint's optimizer.pt has no master weights: it was written without master_weights; "
        "resume without master_weights, or begin a new run from the checkpoint's weights"
    )


def test_masters_of_another_model_are_refused():
    def masters(*shape):
        return MasterWeights(torch.optim.AdamW([nn.Parameter(torch.ones(*shape, dtype=torch.float16))]))

    with pytest.raises(RecipeError) as raised:
        masters(2).load_state_dict(masters(3).state_dict())
    assert str(raised.value) == (
        "master_weights: the checkpoint's 1 master weights do not have the shapes of the model's 1; "
        "resume from a checkpoint of the same model"
    )


def test_a_second_train_starts_from_the_best_model_that_was_loaded(tmp_path):
    trainer = train("gpt2", tmp_path, max_steps=3)
    with torch.no_grad():
        trainer.model.transformer.ln_f.bias.fill_(0.5)  # as load_best_model_at_end puts other weights in place
    trainer.parts.masters.optimizer.follow_model()
    pairs = trainer.parts.masters.optimizer.pairs
    assert all(torch.equal(param, master.half()) for param, master in pairs)
    assert any((master.half().float() != master).any() for _, master in pairs)  # the others kept what they know


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(model, args, **words):
    with pytest.raises(RecipeError) as raised:
        master_trainer(model=model, args=args, train_dataset=rows(4), **words).train()
    return str(raised.value)


def test_what_cannot_work_is_refused_with_how_to_fix_it(tmp_path):
    assert refusal(gpt2(), arguments(tmp_path)) == (
        "master_weights: transformer.wte.weight is torch.float32, not torch.float16; "
        "call prepare_model(model) before the trainer is built"
    )
    assert refusal(prepare_model(gpt2()), arguments(tmp_path, optim="adafactor")) == (
        "master_weights: optim: adafactor is not known to work on master weights; "
        "use one of adamw_torch, adamw_torch_fused, adamw_bnb_8bit"
    )
    assert refusal(prepare_model(gpt2()), arguments(tmp_path, bf16=True)) == (
        "master_weights: accelerate's mixed_precision is 'bf16', which casts a second time; "
        "master_weights needs fp16: false and bf16: false in the recipe and 'no' in the accelerate file"
    )
    model = prepare_model(gpt2())
    assert refusal(model, arguments(tmp_path), optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None)) == (
        "master_weights: the trainer was given its own optimizer; name one by `optim` instead"
    )


def test_a_model_that_computes_its_loss_in_fp16_is_refused_with_how_to_fix_it(tmp_path):
    model = prepare_model(bert())
    model.classifier._forward_hooks.clear()  # a head by a name that we do not know
    with pytest.raises(RecipeError) as raised:
        master_trainer(model=model, args=arguments(tmp_path), train_dataset=rows(8, classes=True)).train()
    assert str(raised.value) == (
        "master_weights: the loss of BertForSequenceClassification is torch.float16: scaled by 65536, it or its "
        "gradient is infinite; remove master_weights and set bf16: true (a head is made to return float32 if it is "
        "called classifier, score, qa_outputs, classification_head, logits_proj)"
    )


def test_two_ddp_processes_train_as_one_with_twice_the_batch_and_agree_on_a_skipped_step(tmp_path, folder):
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        ended, output = run_ranks(lambda rank, name=name: ddp_rank(tmp_path / name), count)
        assert ended == 0, output[-3000:]
    one = json.loads((tmp_path / "one" / "rank-0.json").read_text())
    first, second = (json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for word in ("weights", "masters", "skipped", "scale", "grad_norm"):
        assert first[word] == second[word], word
    assert (first["skipped"], first["scale"]) == (1, 512.0)
    assert first["skipped_steps"] == one["skipped_steps"] == ["0"] * 3 + ["1"] * 5
    for word, tolerance in (("loss", 1e-3), ("grad_norm", 5e-3)):
        pairs = list(zip(map(float, one[word]), map(float, first[word]), strict=True))
        assert not any(math.isfinite(value) for value in pairs[3])
        assert all(ours == pytest.approx(theirs, rel=tolerance) for n, (theirs, ours) in enumerate(pairs) if n != 3)


# --- documentation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_master_weights", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_precision_table_is_computed_from_its_record(benchmark):
    record = json.loads(benchmark.RECORD.read_text(encoding="utf-8"))
    assert benchmark.TABLE.read_text(encoding="utf-8") == benchmark.table(record)


def test_the_record_shows_o2_within_the_stated_distance_of_fp32_over_150_steps(benchmark):
    record = json.loads(benchmark.RECORD.read_text(encoding="utf-8"))
    runs = [name for name in record["runs"] if name.endswith("first scale 2^10")]
    assert len(runs) == 5 and record["steps"] == 150
    for name in runs:
        run = record["runs"][name]
        assert len(run["losses"]) == 150 and run["skipped_steps"] == 0, name
        assert benchmark.distance_from_fp32(record, name) < (2e-2 if name.startswith("BERT") else 2e-3), name
        if "SFTTrainer" not in name:  # closer than bf16 autocast
            autocast = name.replace("master weights (O2), first scale 2^10", "autocast (O1)")
            assert benchmark.distance_from_fp32(record, name) < benchmark.distance_from_fp32(record, autocast)
