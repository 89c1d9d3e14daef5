"""A comparison as text: the sentence of a verdict, the lines for the terminal, JSON. Pure: values to text."""

from __future__ import annotations

import math
from typing import Any

from hf_recipes.compare import differences
from hf_recipes.compare.statistics import LEVEL, POWER, Interval
from hf_recipes.compare.verdict import ALPHA, SAME, UNKNOWN, Comparison, Finding

SHOWN = 2  # metrics on the terminal: the task's first ones; the reports have all


def format_number(value: float, percent: bool) -> str:
    """ "92.3 %" of a share, four digits of all else."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def format_difference(value: float, percent: bool) -> str:
    """As `format_number`, with its sign; shares in points."""
    return f"{100 * value:+.1f} points" if percent else f"{value:+.4g}"


def format_interval(interval: Interval, percent: bool) -> str:
    """ "-0.4 to +2.1 points": the ends of an interval of a difference."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "not known"
    if percent:
        return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f} points"
    return f"{interval.low:+.4g} to {interval.high:+.4g}"


def describe_finding(finding: Finding, first: str, second: str) -> str:
    """The verdict on one metric: "f1: B is better than A, +1.2 points (...; 95%: ...; the test, p = ...)"."""
    f, percent = finding, finding.percent
    ends = f"{first} {format_number(f.first.value, percent)}, {second} {format_number(f.second.value, percent)}"
    about = f"{LEVEL:.0%}: {format_interval(f.difference, percent)}; {f.test}, p = {f.p_corrected:.3g}"
    apart = format_difference(f.difference.value, percent)
    if f.verdict == SAME:
        others = "" if f.difference.low == f.difference.high == 0 else f"; on others like them, {LEVEL:.0%}: "
        others += format_interval(f.difference, percent) if others else ""
        return f"{f.metric}: no difference on any example ({ends}{others})"
    if f.verdict == UNKNOWN:
        why = f"cannot tell{_say_what_disagrees(f)} ({ends}; difference {apart}, {about})"
        return f"{f.metric}: {why}; {_describe_power(f)}"
    return f"{f.metric}: {second} is {f.verdict} than {first}, {apart} ({ends}; {about})"


def _describe_power(finding: Finding) -> str:
    percent = finding.percent
    least = f"{100 * finding.detectable:.1f} points" if percent else format_number(finding.detectable, False)
    return f"a difference below {least} is missed here at least one time in {round(1 / (1 - POWER))}"


def explain_unknown(finding: Finding) -> str:
    """Why a verdict is "cannot tell"; "" for another one."""
    if finding.verdict != UNKNOWN:
        return ""
    seen = finding.difference.low > 0 or finding.difference.high < 0
    why = _say_what_disagrees(finding).removeprefix(": ")
    why = why or ("the test sees no difference" if seen else "the interval contains 0")
    return f"{why}; {_describe_power(finding)}"


def _say_what_disagrees(finding: Finding) -> str:
    """Why a finding of which the interval or the test is sure is no verdict; "" where neither is."""
    f = finding
    clear, rejects = f.difference.low > 0 or f.difference.high < 0, f.p_corrected < ALPHA
    if clear and f.p < ALPHA and not rejects:
        return f": interval and test see a difference, but corrected for the number of runs p is not below {ALPHA:.2g}"
    if clear and not rejects:
        return f": the interval excludes 0, but the test's p is not below {ALPHA:.2g}"
    if rejects and not clear:
        return f": the test's p is below {ALPHA:.2g}, but the interval contains 0"
    return ""


def describe_comparison(comparison: Comparison) -> list[str]:
    """What the terminal shows."""
    paired, first = comparison.paired, comparison.sides[0]
    shown = [f"{paired.runs[0].scored_as}, {paired.examples:,} examples of the {paired.split} split, paired by content"]
    for side, findings in zip(comparison.sides[1:], comparison.findings, strict=True):
        shown += ["", f"{side.name} against {first.name}"]
        shown += [f"  {describe_finding(finding, first.name, side.name)}" for finding in findings[:SHOWN]]
        change = differences.find_changed_examples(paired.scores[first.runs[0]], paired.scores[side.runs[0]])
        if len(first.runs) == len(side.runs) == 1:
            shown.append(f"  examples: {change.gained_count:,} gained, {change.lost_count:,} lost")
    return [*shown, *([""] if comparison.notes else []), *comparison.notes]


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as JSON values."""
    paired = comparison.paired
    found: dict[str, Any] = {"task": paired.runs[0].scored_as, "split": paired.split, "examples": paired.examples}
    found |= {
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "level": LEVEL,
        "notes": list(comparison.notes),
    }
    found["sides"] = [
        {"name": side.name, "runs": [str(paired.runs[i].path) for i in side.runs]} for side in comparison.sides
    ]
    found["findings"] = [
        {
            "second": side.name,
            "metric": f.metric,
            "first_value": f.first.value,
            "second_value": f.second.value,
            "difference": f.difference.value,
            "low": f.difference.low,
            "high": f.difference.high,
            "standard_error": f.difference.error,
            "p": f.p,
            "p_holm": f.p_corrected,
            "test": f.test,
            "verdict": f.verdict,
            "detectable": f.detectable,
        }
        for side, findings in zip(comparison.sides[1:], comparison.findings, strict=True)
        for f in findings
    ]
    return found
