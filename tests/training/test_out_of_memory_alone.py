"""OutOfMemoryRetry without a Trainer: a linear model whose forward or backward has room for some rows only."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_recipes.checkpoints import manifest
from hf_recipes.errors import OutOfMemoryError
from hf_recipes.training.out_of_memory import SMALLER, OutOfMemoryRetry
from hf_recipes.training.window import Window

CPU = torch.device("cpu")


class Accelerator:
    """Of one process."""

    no_sync: Any

    def gather_for_metrics(self, value: torch.Tensor) -> torch.Tensor:
        return value


class FakeTrainer:
    """The members of SplittingTrainer around one linear layer, and a training step as upstream's."""

    def __init__(
        self, room: int, *, fails_in: str = "forward", sft: bool = False, output_dir: str | Path = "out"
    ) -> None:
        torch.manual_seed(0)
        self.args = SimpleNamespace(
            device=CPU, world_size=1, process_index=0, optim="adamw_torch", output_dir=output_dir
        )
        self.state = SimpleNamespace(global_step=6)
        self.model: Any = torch.nn.Linear(3, 1, bias=False)
        self.model_wrapped = self.model
        self.accelerator = Accelerator()
        self.accelerator.no_sync = self._no_sync
        self.compute_loss_func, self.model_accepts_loss_kwargs = None, False
        self.current_gradient_accumulation_steps = 2
        self.is_sharded = False
        self.sft_metrics: Any = {"accuracy": []} if sft else None
        self.sft_tokens: Any = 0 if sft else None
        self.room, self.fails_in = room, fails_in
        self.tried: list[int] = []
        self.noise: list[float] = []
        self.unreduced = 0

    @contextmanager
    def _no_sync(self, model: Any) -> Any:
        self.unreduced += 1
        yield

    def loss(self, model: Any, inputs: Any, return_outputs: bool = False, items: Any = None) -> Any:
        rows = len(inputs["input_ids"])
        self.tried.append(rows)
        if self.fails_in == "forward" and rows > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {rows} rows\nmore")
        self.noise.append(torch.rand(()).item())
        output = model(inputs["input_ids"]).squeeze(-1)
        if self.fails_in == "backward" and rows > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory: no room for gradients")
        if self.sft_tokens is not None:
            self.sft_tokens += rows
            correct = self.accelerator.gather_for_metrics(torch.tensor(float(rows)))
            total = self.accelerator.gather_for_metrics(torch.tensor(2.0 * rows))
            self.sft_metrics["accuracy"].append(float(correct / total) + float(total))
        loss = ((output - inputs["labels"]) ** 2).mean()
        return (loss, output) if return_outputs else loss

    def run_window(self, retry: OutOfMemoryRetry, batches: list[Any], window: Window | None = None) -> list[float]:
        """Upstream's window: forward and backward of each micro-batch."""
        self.model.zero_grad()
        window = window or Window(batches=batches)

        def step(model: Any, inputs: Any, items: Any) -> torch.Tensor:
            loss = retry.compute_loss(self, window, self.loss, model, inputs, False, items)
            loss = loss / self.current_gradient_accumulation_steps
            loss.backward()
            return loss.detach()

        return [float(retry.training_step(self, window, step, self.model, batch, None)) for batch in batches]


def batches(*rows: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randn(count, 3), "labels": torch.randint(0, 3, (count,)).float()} for count in rows]


@pytest.mark.parametrize(("fails_in", "room", "pieces"), [("forward", 4, 2), ("forward", 1, 8), ("backward", 2, 4)])
def test_the_gradient_and_the_losses_are_those_of_a_machine_with_room(fails_in: str, room: int, pieces: int) -> None:
    wide, narrow, lines = FakeTrainer(99), FakeTrainer(room, fails_in=fails_in), []
    losses = wide.run_window(OutOfMemoryRetry(), batches(8, 8))
    retry = OutOfMemoryRetry(say=lines.append)
    assert narrow.run_window(retry, batches(8, 8)) == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(narrow.model.weight.grad, wide.model.weight.grad)
    assert narrow.current_gradient_accumulation_steps == 2
    assert retry.state_dict() == {"pieces": [pieces, 1]}
    assert retry.splits[-1] == {"step": 7, "phase": fails_in, "pieces": pieces, "rank": 0}
    assert lines[-1] == (
        f"out of memory in {fails_in}, step 7: retrying with each micro-batch in {pieces} pieces; effective batch "
        "size, schedule and samples are unchanged"
    )


