"""Other software's published peaks beside plan's: `python benchmarks/truths.py [GROUP...]`, on a CPU, offline.

Predicts the rows of published/truths.json that results/truths.json does not have yet and writes each at once, so a call
that is stopped is continued by the next one (`--again` begins anew). About fifteen minutes of one core. peaks.py
makes docs/plan-accuracy.md of it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import context_bytes, find_gpu
from hf_recipes.plan.fit.verdict import MARGIN

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "truths.json"
PUBLISHED = HERE / "published" / "truths.json"
FIRST = ("optimum", "hf_blog", "fms", "sdpa_docs", "litgpt", "ms_swift", "qwen", "fsdp_qlora")
NAMED = ("model", "method", "framework", "quantization", "attention", "task", "batch", "micro_batch", "longest_row")
# The GPU of a group's figures, whose CUDA context counts; a Titan RTX is a Turing GPU, as an RTX 2080 Ti.
GPUS = {"qwen": "a100-80gb", "ms_swift": "a100-80gb", "fms": "a100-80gb", "litgpt": "a100-40gb"}
GPUS |= {"hf_blog": "rtx-2080-ti"}
GIB = 2**30
# What torch sees of a GPU on which a run was out of memory, or had its largest batch.
CAPACITY = {"litgpt": 39.4 * GIB, "hf_blog": 23.65 * GIB}
TITLES = {
    "optimum": "optimum-benchmark's Trainer runs (CUDA and ROCm)",
    "fms": "fms-acceleration on A100 (torch 2.4, transformers 4.48)",
    "sdpa_docs": "transformers' own tables of sdpa (torch 2.2 to 2.5)",
    "litgpt": "LitGPT's table of resources (its own models)",
    "qwen": "Qwen's README (first generation, remote code)",
    "ms_swift": "ms-swift's benchmark (first generation of Qwen, Yi)",
    "fsdp_qlora": "fsdp_qlora on two RTX 3090",
    "hf_blog": "Hugging Face's blog: what was out of memory, and what fitted",
}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A published row beside what plan predicts; None where there is no figure."""

    group: str
    name: str
    kind: str
    allocated: int | None
    reserved: int | None
    measured: int | None
    smi: int | None  # bytes that nvidia-smi showed, beside `measured`
    refused: str
    sharded: bool
    before: tuple[int, int] | None  # (allocated, reserved) without three of plan's rules: earlier_rules.py

    @property
    def predicted(self) -> int | None:
        """What stands for the figure that was measured."""
        return self._figure(self.allocated, self.reserved)

    def _figure(self, allocated: int | None, reserved: int | None) -> int | None:
        if allocated is None or reserved is None:
            return None
        if self.kind == "allocated":
            return allocated
        return reserved + (self.context if "nvidia-smi" in self.kind else 0)

    @property
    def context(self) -> int:
        """The most that CUDA took for itself."""
        return context_bytes(find_gpu(GPUS[self.group]))

    @property
    def error(self) -> float | None:
        if self.measured is None or self.predicted is None:
            return None
        return self.predicted / self.measured - 1

    @property
    def error_before(self) -> float | None:
        figure = self._figure(*(self.before or (None, None)))
        return None if self.measured is None or figure is None else figure / self.measured - 1

    @property
    def is_false_fit(self) -> bool:
        """Whether plan would call it "fits" on a GPU that had just too little for it."""
        if self.reserved is None:
            return False
        needed = self.reserved * MARGIN
        if self.kind == "out of memory":
            return needed <= CAPACITY[self.group] - self.context
        if self.measured is None:
            return False
        with_context = self.smi or (self.measured if "nvidia-smi" in self.kind else None)
        return needed < self.measured if with_context is None else needed + self.context < with_context

    @property
    def cause(self) -> str:
        """Why it is more than 2 % off; "" where it is not."""
        if self.kind.startswith("out of memory"):
            more = (self.reserved or 0) * MARGIN > CAPACITY[self.group] - self.context
            return "plan: not called fits" if more else "plan: fits"
        if self.error is None or abs(self.error) <= 0.02:
            return ""
        if self.sharded and self.group == "litgpt":
            return "predicted for one GPU"
        if self.sharded and self.group == "fms":
            return next((why for part, why in OF_RANKS if part in self.name), "unexplained")
        return next((why for group, part, why in CAUSES if group == self.group and part in self.name), "unexplained")


