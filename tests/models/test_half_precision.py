"""The model that master_weights trains: fp16 parameters, norms in fp32, heads that return fp32; on a CPU."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    T5Config,
    T5ForSequenceClassification,
    Trainer,
    set_seed,
)

from hf_recipes.errors import RecipeError
from hf_recipes.models.half_precision import is_norm
from hf_recipes.training.master_weights import prepare_model
from tests.support.master_weights_runs import LENGTH, MODELS, arguments, bert, gpt2, llama, logged, rows

# --- why it is here --------------------------------------------------------------------------------------------------


def test_torchs_own_scaler_refuses_fp16_weights():
    weight = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = torch.optim.AdamW([weight])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.float().sum()).backward()
    with pytest.raises(ValueError) as raised:
        scaler.unscale_(optimizer)
    assert str(raised.value) == "Attempting to unscale FP16 gradients."


def test_fp16_true_on_a_cpu_is_dropped_without_a_word(tmp_path):
    trainer = Trainer(model=gpt2(), args=arguments(tmp_path, fp16=True))
    assert trainer.args.fp16 and trainer.accelerator.scaler is None and not trainer.accelerator.native_amp


def test_pure_fp16_without_masters_learns_nothing(tmp_path):
    set_seed(0)
    trainer = Trainer(model=gpt2().half(), args=arguments(tmp_path, max_steps=5), train_dataset=rows(64))
    trainer.train()
    assert not logged(trainer)[-1] < 2 * logged(trainer)[0]  # far above where it began, or nan


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norms"), [("gpt2", 5), ("bert", 5), ("llama", 5)])
def test_norms_compute_in_fp32_and_cast_back(name, norms):
    set_seed(0)
    model = prepare_model(MODELS[name]()).eval()
    seen = []
    for module in model.modules():
        if is_norm(module):
            nn.init.normal_(module.weight, 1.0, 0.3)
            module.register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
    model(input_ids=torch.arange(LENGTH)[None])
    assert len(seen) == norms
    for module, hidden, output in tuple(seen):
        in_fp32 = copy.deepcopy(module).float()
        del in_fp32.forward  # upstream's own again
        assert hidden.dtype == output.dtype == torch.float16
        assert torch.equal(output, in_fp32.float()(hidden.float()).half())


def test_a_norm_stands_values_whose_squares_overflow_fp16():
    norm = prepare_model(llama()).model.norm
    hidden = torch.full((1, 64), 6e4, dtype=torch.float16)  # its square is 3.6e9
    assert torch.equal(norm(hidden), torch.ones_like(hidden))


def test_every_parameter_is_fp16_and_rotary_frequencies_stay_fp32():
    for make in MODELS.values():
        assert {param.dtype for param in prepare_model(make()).parameters()} == {torch.float16}
    assert prepare_model(llama()).model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_classifier_takes_its_loss_in_fp32_where_fp16_would_overflow_at_the_first_scale():
    ids, label = torch.arange(LENGTH)[None], torch.tensor([1])
    plain = bert().half()
    assert plain(input_ids=ids, labels=label).loss.dtype == torch.float16
    assert prepare_model(bert())(input_ids=ids, labels=label).loss.dtype == torch.float32
    (plain(input_ids=ids, labels=label).loss.float() * 2.0**16).backward()
    assert not plain.classifier.bias.grad.isfinite().all()


def test_preparing_twice_or_copying_changes_nothing():
    set_seed(0)
    model = prepare_model(gpt2()).eval()
    ids = torch.arange(LENGTH)[None]
    before = model(input_ids=ids).logits
    assert torch.equal(copy.deepcopy(model)(input_ids=ids).logits, before)
    assert prepare_model(model) is model and torch.equal(model(input_ids=ids).logits, before)


def test_a_copy_of_the_model_has_norms_of_its_own():
    model = prepare_model(gpt2())
    other = copy.deepcopy(model)
    nn.init.zeros_(other.transformer.ln_f.weight)
    nn.init.zeros_(other.transformer.ln_f.bias)
    hidden = torch.randn(1, 64).half()
    assert not other.transformer.ln_f(hidden).any() and model.transformer.ln_f(hidden).any()


@pytest.mark.parametrize("name", MODELS)
def test_saved_weights_are_fp16_and_reload_to_the_same_function(name, tmp_path):
    set_seed(0)
    model = prepare_model(MODELS[name]()).eval()
    for module in model.modules():
        if is_norm(module):
            nn.init.normal_(module.weight, 1.0, 0.3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        reloaded = type(model).from_pretrained(tmp_path).eval()
        assert {param.dtype for param in reloaded.parameters()} == {torch.float16}
        assert (reloaded(input_ids=ids).logits.float() - ours).abs().max() < 2e-3  # upstream's norms: fp16 rounding
        assert torch.equal(prepare_model(reloaded)(input_ids=ids).logits, ours)


def test_a_model_whose_parts_must_stay_fp32_is_refused():
    sizes = {"num_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    model = T5ForSequenceClassification(T5Config(**sizes, vocab_size=32))
    with pytest.raises(RecipeError) as raised:
        prepare_model(model)
    assert str(raised.value) == (
        "master_weights: transformers keeps transformer.encoder.block.0.layer.1.DenseReluDense.wo.weight of "
        "T5ForSequenceClassification in float32, because it fails in float16; remove master_weights and set "
        "bf16: true"
    )


def test_a_weight_that_does_not_fit_fp16_is_refused():
    model = gpt2()
    nn.init.constant_(model.transformer.ln_f.bias, 7e4)
    with pytest.raises(RecipeError) as raised:
        prepare_model(model)
    assert str(raised.value) == (
        "master_weights: transformer.ln_f.bias holds a weight above 65504, the largest number of float16; "
        "remove master_weights and set bf16: true"
    )
