"""Predicted peaks beside measured ones: `python benchmarks/peaks.py [GROUP...]`, on a CPU, offline; half an hour.

Reads benchmarks/published/*.json (figures and settings, each with its source) and the lab's records, writes
benchmarks/results/peaks.json and, with truths.py's record, docs/plan-accuracy.md (`--page`: the page alone). Nothing is
fitted but one number: peft does not record the length of its longest batch.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peaks_page
import truths

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "peaks.json"
PEFT_LENGTH = peaks_page.PEFT_LENGTH
MIB = 2**20


def measure(groups: Sequence[str] = ()) -> dict[str, Any]:
    """Every prediction of these groups (all, where none is named), with what was published; seconds are of the whole
    group."""
    found: dict[str, Any] = {}
    for name, predict in GROUPS.items():
        if not groups or name in groups:
            found |= predict()
    return found


def _kernels() -> dict[str, Any]:
    import peaks_kernels

    return {
        "kernels": _group(
            _published("liger_kernels"),
            lambda row: (_kernel_name(row), row["mib"] * MIB, peaks_kernels.peak(row)),
        )
    }


def _bert() -> dict[str, Any]:
    import peaks_bert

    bert = _published("bert_large")
    return {
        "bert": _group(bert, lambda row: (row["name"], row["mib"] * MIB, peaks_bert.peak(row, bert["context_mib"])[0]))
    }


def _peft() -> dict[str, Any]:
    import peaks_peft

    return {
        "peft": _group(
            _published("peft"),
            lambda row: (row["name"], row["peak_reserved_bytes"], peaks_peft.peak(row, PEFT_LENGTH)),
            refusal=peaks_peft.Refused,
        )
    }


def _lab() -> dict[str, Any]:
    import peaks_lab

    began, allocated, reserved = time.perf_counter(), list[dict[str, Any]](), list[dict[str, Any]]()
    for cell in peaks_lab.rows():
        name, predicted, measured = peaks_lab.name(cell), peaks_lab.peak(cell), cell.measured
        assert measured is not None
        allocated.append({"name": name, "measured_bytes": measured.allocated_bytes, "predicted_bytes": predicted[0]})
        reserved.append({"name": name, "measured_bytes": measured.reserved_bytes, "predicted_bytes": predicted[1]})
    seconds = round(time.perf_counter() - began, 1)
    return {
        name: {"rows": rows, "refused": [], "seconds": seconds}
        for name, rows in (("lab_allocated", allocated), ("lab_reserved", reserved))
    }


def _t4() -> dict[str, Any]:
    """The rows' allocated and reserved peaks; of the reserved ones, the interval of the load's race, too."""
    import earlier_rules
    import peaks_t4

    began, groups = time.perf_counter(), {}
    found = []
    for row in _published("t4")["rows"]:
        with earlier_rules.earlier_rules():
            before = peaks_t4.peak(row)
        found.append((peaks_t4.name(row), row, peaks_t4.peak(row), before))
    for index, (key, field) in enumerate((("t4_allocated", "bytes"), ("t4_reserved", "reserved_bytes"))):
        rows = [
            {"name": name, "measured_bytes": row[field], "predicted_bytes": now[index], "before_bytes": before[index]}
            | ({"range_bytes": list(now[2])} if key == "t4_reserved" else {})
            for name, row, now, before in found
        ]
        groups[key] = {"rows": rows, "refused": [], "seconds": round(time.perf_counter() - began, 1)}
    return groups


def _published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "published" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _kernel_name(row: dict[str, Any]) -> str:
    axis = next(name for name in ("T", "H", "N", "V", "BT") if isinstance(row.get(name), int) and name in row)
    sizes = " ".join(
        f"{name}={row[name]}" for name in ("BT", "T", "H", "N", "V", "seq_len", "hidden_size") if name in row
    )
    return f"{row['kernel']} {row['mode']} {sizes or axis} ({row['gpu'].removeprefix('NVIDIA ')})"


def _group(
    published: dict[str, Any],
    predict: Callable[[dict[str, Any]], tuple[str, float, int]],
    refusal: type[Exception] = KeyError,
) -> dict[str, Any]:
    began, rows, refused = time.perf_counter(), [], []
    for row in published["rows"]:
        try:
            name, measured, predicted = predict(row)
        except refusal as problem:
            refused.append({"name": row["name"], "because": str(problem)})
            continue
        rows.append({"name": name, "measured_bytes": round(measured), "predicted_bytes": predicted})
    return {"rows": rows, "refused": refused, "seconds": round(time.perf_counter() - began, 1)}


GROUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "lab": _lab,
    "t4": _t4,
    "kernels": _kernels,
    "bert": _bert,
    "peft": _peft,
}


def with_earlier(results: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Each row with what an earlier commit's plan predicted, where it is known."""
    for key, group in results.items():
        before = {row["name"]: row.get("before_bytes") for row in earlier.get(key, {"rows": []})["rows"]}
        for row in group["rows"]:
            if before.get(row["name"]) is not None:
                row["before_bytes"] = before[row["name"]]
    return results


def write_page(results: dict[str, Any]) -> None:
    found = truths.read_rows()
    peaks_page.PAGE.write_text(peaks_page.page(results, found), encoding="utf-8")
    peaks_page.PLOT.write_text(peaks_page.plot(results, found), encoding="utf-8")


def main() -> None:
    warnings.simplefilter("ignore")
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))
    groups = [word for word in sys.argv[1:] if not word.startswith("--")]
    results = earlier if "--page" in sys.argv else {**earlier, **with_earlier(measure(groups), earlier)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(results)
    for key in results:
        print(
            key, {name: round(value, 5) for name, value in peaks_page.summary(peaks_page.errors(results[key])).items()}
        )


if __name__ == "__main__":
    main()
