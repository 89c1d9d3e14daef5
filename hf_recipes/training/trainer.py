"""Recipe, model and rows to a ready Trainer or SFTTrainer: upstream's class, our mixins, its callbacks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.checkpoints.loop_state import ContinuingMixin
from hf_recipes.checkpoints.saving import CheckpointMixin
from hf_recipes.common.text import first_line
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.exact import ExactEvaluationMixin
from hf_recipes.models.config import longest_input
from hf_recipes.training.out_of_memory import MemoryMixin
from hf_recipes.training.step_guard import GuardMixin
from hf_recipes.training.trackers import bound

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe

# Keys of TrainingArguments that the runner acts on itself. push_to_hub: Trainer would create the repository before
# training (an unreachable Hub would end the run) and push training_args.bin, a pickle.
RUNNERS_OWN = (
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
    "resume_from_checkpoint",
    "do_train",
    "do_eval",
    "do_predict",
    "assistant_only_loss",  # data/chat.py labels the rows; SFTTrainer would refuse it on tokenized ones
    "completion_only_loss",
)


class RunMixin:
    """What a run needs of either trainer: no pickle beside the weights, no second model card, memory in the logs."""

    model: Any
    args: Any
    processing_class: Any
    accelerator: Any
    recipe: Recipe | None = None  # whose keys a refusal names; without one upstream's error stays as it is
    _tr_loss: torch.Tensor

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As upstream's, without training_args.bin: a pickle that holds hub_token in clear text."""
        folder = output_dir if output_dir is not None else self.args.output_dir
        if not self.args.should_save:
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with _refusals(self.recipe, "optim_args", "optim"):
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with _refusals(self.recipe, "lr_scheduler_kwargs", "lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card is made from the record, at the end of the run (SFTTrainer writes one a checkpoint)."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(_card_facts(self.args.device))
            if not math.isfinite(logs["loss"]):
                # Upstream clears its sum by `tr_loss -= tr_loss`, which leaves NaN: every later loss would log as NaN.
                self._tr_loss.zero_()
        super().log(logs, start_time)  # type: ignore[misc]


@contextmanager
def _refusals(recipe: Recipe | None, *keys: str) -> Iterator[None]:
    """What upstream finds wrong with a key only when training begins, as one message at the first that is given."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as problem:
        if recipe is None:
            raise
        key = next((key for key in keys if key in recipe.training), keys[-1])
        what = f"{key} is refused by the trainer: {first_line(problem)}"
        raise RecipeError.at(recipe.location(f"{recipe.trainer}.{key}"), what) from problem


def _card_facts(device: Any) -> dict[str, float]:
    """Memory of the card at its peak so far in GiB, and its utilisation in percent where NVML answers."""
    if device.type != "cuda":
        return {}
    facts = {
        "gpu_peak_allocated_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3),
        "gpu_peak_reserved_gib": round(torch.cuda.max_memory_reserved(device) / 2**30, 3),
    }
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no pynvml, or a driver without NVML
        facts["gpu_utilization_percent"] = float(torch.cuda.utilization(device))
    return facts


def build_arguments(recipe: Recipe) -> TrainingArguments:
    """The section's class with the recipe's words. Raises RecipeError for what it refuses."""
    words = {k: v for k, v in recipe.training.items() if k not in RUNNERS_OWN}
    if recipe.get("master_weights"):
        words["fp16"] = words["bf16"] = (
            False  # no autocast and no second loss scaler: parameters and gradients are fp16 themselves
        )
    kind: type[TrainingArguments] = TrainingArguments
    if recipe.trainer == "SFTConfig":
        from trl import SFTConfig

        kind = SFTConfig
        # Rows are tokenized, labelled and packed when they get there (tasks/): TRL would shuffle evaluation rows too.
        words["dataset_kwargs"] = {**(words.get("dataset_kwargs") or {}), "skip_prepare_dataset": True}
    try:
        return kind(**words)
    except (ValueError, TypeError, ImportError) as problem:
        raise RecipeError.at(
            recipe.location(recipe.trainer), f"{recipe.trainer} refuses: {first_line(problem)}"
        ) from problem


def build_trainer(
    recipe: Recipe,
    args: TrainingArguments,
    model: Any,
    tokenizer: Any,
    prepared: Prepared,
    compute_metrics: Callable[..., dict[str, float]],
    preprocess_logits: Callable[..., Any] | None,
    say: Callable[[str], None],
) -> Trainer:
    """The one place that builds a trainer. Raises RecipeError for what upstream refuses at construction."""
    kind = trainer_class(recipe)
    words: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": _packed(recipe, args, prepared.train),
        "eval_dataset": prepared.evals["eval"],
        "processing_class": tokenizer,
        "compute_metrics": compute_metrics,
        "callbacks": callbacks(recipe, tokenizer, longest_input(model.config), say),
    }
    if recipe.trainer == "TrainingArguments":
        words["data_collator"] = prepared.collator
        words["preprocess_logits_for_metrics"] = preprocess_logits
    if not TASKS[recipe.task].generates:
        words["compute_loss_func"] = classification_loss(args.label_smoothing_factor)
    try:
        trainer = kind(**words)
    except (ValueError, TypeError, ImportError) as problem:
        raise RecipeError.at(
            recipe.location(recipe.trainer), f"the trainer refuses: {first_line(problem)}"
        ) from problem
    bound(trainer, say)
    return trainer


def classification_loss(label_smoothing: float) -> Callable[..., torch.Tensor]:
    """Cross-entropy summed over a micro-batch, divided by the labels of the whole step (all devices, all accumulation).

    The models' own loss is too large by the number of accumulation steps and of devices: their heads take **kwargs, so
    Trainer 5.23 believes that they divide by num_items_in_batch, and they drop it (transformers #47688). This may go
    when BertForSequenceClassification gives the same loss for 16 x 1 as for 8 x 2.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        total = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum", label_smoothing=label_smoothing
        )
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())

    return loss


