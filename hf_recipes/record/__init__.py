"""record.json: what one run was and did, with its provenance. Imports neither torch nor transformers.

Written when a run has made its first step (status "running"), at its end, however it ends, and after each step of its
end (file.py). Each field's comment is its line in docs/record.md, which `python benchmarks/tables.py` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# 1, until commit 587a747: `stage` was called `where`, and there were no sessions. 2: times, memory and speed were those
# of the last session.
SCHEMA = 3
NAME = "record.json"
SAMPLES = "samples.jsonl"  # beside it: step, prompt, text of each sample during training; never pushed
FAILED_NAME = "record-failed.json"  # of a start that made no step, beside the record of a run that did


class Status(StrEnum):
    """How a run ended; "running": it has not, or it was killed."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


COMPLETE = (Status.FINISHED, Status.DIVERGED)  # of a run that came to its end


class Stage(StrEnum):
    """How far a run came."""

    START = "start"
    DATA = "data"
    MODEL = "model"
    TRAINING = "training"
    SAVING = "saving"
    EVALUATION = "evaluation"
    END = "end"


class EndStep(StrEnum):
    """What is left to do when the last step is made, in this order. `--resume` does what was not done."""

    WEIGHTS = "weights"
    EVALUATION = "evaluation"
    CARD = "model card"
    REPORT = "report"
    PUSH = "push"


BEFORE_TRAINING = (Stage.START, Stage.DATA, Stage.MODEL)


