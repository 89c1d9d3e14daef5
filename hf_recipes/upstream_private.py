"""Every private point of upstream that this package relies on, in one table (light: imports nothing of upstream).

tests/test_upstream_private.py holds each row to the installed version: a signature that changed, or a line of
upstream's source that is gone, fails our build instead of a user's run. Whoever overrides or sets an underscored name
adds a row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PrivatePoint:
    """One private name, who uses it and why. `signature` and each of `lines` must be found in the installed version."""

    name: str  # "package.module:Class.member"; for an attribute of instances, the class
    used_by: str  # our file
    why: str
    signature: str = ""  # str(inspect.signature(name)); "" for what is no function
    lines: tuple[str, ...] = ()  # text that inspect.getsource(name) holds
    issue: str = ""  # upstream's, if there is one
    until: str = ""  # when the row may go


PRIVATE_POINTS: tuple[PrivatePoint, ...] = (
    PrivatePoint(
        name="transformers.trainer:Trainer._clip_grad_norm",
        used_by="master_weights.py",
        why="clips the fp32 gradients of the masters; the model's own are fp16 and scaled",
        signature="(self, model)",
        until="Trainer lets an optimizer clip its own gradients without SageMaker",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._get_grad_norm",
        used_by="master_weights.py",
        why="the norm that is logged when max_grad_norm is 0 must be the unscaled one too",
        signature="(self, model, grad_norm=None)",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._run_epoch",
        used_by="master_weights.py",
        why="the two above are called once a step, after the last backward and before optimizer.step(); "
        "a skipped step does not advance the learning rate",
        lines=(
            "grad_norm = self._clip_grad_norm(model)",
            "grad_norm = self._get_grad_norm(model, grad_norm=grad_norm)",
            "self.optimizer.step()",
            "if not self.accelerator.optimizer_step_was_skipped:",
            "self._maybe_log_save_evaluate(\n                        self._tr_loss,",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._maybe_log_save_evaluate",
        used_by="training.py",
        why="_tr_loss is cleared by subtraction, so that one loss that is not finite would make "
        "every later logged loss NaN; log() zeroes it after such a loss",
        lines=("tr_loss -= tr_loss", "self.log(logs, start_time)"),
        until="upstream clears it by zero_()",
    ),
    PrivatePoint(
        name="accelerate.optimizer:AcceleratedOptimizer",
        used_by="master_weights.py",
        why="_is_overflow is what optimizer_step_was_skipped reads; accelerate itself sets it only with its own scaler",
        lines=("self._is_overflow = False", "return self._is_overflow"),
    ),
    PrivatePoint(
        name="transformers.modeling_utils:PreTrainedModel",
        used_by="half_precision.py",
        why="the parts of a model which float16 breaks, by upstream's own list",
        lines=("_keep_in_fp32_modules:", "_keep_in_fp32_modules_strict:"),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save",
        used_by="training.py",
        why="replaced: upstream's writes training_args.bin, a pickle that holds hub_token in clear text",
        signature="(self, output_dir: str | None = None, state_dict: dict | None = None) -> None",
        lines=("torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))",),
    ),
    PrivatePoint(
        name="huggingface_hub.utils._xet:abort_xet_session",
        used_by="hub_client.py",
        signature="()",
        why="ends an upload's Xet session that would retry for minutes; looked up by getattr, done without if absent",
    ),
)
