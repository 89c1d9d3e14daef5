"""SFTTrainer on a CPU: plain logits give TRL's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from hf_recipes.training import plain_head
from hf_recipes.training.plain_head import use_plain_logits
from tests.support.tiny_models import SHAPE

MODELS = {
    "llama": {},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 2},
}


def make(kind: str, dtype: torch.dtype = torch.float32, *, plain: bool, adapter: bool = False) -> Any:
    torch.manual_seed(0)
    shape = {} if kind == "gpt2" else {**SHAPE, "num_key_value_heads": 1}
    config = AutoConfig.for_model(
        kind, vocab_size=97, bos_token_id=1, eos_token_id=0, pad_token_id=0, **{**shape, **MODELS[kind]}
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    if plain:
        use_plain_logits(model)
    return model


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (3, 20), generator=draw)
    labels = ids.clone()
    labels[0, :7] = labels[1, 15:] = labels[2, 9] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def outcome(model: Any) -> tuple[Any, list[torch.Tensor]]:
    found = model(**batch(), fused_lm_head=True, num_items_in_batch=torch.tensor(31))
    found.loss.backward()
    return found, [one.grad for one in model.parameters() if one.grad is not None]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", list(MODELS))
def test_loss_gradients_entropy_and_accuracy_are_those_of_trls_tiles(kind: str, adapter: bool) -> None:
    theirs, their_grads = outcome(make(kind, plain=False, adapter=adapter))
    ours, our_grads = outcome(make(kind, plain=True, adapter=adapter))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.entropy, theirs.entropy, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.label_mask, theirs.label_mask) and ours.label_mask.sum() == 45
    assert torch.equal(ours.is_top1.bool(), theirs.is_top1.bool())
    assert len(our_grads) == len(their_grads) > 0
    for one, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_bf16_weights_give_the_same_loss_to_their_precision() -> None:
    theirs, _ = outcome(make("llama", torch.bfloat16, plain=False))
    ours, grads = outcome(make("llama", torch.bfloat16, plain=True))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-3, atol=0)
    assert all(one.dtype == torch.bfloat16 for one in grads)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_sharp_and_flat_logits_are_scored_as_in_float64(size: float) -> None:
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 97, generator=draw) * size
    logits[0] = 3.0  # all alike
    labels = torch.randint(0, 97, (6,), generator=draw)
    exact = logits.double().log_softmax(-1)
    log_probs, entropy, correct = plain_head._Scores.apply(logits, labels)
    torch.testing.assert_close(log_probs.double(), exact.gather(-1, labels[:, None])[:, 0], rtol=1e-6, atol=2e-6 * size)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-5, atol=2e-6 * size)
    assert torch.equal(correct, logits.argmax(-1) == labels)


def test_large_logits_stay_in_tiles_and_calls_without_a_loss_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", plain=True)
    used = []
    monkeypatch.setattr(plain_head, "_score", lambda *given: used.append(given) or pytest.fail("plain logits"))
    monkeypatch.setattr(plain_head, "LARGEST", 3 * 20 * 97 * 4 - 1)
    assert torch.isfinite(model(**batch(), fused_lm_head=True).loss)
    assert model(input_ids=batch()["input_ids"]).logits.shape == (3, 20, 97)
    monkeypatch.setattr(plain_head, "LARGEST", 3 * 20 * 97 * 4)
    with pytest.raises(pytest.fail.Exception):
        model(**batch(), fused_lm_head=True)