@dataclass(frozen=True, kw_only=True)
class RecipeFacts:
    """The resolved recipe."""

    path: str = ""  # the file that was given
    text: str = ""  # the resolved recipe as YAML: it reads back to the same run
    sections: Mapping[str, Any] = field(default_factory=dict)  # the same as values

    @property
    def training(self) -> Mapping[str, Any]:
        """The section of the trainer's arguments."""
        found: Mapping[str, Any] = self.sections.get("SFTConfig") or self.sections.get("TrainingArguments") or {}
        return found


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the run computed on."""

    kind: str = ""  # cpu, cuda or mps
    name: str = ""  # the CPU's or GPU's name
    count: int = 0  # GPUs of the machine
    capability: tuple[int, int] | None = None  # CUDA compute capability
    memory_bytes: int | None = None  # of one GPU
    bf16: bool = False  # whether bf16 is fast here


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that was trained or evaluated."""

    class_: str = ""  # its class in transformers
    name: str = ""  # pretrained name or path, preset, or model_type
    source: str | None = None  # hub, local or scratch
    from_scratch: bool = False  # whether it started from random weights
    num_labels: int | None = None  # of a classifier
    parameters: int = 0  # all of them
    trainable_parameters: int = 0  # those that are trained
    adapter: bool = False  # whether a LoRA adapter is trained
    dtype: str = ""  # of the weights
    attention: str | None = None  # the attention implementation


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """The tokenizer."""

    class_: str = ""  # its class in transformers
    vocabulary: int = 0  # its tokens


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """One split, after its preparation for the task; a count that the task does not have is null."""

    rows: int = 0  # rows, or blocks of text
    tokens: int = 0  # tokens in all rows
    longest: int | None = None  # tokens of the longest row
    cut_rows: int | None = None  # rows that were cut at max_length
    documents: int | None = None  # texts before they were joined to blocks
    empty: int | None = None  # empty texts that were left out
    label_tokens: int | None = None  # tokens that carry the loss
    lost_label_tokens: int | None = None  # such tokens beyond max_length
    lost_words: int | None = None  # tagged words beyond max_length
    blank_words: int | None = None  # tagged words without a sub-token, such as blanks
    labels: Mapping[str, int] | None = None  # rows, or tags, of each label
    bytes: int | None = None  # UTF-8 bytes of the text that is predicted
    fingerprint: str = ""  # hash of the columns that were used
    columns: Mapping[str, str] = field(default_factory=dict)  # those columns, each with the kind of its values


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one optimizer step trains on."""

    per_device: int = 0  # sequences of a micro-batch on one device
    processes: int = 0  # processes that train together
    accumulation: int = 0  # micro-batches of a step
    sequences_per_step: int = 0  # the product of the three
    tokens_per_step: int = 0  # of sequences of average length


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds, of all sessions together or of one. Of a killed one: until its last checkpoint."""

    train_seconds: float | None = None  # training without its evaluations
    data_seconds: float | None = None  # of it, waiting for the data loader's next batch
    eval_seconds: float | None = None  # evaluations during training
    scores_seconds: float | None = None  # writing per-example scores, and their intervals
    total_seconds: float | None = None  # from the data to the scores


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peaks of the process in bytes, the largest of all sessions or those of one."""

    peak_rss_bytes: int | None = None  # memory of the process
    peak_allocated_bytes: int | None = None  # tensors on the GPU
    peak_reserved_bytes: int | None = None  # what torch's allocator took of the GPU

    @property
    def peak_bytes(self) -> int | None:
        """On the GPU if there is one, else of the process."""
        return self.peak_reserved_bytes or self.peak_rss_bytes


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """Model FLOPs utilization (MFU), of a GPU that is known; null elsewhere."""

    mfu: float | None = None  # tokens_per_second x flops_per_token / peak_flops
    flops_per_token: float | None = None  # forward and backward of one token, padding and recomputation left out
    formula: str | None = None  # how they were counted
    peak_flops: float | None = None  # of all GPUs of the run, a second
    peak: str | None = None  # whose rate that is, and in which precision


@dataclass(frozen=True, kw_only=True)
class ForecastFacts:
    """The training time that `plan` expected; without a GPU only the measured step."""

    seconds: tuple[float, float] | None = None  # shortest and longest
    why: str | None = None  # why there is no forecast
    step_seconds: float | None = None  # of one step, by the GPU's peak rates
    formula: int | None = None  # version of that calculation
    steps: int | None = None  # optimizer steps
    epochs: float | None = None  # passes over the data
    parts: Mapping[str, Any] = field(default_factory=dict)  # seconds by part
    basis: str | None = None  # what the range rests on
    notes: tuple[str, ...] = ()  # what it leaves out
    measured_step_seconds: float | None = None  # a step as it was


@dataclass(frozen=True, kw_only=True)
class GuardEvents:
    """Steps whose loss or gradient was not finite."""

    skipped_steps: tuple[int, ...] = ()  # skipped (on_nonfinite: skip)
    rolled_back: int = 0  # returns to the last checkpoint (on_nonfinite: rollback)


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Early stopping ended the training."""

    step: int = 0  # at this optimizer step
    metric: str = ""  # the metric that it followed
    best_step: int | None = None  # where the metric was best
    best: float | None = None  # its value there

    def __str__(self) -> str:
        known = self.best_step and self.best is not None
        best = f"; {self.metric} was best at step {self.best_step} ({self.best:.4g})" if known else ""
        return f"at step {self.step}{best}"


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """The checkpoint that this session resumed from."""

    from_: str = ""  # its folder
    step: int = 0  # optimizer steps that it had made
    passed_over: tuple[str, ...] = ()  # later checkpoints that were not complete, each with the reason


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process from its start to its end. A run has several if it was resumed.

    A session that was killed could not say how it ended. Its steps, times and tokens are those of its last checkpoint;
    if it wrote none, of its first step.
    """

    started: str | None = None  # UTC; null where only a checkpoint of an older version shows the session
    ended: str | None = None  # UTC; of a killed session: when its last checkpoint was saved
    resumed_at: int | None = None  # optimizer steps of the checkpoint that it resumed from; null: from the beginning
    differences: tuple[str, ...] = ()  # what then differed from the session that wrote it
    first_step: int | None = None  # first optimizer step that it made; null if it made none
    last_step: int | None = None  # last one
    tokens: int | None = None  # tokens that it trained on
    time: Timing = Timing()  # its seconds
    step_seconds: float | None = None  # of one step, without the first few
    memory: Memory = Memory()  # its peaks
    guards: GuardEvents = GuardEvents()  # its steps that were not finite
    machine: str = ""  # device name and kind
    status: Status | None = None  # how it ended; null: it is running, or was killed
    stage: Stage | None = None  # where it ended
    error: str | None = None  # the message of what ended it
    signal: str | None = None  # the signal that stopped it ("SIGTERM")

    @property
    def steps(self) -> int:
        """How many optimizer steps it is known to have made."""
        return 0 if self.first_step is None or self.last_step is None else self.last_step - self.first_step + 1


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """From this step on, micro-batches were computed in smaller pieces, since one was out of memory."""

    step: int = 0  # optimizer step
    phase: str = ""  # training or evaluation
    pieces: int = 1  # pieces of a micro-batch from there on
    rank: int = 0  # the process


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What evaluations reported, by metric name ("eval_f1"); null where none was made."""

    before: Mapping[str, float] | None = None  # validation split, before training
    eval: Mapping[str, float] | None = None  # validation split, at the end
    test: Mapping[str, float] | None = None  # test split, at the end

    def of(self, split: str) -> Mapping[str, float]:
        """Of "before", "eval" or "test"; empty where none was made."""
        found: Mapping[str, float] | None = getattr(self, split, None)
        return found or {}


