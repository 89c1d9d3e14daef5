"""Recipe, model and rows to a complete Trainer or SFTTrainer: upstream's class, our parts, its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_recipes.catalog.tasks import TASKS, task_of
from hf_recipes.checkpoints.resume import allowed_differences, location_of
from hf_recipes.checkpoints.saving import CheckpointWriter
from hf_recipes.checkpoints.settings import RecipeSettings
from hf_recipes.common.text import first_line
from hf_recipes.data.chat_prompt import is_plain_prompt, marks_answers
from hf_recipes.data.chat_template import read_template
from hf_recipes.data.streamed_rows import TokenStream, first_rows
from hf_recipes.errors import RecipeError
from hf_recipes.models.config import longest_input
from hf_recipes.training.classification_loss import classification_loss
from hf_recipes.training.hooks import NONE as NO_HOOKS
from hf_recipes.training.hooks import Hooks
from hf_recipes.training.master_weights import MasterWeightsStep
from hf_recipes.training.out_of_memory import OutOfMemoryRetry
from hf_recipes.training.overrides import trainer_class
from hf_recipes.training.plain_head import use_plain_logits
from hf_recipes.training.screen import print_columns
from hf_recipes.training.signals import Listener
from hf_recipes.training.step_guard import StepGuard
from hf_recipes.training.step_timer import AfterEvaluation, AfterFirstStep, StepTimer
from hf_recipes.training.step_work import StepWork
from hf_recipes.training.stop_callback import FollowSteps, StopAtStep
from hf_recipes.training.trackers import limit_trackers
from hf_recipes.training.trainer_members import TrainerParts

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.prepared import Prepared, Source
    from hf_recipes.recipe.recipe import Recipe

# Keys of TrainingArguments that `run` acts on itself. push_to_hub: Trainer would create the repository before
# training (an unreachable Hub would end the run) and push training_args.bin, a pickle.
KEYS_OF_RUN = (
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


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a run gives its trainer beside recipe, model and data. plan traces a trainer without it."""

    listener: Listener  # of the signals that end a run
    run_facts: Callable[[TrainingArguments], Mapping[str, Any]]  # what each checkpoint's manifest says of the run
    timer: StepTimer
    sessions: Callable[[], Mapping[str, Any]] = dict  # what each manifest says of the run's sessions so far
    after_first_step: Callable[[], None] = lambda: None
    after_evaluation: Callable[[], None] = lambda: None
    say: Callable[[str], None] = print
    hooks: Hooks = NO_HOOKS  # the caller's own code
    until: int | None = None  # a replay ends with a checkpoint after this step


def build_arguments(recipe: Recipe) -> TrainingArguments:
    """The section's class with the recipe's arguments. Raises RecipeError for what it refuses."""
    arguments = {k: v for k, v in recipe.training.items() if k not in KEYS_OF_RUN}
    if recipe.get("master_weights"):
        # No autocast and no second loss scaler: parameters and gradients are fp16 themselves.
        arguments["fp16"] = arguments["bf16"] = False
    kind: type[TrainingArguments] = TrainingArguments
    if recipe.trainer == "SFTConfig":
        from trl import SFTConfig

        kind = SFTConfig
        # Rows are tokenized, labelled and packed when they get there (tasks/): TRL would shuffle evaluation rows too.
        arguments["dataset_kwargs"] = {**(arguments.get("dataset_kwargs") or {}), "skip_prepare_dataset": True}
    try:
        args = kind(**arguments)
    except (ValueError, TypeError, ImportError) as problem:
        raise RecipeError.at(
            recipe.location(recipe.trainer), f"{recipe.trainer} refuses: {first_line(problem)}"
        ) from problem
    dealt: Any = args.accelerator_config  # the dataclass that TrainingArguments makes of whatever is given
    if recipe.get("dataset.streaming") is True and dealt.dispatch_batches is None:
        dealt.dispatch_batches = False  # else process 0 joins the batches of all, which differ in length
    return args


