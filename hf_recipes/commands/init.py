"""`hf-recipes init --data FILE`: a first recipe for somebody's data. Imports neither torch nor transformers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_recipes.catalog.gpus import find_gpu, recognise_gpu
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.files import put
from hf_recipes.common.text import as_yaml, nearest
from hf_recipes.data.first_file import ROWS
from hf_recipes.data.first_look import Seen, count_rows, look
from hf_recipes.errors import DataError, ModelError, OutputDirError, PlanError, RecipeError
from hf_recipes.recipe.model_facts import is_path

MODELS = {  # small ones that fit every GPU; the first recipe is to be trained, not to win
    "text-classification": "distilbert/distilbert-base-uncased",
    "token-classification": "distilbert/distilbert-base-cased",
    "chat": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "causal-lm": "HuggingFaceTB/SmolLM2-135M",
}
SCRATCH = "scratch"  # --model scratch: a small model and a tokenizer that need no download
ENCODER = "{model_type: distilbert, dim: 128, hidden_dim: 512, n_layers: 2, n_heads: 4}"
DECODER = "{model_type: gpt2, n_embd: 192, n_layer: 3, n_head: 6}"
LENGTHS = {"text-classification": 256, "token-classification": 256, "chat": 1024, "causal-lm": 512}
SCRATCH_LENGTH = 128
BATCHES = (32, 16, 8, 4, 2, 1)
STEPS_FROM_SCRATCH, MOST_EPOCHS = 400, 30
STEP = 32  # sequences of an optimizer step; of few rows fewer, since a handful of steps learns nothing
FEWEST_A_STEP, STEPS_AN_EPOCH = 8, 40
CPU_BATCH = 8
MOST_TRIED = 64 * 2**20  # bytes of a file that is read as a run reads it
BYTES_PER_TOKEN = 3  # of English, at least

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The GPU that the recipe is for. `arguments`: those of `plan` that name it; none for a CPU."""

    arguments: dict[str, str]
    bf16: bool = False

    @property
    def options(self) -> str:
        """As they are typed behind `hf-recipes plan`."""
        return " ".join(f"--{'compute-capability' if k == 'capability' else k} {v}" for k, v in self.arguments.items())


def command(
    data: str,
    *,
    output: str = "recipe.yaml",
    task: str | None = None,
    model: str | None = None,
    gpu: str | None = None,
    yes: bool = False,
    say: Say = print,
    ask: Callable[[str, Sequence[str]], str] | None = None,
) -> bool:
    """Looks at the data, says what it takes it for, writes a commented recipe that passes `check`, and reads the data
    by it as a run does. Whether nothing needs a correction.

    `ask`: chooses one of several answers, where the data do not say it; never called with `yes`.
    Raises DataError for a file that cannot be read or is not understood, OutputDirError for a recipe that is there,
    PlanError for a GPU that is not known, ModelError for a model's folder that is not there.
    """
    path = Path(output)
    if path.exists():
        raise OutputDirError.at(output, "is there already", "name another file with --output")
    if task is not None and task not in TASKS:
        near = nearest(task, TASKS)
        fix = f"did you mean {near!r}?" if near else f"it must be one of {', '.join(TASKS)}"
        raise RecipeError.at("argument '--task'", f"there is no task {task!r}", fix)
    _refuse_no_model(model)
    target = choose_target(gpu)
    seen = look(data, task)
    if seen.task is None:
        what = f"it is not clear what is to be learned from it: {seen.why}"
        if yes or ask is None:
            raise DataError.at(data, what, f"name it with --task: {', '.join(TASKS)}")
        say(f"{data}: {seen.why}")
        seen = look(data, ask("task", list(TASKS)))
    counted = f"{seen.rows:,}+ rows" if seen.rows >= ROWS else count_rows(seen.rows)
    say(f"{data}: {counted}, {seen.task}: {seen.why}")
    if seen.dataset.get("encoding"):
        say(f"{data} is no UTF-8: it is read as {seen.dataset['encoding']} (dataset.encoding)")
    if seen.dataset.get("field"):
        say(f"the rows are those below {seen.dataset['field']!r} (dataset.field)")
    names = seen.dataset.get("column_names")
    if names:
        say(f"warning: {data} has no header; its columns are named {', '.join(names)} (dataset.column_names)")
    if seen.counts:
        shown = ", ".join(f"{name} {count}" for name, count in list(seen.counts.items())[:12])
        more = ", ..." if len(seen.counts) > 12 else ""
        say(f"{'labels' if seen.problem else 'classes'}: {len(seen.counts)} ({shown}{more})")
    for line in seen.notes:
        say(line)
    name = model or MODELS[str(seen.task)]
    batch, note = _choose_batch(seen, name, path, target)
    for line in (note, _missing_offline(name)):
        if line:
            say(line)
    _write(path, recipe_text(seen, name, path, batch, target, data))
    from hf_recipes.commands.check import check

    lines, errors = check(str(path))
    for line in lines:
        if not line.startswith("note: "):
            say(line)
    if not errors and os.path.isdir(os.path.expanduser(name)):
        _refuse_other_model(path)
    refused = "" if errors else _try(path, data)
    if refused:
        say(f"error: {refused}")
    if errors or refused:
        say(f"written: {path}; correct {'the recipe' if errors else 'that'} before: {_run(path)}")
        return False
    say(
        f"written: {path}\nnext     {_run(path)}\n         {_plan(path, target)}    does it fit, how long will it take?"
    )
    return True