@dataclass(frozen=True, kw_only=True)
class MetricInterval:
    """95 % interval of a metric, by the bootstrap of the examples."""

    value: float  # the metric
    low: float  # lower end
    high: float  # upper end


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run."""

    schema: int = SCHEMA  # version of this format
    task: str  # causal-lm, chat, text-classification or token-classification
    status: Status = Status.FAILED  # how the last session ended
    stage: Stage = Stage.START  # where it ended
    error: str | None = None  # the message of what ended it
    run: str | None = None  # an id that all sessions of the run and its checkpoints share
    sessions: tuple[Session, ...] = ()  # oldest first; a run that was never resumed has one
    done: tuple[EndStep, ...] = ()  # steps of the end that are done; --resume does the others
    started: str | None = None  # UTC, of the first session
    ended: str | None = None  # UTC, of the last session
    recipe: RecipeFacts = RecipeFacts()  # the resolved recipe
    choices: tuple[str, ...] = ()  # what was chosen for the user, each with its reason
    translations: tuple[str, ...] = ()  # keys of older versions, and what they became
    notes: tuple[str, ...] = ()  # what was printed about rows, tokenizer, model, resuming and guards
    versions: Mapping[str, str | None] = field(default_factory=dict)  # packages; null: not installed
    commit: str | None = None  # git commit of the working directory; "+": with changes
    device: DeviceFacts = DeviceFacts()  # what it computed on
    model: ModelFacts | None = None  # the model
    tokenizer: TokenizerFacts | None = None  # the tokenizer
    data_source: str | None = None  # local or hub
    data: Mapping[str, DataFacts] = field(default_factory=dict)  # by split: train, eval, test
    label_names: tuple[str, ...] = ()  # of a classifier, in the order of their numbers
    label_order: str = ""  # whose order that is: the recipe's, the checkpoint's head's, ...
    batch: Batch | None = None  # what one step trains on
    seed: int | None = None  # of the run
    planned_steps: int | None = None  # optimizer steps that the recipe asks for
    upstream_defaults: Mapping[str, Any] = field(default_factory=dict)  # every field of the training arguments
    plan: Mapping[str, Any] | None = None  # on a GPU: what `hf-recipes plan --json` prints
    forecast: ForecastFacts = ForecastFacts()  # expected time, and the measured step (mean of all sessions)
    resumption: str | None = None  # whether the run was resumed bit for bit; if it never was, whether that is possible
    resumed: Resumption | None = None  # the checkpoint that the last session resumed from
    steps: int | None = None  # optimizer steps that led to the weights, each counted once
    repeated_steps: int = 0  # steps that were made again, since a session resumed from an older checkpoint
    epochs: float | None = None  # passes over the data
    tokens: int | None = None  # tokens of those steps, each counted once
    total_flos: float | None = None  # floating-point operations, as Trainer counts them
    time: Timing = Timing()  # seconds of all sessions, repeated steps included
    tokens_per_second: float | None = None  # of training in all sessions, evaluations left out
    data_wait: float | None = None  # share of the training time that was spent waiting for data
    utilization: Utilization = Utilization()  # share of the GPU's peak rate that training used
    train_loss: float | None = None  # mean over the run
    log_history: tuple[Mapping[str, Any], ...] = ()  # Trainer's log entries
    best_checkpoint: str | None = None  # by metric_for_best_model
    last_checkpoint: str | None = None  # folder name of the latest complete one when the last session ended
    out_of_memory: tuple[SplitStep, ...] = ()  # micro-batches that had to be split
    guards: GuardEvents = GuardEvents()  # steps that were not finite, in any session
    diverged: str | None = None  # why the result is worth nothing (status "diverged")
    stopped_early: EarlyStop | None = None  # by EarlyStoppingCallback
    metrics: Metrics = Metrics()  # what evaluations reported
    scores: Mapping[str, str] = field(default_factory=dict)  # split -> file of per-example scores
    intervals: Mapping[str, Mapping[str, MetricInterval]] | None = None  # split -> metric -> 95 % interval
    memory: Memory = Memory()  # peaks of the process, the largest of all sessions

    @property
    def resumed_at(self) -> tuple[int, ...]:
        """The steps at which the run was resumed, oldest first."""
        return tuple(one.resumed_at for one in self.sessions if one.resumed_at is not None)


def describe_machine(device: DeviceFacts) -> str:
    """ "NVIDIA A10G (cuda)"."""
    return f"{device.name} ({device.kind})" if device.name else device.kind