def test_masked_labels_weigh_each_piece_by_what_it_has() -> None:
    """Models that average over their own labels: a piece with three labels counts three times one with one."""
    inputs = {"input_ids": torch.ones(4, 3), "labels": torch.tensor([[1, -100], [-100, -100], [1, 1], [1, -100]])}
    trainer, shares = FakeTrainer(2), []

    def step(model: Any, part: Any, items: Any) -> torch.Tensor:
        if len(part["labels"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        loss = retry.compute_loss(trainer, window, lambda *_: torch.tensor(1.0), model, part, False, items)
        shares.append(float(loss))
        return loss

    retry, window = OutOfMemoryRetry(say=lambda line: None), Window(batches=[inputs])
    retry.training_step(trainer, window, step, trainer.model, inputs, None)
    assert shares == [0.5, 1.5]
    trainer.model_accepts_loss_kwargs = True  # a sum over the labels of the whole step: nothing to weigh
    shares.clear()
    window = Window(batches=[inputs])
    retry.training_step(trainer, window, step, trainer.model, inputs, torch.tensor(4))
    assert shares == [1.0, 1.0]


def test_earlier_micro_batches_are_repeated_with_the_random_numbers_that_they_had() -> None:
    trainer = FakeTrainer(8)
    retry, window = OutOfMemoryRetry(say=lambda line: None), Window(batches=batches(4, 4, 12))
    trainer.run_window(retry, window.batches, window)
    assert trainer.tried == [4, 4, 12, 2, 2, 2, 2, 6, 6]
    first, second = trainer.noise[:2]
    assert (trainer.noise[2], trainer.noise[4]) == (first, second)
    assert trainer.unreduced == 5  # all pieces but the last of the micro-batch that is not repeated
    assert window.metrics_kept == 3 and len(window.random_states) == 3


def test_the_split_is_restored_and_used_at_once() -> None:
    retry, trainer = OutOfMemoryRetry(), FakeTrainer(99)
    retry.load_state_dict({"pieces": [4, 2]})
    trainer.run_window(retry, batches(8))
    assert trainer.tried == [2, 2, 2, 2]
    retry.load_state_dict({})  # progress of an older version
    assert retry.state_dict() == {"pieces": [4, 2]}


def test_sft_metrics_are_kept_once_for_a_micro_batch_that_is_split_and_repeated() -> None:
    trainer = FakeTrainer(4, sft=True)
    trainer.run_window(OutOfMemoryRetry(say=lambda line: None), batches(4, 4, 8))
    # tokens: once for each micro-batch's last piece, as upstream counts gathered sums
    assert trainer.sft_metrics["accuracy"] == [0.5 + 8.0, 0.5 + 8.0, 0.5 + 16.0]
    assert trainer.sft_tokens == 4 + 4 + 4
    assert "gather_for_metrics" not in vars(trainer.accelerator)


def test_one_row_that_does_not_fit_ends_the_run_with_the_checkpoint_that_it_resumes_from(tmp_path: Path) -> None:
    trainer = FakeTrainer(0, output_dir=tmp_path)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.run_window(OutOfMemoryRetry(say=lambda line: None), batches(4))
    what = "the run: one sample does not fit: out of memory in forward, step 7: CUDA out of memory: 1 rows"
    assert str(caught.value) == f"{what}; {SMALLER}"
    (tmp_path / "checkpoint-5").mkdir()
    manifest.write_manifest(tmp_path / "checkpoint-5", {"run": "r", "saved": "2026", "state": []}, {})
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.run_window(OutOfMemoryRetry(say=lambda line: None), batches(4))
    assert str(caught.value) == f"{what}; {SMALLER}; --resume continues from checkpoint-5, which is complete"


def test_several_processes_do_not_retry_a_backward_that_reduces() -> None:
    trainer, retry = FakeTrainer(2, fails_in="backward"), OutOfMemoryRetry(say=lambda line: None)
    trainer.args.world_size = 2
    leaves = trainer.loss

    def loss(model: Any, inputs: Any, *args: Any) -> Any:
        model(inputs["input_ids"])  # the wrapped model's forward is left
        return leaves(model, inputs, *args)

    trainer.loss = loss  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.run_window(retry, batches(4))
    assert str(caught.value).startswith(
        "the run: out of memory in the backward that reduces gradients, step 7, rank 0: CUDA out of memory"
    )
    trainer.model_wrapped = SimpleNamespace(require_backward_grad_sync=False)  # inside the window
    trainer.run_window(retry, batches(4))
    assert retry.splits == [{"step": 7, "phase": "backward", "pieces": 2, "rank": 0}]


@pytest.mark.parametrize("why", ["sharded", "optimizer in backward", "outside of training"])
def test_what_cannot_be_retried_is_upstreams_error(why: str) -> None:
    trainer, window = FakeTrainer(2), Window(batches=batches(4))
    trainer.is_sharded = why == "sharded"
    trainer.args.optim = "lomo" if why == "optimizer in backward" else "adamw_torch"
    if why == "outside of training":
        window.batches = []
    with pytest.raises(torch.OutOfMemoryError):
        trainer.run_window(OutOfMemoryRetry(), batches(4), window)
    assert trainer.tried == [4]


def test_out_of_memory_outside_of_a_step_is_one_message_and_a_new_training_forgets_the_splits() -> None:
    retry, trainer = OutOfMemoryRetry(), FakeTrainer(1)
    retry.splits = [{"step": 1}]
    with pytest.raises(OutOfMemoryError) as caught, retry.training(trainer):
        assert retry.splits == []
        raise torch.OutOfMemoryError("CUDA out of memory: states\nmore")
    assert str(caught.value) == (
        "the run: out of memory outside of forward and backward (the optimizer's step?) in step 7: CUDA out of "
        "memory: states; take a smaller optimizer (optim: adamw_bnb_8bit, paged_adamw_8bit)"
    )


def test_dropout_is_mentioned_where_it_draws_other_masks() -> None:
    lines: list[str] = []
    trainer = FakeTrainer(2)
    trainer.model.add_module("dropout", torch.nn.Dropout(0.1))
    trainer.run_window(OutOfMemoryRetry(say=lines.append), batches(4))
    assert lines[0].endswith("are unchanged; dropout draws other masks than in the unsplit step")


def test_an_evaluation_batch_is_split_until_it_fits_and_stays_so() -> None:
    trainer, retry, sizes = FakeTrainer(99), OutOfMemoryRetry(say=lambda line: None), []

    def predict(part: Any) -> Any:
        sizes.append(len(part["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return part["labels"].mean(), part["input_ids"], part["labels"]

    batch = batches(8)[0]
    for tried in ([8, 4, 2, 2, 2, 2], [2, 2, 2, 2]):
        sizes.clear()
        loss, logits, labels = retry.prediction_step(trainer, predict, batch)
        assert sizes == tried
        assert torch.equal(logits, batch["input_ids"]) and torch.equal(labels, batch["labels"])
        torch.testing.assert_close(loss, batch["labels"].mean())
    assert [split["phase"] for split in retry.splits] == ["evaluation", "evaluation"]
    sizes.clear()
    retry.load_state_dict({"pieces": [1, 1]})
    trainer.is_sharded = True
    with pytest.raises(torch.OutOfMemoryError):
        retry.prediction_step(trainer, predict, batch)
    assert sizes == [8]


def test_the_balancing_loss_of_experts_is_put_back() -> None:
    trainer, seen = FakeTrainer(2), []
    trainer.model.router_aux_loss_coef = 0.5
    compute = trainer.loss

    def loss(model: Any, inputs: Any, *args: Any) -> Any:
        seen.append(model.router_aux_loss_coef)
        return compute(model, inputs, *args)

    trainer.loss = loss  # type: ignore[method-assign]
    trainer.run_window(OutOfMemoryRetry(say=lambda line: None), batches(4))
    assert seen == [0.5, 0.25, 0.25] and trainer.model.router_aux_loss_coef == 0.5