def trainer_class(recipe: Recipe) -> type[Trainer]:
    """Upstream's trainer under our mixins."""
    upstream: type[Trainer] = Trainer
    if recipe.trainer == "SFTConfig":
        from trl import SFTTrainer

        upstream = SFTTrainer
    mixins: tuple[type, ...] = (
        RunMixin,
        GuardMixin,
        MemoryMixin,
        CheckpointMixin,
        ContinuingMixin,
        ExactEvaluationMixin,
    )
    if recipe.get("master_weights"):
        from hf_recipes.training.master_weights import MasterWeightsMixin

        mixins = (*mixins, MasterWeightsMixin)
    return type(f"Recipe{upstream.__name__}", (*mixins, upstream), {"recipe": recipe})


class StopAt(TrainerCallback):
    """Ends a training with a checkpoint after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def _packed(recipe: Recipe, args: Any, train: Dataset) -> Dataset:
    """TRL's own order of work: shuffle if asked, then pack."""
    if recipe.trainer != "SFTConfig":
        return train
    if args.shuffle_dataset:
        train = train.shuffle(seed=args.seed)
    if args.packing:
        from trl import pack_dataset

        train = pack_dataset(train, args.max_length, args.packing_strategy)
    return train


def callbacks(
    recipe: Recipe, tokenizer: Any, positions: int | None, say: Callable[[str], None]
) -> list[TrainerCallback]:
    """Early stopping and text samples, as the recipe asks. Raises RecipeError for samples that cannot be made."""
    found: list[TrainerCallback] = []
    if "EarlyStoppingCallback" in recipe.sections:
        found.append(EarlyStoppingCallback(**recipe.section("EarlyStoppingCallback")))
    prompts = recipe.get("sample_prompts")
    if prompts:
        from hf_recipes.training.sample_text import SampleText

        words, chat = recipe.section("GenerationConfig"), recipe.task == "chat"
        found.append(
            SampleText(
                list(prompts), words, tokenizer, chat=chat, positions=positions, location=recipe.location, say=say
            )
        )
    return found