def _run(path: Path) -> str:
    return shlex.join(["hf-recipes", "run", str(path)])


def _plan(path: Path, target: Target) -> str:
    return f"{shlex.join(['hf-recipes', 'plan', str(path)])} {target.options or '--cpu'}"


def _try(path: Path, data: str) -> str:
    """What a run refuses in the data; "" for nothing, and for a file that is too large to be read twice."""
    if os.path.getsize(data) > MOST_TRIED:
        return ""
    import datasets

    from hf_recipes.data.trial import try_data
    from hf_recipes.recipe.read import read_recipe

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        try_data(read_recipe(str(path)))
    except DataError as problem:
        return str(problem.errors[0])
    finally:
        if shown:
            datasets.enable_progress_bars()
    return ""


def _refuse_other_model(path: Path) -> None:
    """Raises ModelError, and takes the recipe back, for a folder without a model, or with one of another task."""
    from hf_recipes.models.config import build_config
    from hf_recipes.recipe.read import read_recipe

    try:
        build_config(read_recipe(str(path)))
    except ModelError as problem:
        path.unlink(missing_ok=True)
        first = problem.errors[0]
        raise ModelError.at("argument '--model'", first.message, first.fix) from None


def _refuse_no_model(model: str | None) -> None:
    if model is None or model == SCRATCH or os.path.isdir(os.path.expanduser(model)):
        return
    if is_path(model):
        parent = Path(os.path.expanduser(model)).parent
        near = nearest(Path(model).name, os.listdir(parent)) if parent.is_dir() else ""
        fix = f"did you mean {str(parent / near)!r}?" if near else "name a model's folder, a Hub id, or scratch"
        raise ModelError.at("argument '--model'", f"{model!r}: no such folder", fix)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        fix = "name a model's folder, a Hub id such as distilbert/distilbert-base-uncased, or scratch"
        raise ModelError.at("argument '--model'", f"{model!r} is neither a folder nor a Hub id", fix)


def _write(path: Path, text: str) -> None:
    try:
        put(path, text)
    except OSError as problem:
        what = f"{str(path)!r} cannot be written ({problem.strerror})"
        raise OutputDirError.at("argument '--output'", what, "choose another place") from None


