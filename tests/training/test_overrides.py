"""Upstream's methods are overridden in one file, in one order, and a trainer is complete when it is built."""

from __future__ import annotations

import ast
import functools
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainingArguments

from hf_recipes.training import overrides
from hf_recipes.training.out_of_memory import OutOfMemoryRetry
from hf_recipes.training.overrides import Overrides, trainer_class
from hf_recipes.training.trainer_members import TrainerMembers, TrainerParts

# evaluation/scoring.py gives the test split's metrics for one prediction and puts the other ones back.
SET_OUTSIDE = {
    ("evaluation/scoring.py", "compute_metrics"),
    ("evaluation/length_order.py", "compute_metrics"),  # for one evaluation: it gets the data's order
    ("training/even_ranks.py", "train_dataset"),
}


@functools.cache
def _modules(root: Path) -> dict[str, ast.Module]:
    package = root / "hf_recipes"
    return {
        path.relative_to(package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }


def test_no_other_file_defines_a_method_of_trainer_in_a_subclass(root: Path) -> None:
    found = {
        name
        for name, tree in _modules(root).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("Trainer" in ast.unparse(base) and "Callback" not in ast.unparse(base) for base in node.bases)
    }
    assert found == {"training/overrides.py", "training/trainer_members.py"}


def test_the_members_that_the_objects_read_override_nothing_of_upstream() -> None:
    from transformers import Trainer
    from trl import SFTTrainer

    ours = {name for name in vars(TrainerMembers) if not name.startswith("__")}
    assert len(ours) > 20
    assert not ours & {*dir(Trainer), *dir(SFTTrainer)}


def test_nobody_sets_an_attribute_of_a_trainer_after_it_is_built(root: Path) -> None:
    found = set()
    for name, tree in _modules(root).items():
        if name.startswith("plan/"):  # its stand-in is measured, not run
            continue
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for inner in (part for target in targets for part in ast.walk(target)):
                if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "trainer":
                    found.add((name, inner.attr))
    inside = {(name, attribute) for name, attribute in found if _is_protocol_member(root, name, attribute)}
    assert found - inside == SET_OUTSIDE


def _is_protocol_member(root: Path, name: str, attribute: str) -> bool:
    """Whether the file names the attribute in the Protocol of what its object may set."""
    protocols = [
        node
        for node in ast.walk(_modules(root)[name])
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    return any(
        isinstance(member, ast.AnnAssign) and ast.unparse(member.target) == attribute
        for protocol in protocols
        for member in protocol.body
    )


def test_the_classes_are_called_as_upstreams_logs_and_checkpoints_expect() -> None:
    import trl

    assert trainer_class(Trainer).__name__ == "RecipeTrainer"
    assert trainer_class(trl.SFTTrainer).__name__ == "RecipeSFTTrainer"


def test_every_override_is_of_a_method_that_upstream_has() -> None:
    """A method that upstream renames would no longer be called, silently."""
    import trl

    known = set(dir(trl.SFTTrainer))
    ours = {name for name, value in vars(Overrides).items() if callable(value) and not name.startswith("__")}
    services = {
        "_reads_weights_here",
        "save_extra_checkpoint",
        "_clip_masters",
        "_finish_last_step",
        "_evaluate_batches",
    }
    assert ours - known == services
    assert ours & known >= {"training_step", "compute_loss", "_get_grad_norm", "_save_checkpoint", "_run_epoch"}


class Noted(OutOfMemoryRetry):
    """Notes when it is entered and left."""

    notes: list[str]

    def training_step(self, *args: Any) -> Any:
        self.notes.append("retry")
        loss = super().training_step(*args)
        self.notes.append("retry ends")
        return loss

    def compute_loss(self, *args: Any) -> Any:
        self.notes.append("loss")
        return super().compute_loss(*args)


def test_a_step_goes_through_the_guard_the_retry_and_upstream_in_this_order(tmp_path: Path, monkeypatch: Any) -> None:
    notes: list[str] = []

    class Guard:
        stop_signal, listener, has_old_weights = 0, None, False

        def state_dict(self) -> dict[str, Any]:
            return {}

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: notes.append(name)

    retry = Noted()
    retry.notes = notes

    @contextmanager
    def training(trainer: Any) -> Any:
        notes.append("begin")
        yield
        notes.append("end")

    retry.training = training  # type: ignore[method-assign]
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8, n_positions=8)
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 2
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to="none",
        save_strategy="steps",
        save_steps=1,
    )
    parts = TrainerParts(guard=Guard(), retry=retry)  # type: ignore[arg-type]
    trainer = trainer_class(Trainer)(
        parts=parts, model=transformers.GPT2LMHeadModel(config), args=args, train_dataset=rows
    )
    trainer.train()
    micro_batch = ["retry", "loss", "retry ends", "add_micro_batch"]
    assert notes == [
        *("begin_training", "begin", "begin_window"),
        *micro_batch,
        *micro_batch,
        *("check_step", "refuse_changed_weights"),  # the checkpoint's
        *("end", "refuse_changed_weights"),
    ]
    assert (tmp_path / "checkpoint-1/manifest.json").is_file()
    assert overrides.Window().batches == [] and len(trainer.window.batches) == 2