# Of fms-acceleration's rows under FSDP1: part of the row's name, cause.
OF_RANKS = (
    ("santacoder", "unexplained"),
    (
        "Mixtral-8x7B-Instruct-v0.1 accelerated",
        "today's experts are not quantized, and each rank loads the whole model",
    ),
    ("70b", "today each rank loads the whole 4-bit model, which is the peak"),
    ("", "FSDP1; a rank of FSDP2 stands for it"),
)
# (group, part of the row's name, why today's code is not what was measured); the first that fits counts.
CAUSES = (
    ("fms", "Mixtral", "today's experts are one tensor a layer, which bitsandbytes does not quantize"),
    ("fms", "santacoder", "unexplained (its release's loss of 16-bit logits is replayed)"),
    (
        "fms",
        "Mistral-7B-v0.1 accelerated",
        "rows are not packed: their lengths are not published, 4,096 tokens are counted",
    ),
    ("sdpa_docs", "pythia", "unexplained (with its release's loss of 16-bit logits it is further off)"),
    ("sdpa_docs", "gpt2", "GPT-2 then: another eager attention, not replayed"),
    ("fsdp_qlora", "", "FSDP1 in a loop of its own, which loads a shard at a time; a rank of FSDP2 stands for it"),
    ("litgpt", "Adapter", "LitGPT's own adapter, for which LoRA stands"),
    ("litgpt", "", "LitGPT's own models: queries, keys and values are one layer, whose LoRA pads"),
    ("qwen", "full", "trained with ZeRO's buffers, whose settings are not published"),
    ("qwen", "Q-LoRA", "GPTQ's weights and kernels; nf4 stands for them"),
    ("qwen", "", "Qwen's remote code, and a trainer under DeepSpeed; Qwen2 stands for it"),
    ("ms_swift", "", "which figure was read is not published; remote code, Qwen2 and Llama stand for it"),
)


def name_of(row: Mapping[str, Any]) -> str:
    """What tells a row from its neighbours."""
    said = [
        str(row[key]).partition(" (first generation")[0] for key in NAMED if row.get(key) not in (None, "none", "None")
    ]
    section = str(row.get("section", ""))
    said += ["Adapter v2"] if "adapter_v2" in section else ["Adapter"] if "Adapter" in section else []
    said += [f"{row['length']} tokens"] if isinstance(row.get("length"), int) else []
    said += [f"r {row['lora_r']}"] if row.get("lora_r") else []
    said += [str(row["gpus"])] if row.get("gpus") not in (None, 1) else []
    return " ".join(said)


def published_rows() -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, group, row) of each, with the group's settings in it."""
    number = 0
    for group, values in json.loads(PUBLISHED.read_text(encoding="utf-8"))["groups"].items():
        for row in values["rows"]:
            yield number, group, {"source": values.get("source"), **values["settings"], **row}
            number += 1


def is_sharded(row: Mapping[str, Any]) -> bool:
    """Whether several GPUs shared the model."""
    said = f"{row.get('sharding')} {row.get('gpus')} {row.get('what')}"
    return "FSDP" in said or "2 x A100" in said or "4 x A100" in said


def predict_missing(known: list[dict[str, Any]], groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A record of each row that `known` lacks."""
    import peaks_truths

    have = {row["row"] for row in known}
    for number, group, row in sorted(published_rows(), key=lambda one: (FIRST.index(one[1]), one[0])):
        if number in have or (groups and group not in groups):
            continue
        began = time.process_time()
        found: dict[str, Any] = {"row": number, "group": group, "name": name_of(row), "kind": row["kind"]}
        found |= {"measured_bytes": row["bytes"], "measured_reserved_bytes": row.get("reserved_bytes")}
        if row.get("nvidia_smi_mib"):
            found["nvidia_smi_bytes"] = int(row["nvidia_smi_mib"] * 2**20)
        try:
            found["allocated"], found["reserved"] = peaks_truths.predict(group, row)
        except Exception as problem:  # upstream's refusals are part of the table
            found["refused"] = f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:160]}"
        yield found | {"seconds": round(time.process_time() - began, 1)}


def predict_before(known: list[dict[str, Any]], groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Those of `known` that have a figure and none "before", with it."""
    import earlier_rules
    import peaks_truths

    published = {number: row for number, _, row in published_rows()}
    for row in known:
        if "before" in row or row.get("reserved") is None or (groups and row["group"] not in groups):
            continue
        with earlier_rules.earlier_rules():
            yield row | {"before": list(peaks_truths.predict(row["group"], published[row["row"]]))}


def read_rows() -> list[Truth]:
    """The record's rows."""
    if not RESULTS.is_file():
        return []
    sharded = {number: is_sharded(row) for number, _, row in published_rows()}
    return [
        Truth(
            group=row["group"],
            name=row["name"],
            kind=row["kind"],
            allocated=row.get("allocated"),
            reserved=row.get("reserved"),
            measured=row["measured_bytes"],
            smi=row.get("nvidia_smi_bytes"),
            refused=row.get("refused", ""),
            sharded=sharded[row["row"]],
            before=tuple(row["before"]) if "before" in row else None,
        )
        for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    groups = [word for word in sys.argv[1:] if not word.startswith("--")]
    rows: dict[int, dict[str, Any]] = {}
    if RESULTS.is_file() and "--again" not in sys.argv:
        rows = {row["row"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    for predict in (predict_missing, predict_before):
        for row in predict(list(rows.values()), groups):
            rows[row["row"]] = row
            lines = ",\n".join(" " + json.dumps(rows[number]) for number in sorted(rows))
            RESULTS.write_text('{"rows": [\n' + lines + "\n]}\n", encoding="utf-8")
            shown = ("measured_bytes", "allocated", "reserved", "before", "refused", "seconds")
            print(row["group"], row["name"], {k: v for k, v in row.items() if k in shown}, flush=True)


if __name__ == "__main__":
    main()