def build_trainer(
    recipe: Recipe,
    args: TrainingArguments,
    model: Any,
    tokenizer: Any,
    prepared: Prepared,
    compute_metrics: Callable[..., dict[str, float]],
    preprocess_logits: Callable[..., Any] | None,
    say: Callable[[str], None],
    session: Session | None = None,
) -> Any:
    """The one place that builds a trainer, an `Overrides` of upstream's class; nobody sets an attribute afterwards.

    Raises RecipeError for what upstream refuses at construction.
    """
    parts = _build_parts(recipe, say, session)
    streamed = isinstance(prepared.train, TokenStream)
    arguments: dict[str, Any] = {
        "parts": parts,
        "model": model,
        "args": args,
        "stream": prepared.train if streamed else None,
        "train_dataset": first_rows(prepared.train, 1) if streamed else _pack(recipe, args, prepared.train),
        "eval_dataset": prepared.evals["eval"],
        "processing_class": tokenizer,
        "compute_metrics": compute_metrics,
        "callbacks": callbacks(recipe, tokenizer, longest_input(model.config), say, prepared.sources.get("train")),
    }
    if recipe.trainer == "TrainingArguments":
        arguments["data_collator"] = prepared.collator
        arguments["preprocess_logits_for_metrics"] = preprocess_logits
    if not TASKS[recipe.task].generates:
        kind, weights = task_of(recipe).scored_as, prepared.class_weights
        arguments["compute_loss_func"] = classification_loss(kind, args.label_smoothing_factor, weights)
    if session is not None and session.hooks.loss is not None:
        arguments["compute_loss_func"] = session.hooks.loss
    if session is not None:
        arguments["callbacks"] += list(session.hooks.callbacks)
    try:
        trainer = trainer_class(_upstream_class(recipe))(**arguments)
    except (ValueError, TypeError, ImportError) as problem:
        raise RecipeError.at(
            recipe.location(recipe.trainer), f"the trainer refuses: {first_line(problem)}"
        ) from problem
    if recipe.trainer == "SFTConfig":
        use_plain_logits(trainer.model)
    limit_trackers(trainer, say)
    if session is not None and parts.guard is not None:
        session.listener.expect_workers()
        print_columns(trainer, session.say)
        trainer.add_callback(session.timer)
        trainer.add_callback(AfterFirstStep(session.after_first_step))
        trainer.add_callback(AfterEvaluation(session.after_evaluation))
        trainer.add_callback(FollowSteps(parts.work, session.listener, trainer))
        if session.until is not None:
            trainer.add_callback(StopAtStep(session.until))
    return trainer


def _upstream_class(recipe: Recipe) -> type[Trainer]:
    if recipe.trainer == "SFTConfig":
        from trl import SFTTrainer

        sft: type[Trainer] = SFTTrainer
        return sft
    return Trainer


def _build_parts(recipe: Recipe, say: Callable[[str], None], session: Session | None) -> TrainerParts:
    masters = MasterWeightsStep() if recipe.get("master_weights") else None
    retry = OutOfMemoryRetry(recipe=recipe)
    if session is None:
        return TrainerParts(recipe=recipe, retry=retry, masters=masters)
    policy = recipe.get("on_nonfinite") or "stop"
    guard = StepGuard(recipe=recipe, say=say, listener=session.listener, policy=policy)
    return TrainerParts(
        recipe=recipe,
        guard=guard,
        work=StepWork(guard),
        retry=retry,
        masters=masters,
        settings=RecipeSettings(location=location_of(recipe), allowed=allowed_differences(recipe)),
        writer=CheckpointWriter(
            facts=session.run_facts,
            sessions=session.sessions,
            location=recipe.location(f"{recipe.trainer}.output_dir"),
            say=say,
        ),
    )


def _pack(recipe: Recipe, args: Any, train: Dataset) -> Dataset:
    """The training rows in TRL's own order of work: shuffled if asked, then packed."""
    if recipe.trainer != "SFTConfig":
        return train
    if args.shuffle_dataset:
        train = train.shuffle(seed=args.seed)
    if args.packing:
        from trl import pack_dataset

        train = pack_dataset(train, args.max_length, args.packing_strategy)
    return train


def callbacks(
    recipe: Recipe,
    tokenizer: Any,
    positions: int | None,
    say: Callable[[str], None],
    source: Source | None,
) -> list[TrainerCallback]:
    """Early stopping and text samples, as the recipe asks; `source`: the rows of training. Raises RecipeError for
    samples that cannot be made."""
    found: list[TrainerCallback] = []
    if "EarlyStoppingCallback" in recipe.sections:
        found.append(EarlyStoppingCallback(**recipe.section("EarlyStoppingCallback")))
    prompts = recipe.get("sample_prompts")
    if prompts:
        from hf_recipes.training.sample_text import SampleText

        template, columns = None, source.kinds if source else {}
        if recipe.task == "chat" and not is_plain_prompt(recipe, columns):
            template = read_template(tokenizer, mark=marks_answers(recipe, columns))
        found.append(
            SampleText(
                list(prompts),
                recipe.section("GenerationConfig"),
                tokenizer,
                template=template,
                positions=positions,
                location=recipe.location,
                say=say,
                chat_template_kwargs=recipe.get("dataset.chat_template_kwargs"),
            )
        )
    return found