def choose_target(gpu: str | None) -> Target:
    """The GPU that is named, else the one that is here. Raises PlanError for a name that is not known."""
    if gpu is not None:
        try:
            found = find_gpu(gpu, "argument '--gpu'")
        except PlanError as problem:
            near = problem.errors[0].fix.partition(";")[0] if "nearest" in problem.errors[0].fix else ""
            fix = f"{near + '; ' if near else ''}all: hf-recipes plan --gpu list"
            raise PlanError.at("argument '--gpu'", problem.errors[0].message, fix) from None
        return Target(arguments={"gpu": gpu}, bf16=found.capability is not None and found.bf16)
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return Target(arguments={})
    query = [driver, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        name, memory, capability = (part.strip() for part in lines[0].split(","))
        known = recognise_gpu(name, int(memory) * 2**20)
        arguments = {"gpu": known.name} if known else {"memory": f"{int(memory)}MiB", "capability": capability}
        return Target(arguments=arguments, bf16=int(capability.partition(".")[0]) >= 8)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Target(arguments={})  # a driver that answers nothing: the recipe is for the CPU


def _missing_offline(model: str) -> str:
    """A warning where the Hub is switched off and the model is not on this machine."""
    off = any(os.environ.get(name, "0").lower() not in ("", "0", "false") for name in OFFLINE)
    if model == SCRATCH or os.path.isdir(model) or not off:
        return ""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return ""
    return f"warning: {model} is not on this machine, and the Hub is off: --model FOLDER, or --model scratch"


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def _choose_batch(seen: Seen, model: str, path: Path, target: Target) -> tuple[int, str]:
    """(rows per device, what to say): the largest of BATCHES that plan says fits; of a CPU a small one."""
    if not target.arguments:
        return CPU_BATCH, ""
    from hf_recipes.commands.plan import command as plan

    shown = target.arguments.get("gpu") or target.options
    draft = path.with_name(f"{path.name}.part")
    try:
        _write(draft, recipe_text(seen, model, path, BATCHES[0], target, ""))
        for batch in BATCHES:
            override = f"{_trainer(seen)}.per_device_train_batch_size={batch}"
            _, fits = plan(str(draft), [override], **target.arguments, with_advice=False, read_data=False)  # type: ignore[arg-type]
            if fits:
                return batch, f"{shown}: {batch} rows of {_length(seen, model)} tokens fit, by plan"
    except OutputDirError:
        raise
    except RecipeError as problem:
        return CPU_BATCH, f"warning: not planned: {problem.errors[0].message}"
    finally:
        draft.unlink(missing_ok=True)
    return 1, f"warning: plan says that {model} does not fit {shown} even with one row: name a smaller one with --model"


def _trainer(seen: Seen) -> str:
    return "SFTConfig" if seen.task == "chat" else "TrainingArguments"


def _length(seen: Seen, model: str) -> int:
    """Tokens of a row: a power of two that holds the longest row looked at, the task's usual length at most."""
    most, length = SCRATCH_LENGTH if model == SCRATCH else LENGTHS[str(seen.task)], 32
    while length < most and length * BYTES_PER_TOKEN < seen.longest:
        length *= 2
    if seen.task != "causal-lm":
        return min(length, most)
    while most > 8 and most * 10 > seen.size:  # of a small text several blocks, of which one is for validation
        most //= 2
    return most


# the recipe ----------------------------------------------------------------------------------------------------------


def recipe_text(seen: Seen, model: str, path: Path, batch: int, target: Target, data: str) -> str:
    """The recipe as YAML with comments."""
    chat, scratch = seen.task == "chat", model == SCRATCH
    length = f"  max_length: {_length(seen, model)}"
    lines = [
        f"# {seen.task} on {data or 'data'}: {seen.why}. Written by hf-recipes init.",
        f"# Run:      {_run(path)}",
        f"# Plan:     {_plan(path, target)}",
        f"task: {seen.task}",
        "model:",
        *(_from_scratch(seen) if scratch else [f"  pretrained_model_name_or_path: {as_yaml(model)}", *_problem(seen)]),
        "dataset:",
        *(f"  {key}: {as_yaml(value)}" for key, value in seen.dataset.items()),
        _beside("  test_size: 0.1", "rows that are split off for validation; or name a validation file"),
    ]
    if not chat:
        lines.append(_beside(length, "tokens; longer rows are cut"))
    if chat and not scratch:
        lines += [
            _beside("LoraConfig:", "an adapter is trained, not the whole model"),
            "  r: 16",
            "  lora_alpha: 32",
            "  target_modules: all-linear",
        ]
    accumulation = max(1, min(STEP, max(FEWEST_A_STEP, seen.rows // STEPS_AN_EPOCH)) // batch)
    epochs = _epochs(seen, scratch, batch * accumulation)
    lines += [
        f"{_trainer(seen)}:",
        f"  output_dir: {as_yaml(f'runs/{path.stem}')}",
        f"  num_train_epochs: {epochs}",
        f"  per_device_train_batch_size: {batch}",
        _beside(f"  gradient_accumulation_steps: {accumulation}", f"{batch} x {accumulation} rows a step"),
        f"  learning_rate: {'1e-3' if scratch else '2e-4' if chat else '5e-5'}",
        _beside("  warmup_steps: 0.1", "below 1: a share of all steps"),
    ]
    if target.arguments and not chat:  # SFTConfig chooses by itself
        lines.append(_beside(f"  {'bf16' if target.bf16 else 'fp16'}: true", "half of the memory, twice the speed"))
    lines += [
        "  logging_steps: 10",
        _beside("  eval_on_start: true", "so that the improvement shows"),
        "  eval_strategy: epoch",
        "  save_strategy: epoch",
        "  save_total_limit: 1",
        "  report_to: none",
    ]
    if chat:
        lines.append(_beside(length, "tokens; longer rows are cut"))
    if seen.metrics:
        lines.append(_beside(f"metrics: [{', '.join(seen.metrics)}]", "the tags are no entities"))
    return "\n".join(lines) + "\n"


def _epochs(seen: Seen, scratch: bool, rows_a_step: int) -> int:
    """How often the rows are read. A tagger with random weights answers "O" for its first hundred steps: of few
    sentences it reads each more often. Texts and classes of a small file would be learned by heart."""
    if not scratch:
        return 3
    if seen.task != "token-classification" or seen.rows >= ROWS:
        return 5
    return max(5, min(MOST_EPOCHS, STEPS_FROM_SCRATCH * rows_a_step // max(seen.rows, 1)))


def _problem(seen: Seen) -> list[str]:
    return [f"  problem_type: {seen.problem}"] if seen.problem else []


def _from_scratch(seen: Seen) -> list[str]:
    """A model with random weights, and a tokenizer that is trained on the train split."""
    config = DECODER if TASKS[str(seen.task)].generates else ENCODER
    return [
        _beside(f"  config: {config}", "random weights; a pretrained model learns more"),
        *_problem(seen),
        _beside("BpeTrainer:", "the tokenizer is trained on the train split"),
        "  vocab_size: 4096",
    ]


def _beside(line: str, comment: str) -> str:
    return f"{line:<36} # {comment}"
