"""ExactEvaluation without a Trainer: rows of a causal LM, upstream's step for everything else."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from hf_recipes.evaluation.exact import LENGTHS, ExactEvaluation, WithLengths

SHAPE = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}


class FakeTrainer:
    """The members of EvaluatedTrainer."""

    def __init__(self, model: Any) -> None:
        self.args = SimpleNamespace(
            device=torch.device("cpu"), train_sampling_strategy="group_by_length", dataloader_drop_last=True
        )
        self.model = model
        self.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model, mixed_precision="no")
        self.data_collator: Any = "collator"
        self.compute_metrics: Any = print
        self.is_sharded = False

    def compute_loss_context_manager(self) -> Any:
        return nullcontext()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    found = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **HEADS))
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return found.eval()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 31, (3, 9))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, 4] = -100
    mask[1, 6:] = labels[1, 6:] = 0
    labels[1, 6:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def expected(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rows from the full logits, in float64."""
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double()
    scores = logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    nll = -scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    return torch.stack([nll.sum(1), (labels != -100).sum(1).double()], dim=1)


def never(*_: Any) -> Any:
    raise AssertionError("upstream's step was called")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_causal_lm_gives_a_row_per_example_and_no_loss(model: Any, sharded: bool) -> None:
    trainer, evaluation, inputs = FakeTrainer(model), ExactEvaluation(), batch()
    trainer.is_sharded = sharded
    for _ in range(2):  # the first batch is checked against the model's own logits
        loss, rows, tokens = evaluation.predict(trainer, never, model, inputs)
        assert loss is None and evaluation.full_logits_reason is None
        torch.testing.assert_close(rows, expected(model, inputs), rtol=1e-5, atol=1e-6)
        assert tokens.tolist() == [7, 5, 8]
    assert "labels" in inputs  # the caller's batch is as it was
    assert "forward" not in vars(model)


def test_a_head_that_cannot_be_chunked_falls_back_to_full_logits_for_the_rest_of_the_run(model: Any) -> None:
    class Unusual(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
            output.logits = output.logits * (1 + input_ids[:, -output.logits.shape[1] :, None])
            return output

    unusual = Unusual(model.config).eval()
    unusual.load_state_dict(model.state_dict())
    trainer, evaluation, inputs = FakeTrainer(unusual), ExactEvaluation(), batch()
    for at_once in (False, True):
        trainer.is_sharded = at_once
        _, rows, _ = evaluation.predict(trainer, never, unusual, inputs)
        torch.testing.assert_close(rows, expected(unusual, inputs), rtol=1e-5, atol=1e-5)
    assert evaluation.full_logits_reason == "logits in chunks differ from the model's own"


@pytest.mark.parametrize("why", ["no metrics", "no labels", "no language model"])
def test_everything_else_is_upstreams_step_without_our_lengths(model: Any, why: str) -> None:
    other = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    trainer = FakeTrainer(other if why == "no language model" else model)
    inputs = {**batch(), LENGTHS: torch.tensor([3, 6])}
    if why == "no metrics":
        trainer.compute_metrics = None
    if why == "no labels":
        del inputs["labels"]
    given: list[Any] = []
    outputs = ("loss", "logits", "labels")
    found = ExactEvaluation().predict(trainer, lambda *args: given.append(args) or outputs, model, inputs)
    assert found == outputs
    assert given[0][0] is model and set(given[0][1]) == set(inputs) - {LENGTHS}


def test_evaluation_loaders_keep_order_and_rows_and_training_gets_its_settings_back(model: Any) -> None:
    trainer = FakeTrainer(model)
    with pytest.raises(ValueError), ExactEvaluation().all_rows_in_order(trainer):
        assert (trainer.args.train_sampling_strategy, trainer.args.dataloader_drop_last) == ("sequential", False)
        assert trainer.data_collator == WithLengths(inner="collator")  # type: ignore[arg-type]
        raise ValueError
    assert (trainer.args.train_sampling_strategy, trainer.args.dataloader_drop_last) == ("group_by_length", True)
    assert trainer.data_collator == "collator"
    trainer.model = torch.nn.Linear(1, 1)
    with ExactEvaluation().all_rows_in_order(trainer):
        assert trainer.data_collator == "collator"
