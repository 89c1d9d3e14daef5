"""docs/guides-audit.md: its figures are the record's, the record is what plan says today, the headers add none."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from hf_recipes.plan import trace_recipe

ROOT = Path(__file__).resolve().parent.parent
RECORD = json.loads((ROOT / "benchmarks/results/guides_audit.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/guides-audit.md").read_text(encoding="utf-8")
GUIDED = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("quickstart"))
CHEAP = ("tiny", "small_fp16_32", "medium_fp16_5", "small_ours_32", "bert_fp16_64x128_8bit")


@pytest.fixture(scope="module")
def audit():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import guides_audit
        import guides_claims  # noqa: F401 -- the page imports it while it is written

        yield guides_audit
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_is_what_the_record_says(audit) -> None:
    assert audit.page(RECORD) == PAGE


def test_the_record_has_every_setting_and_plan_refused_none(audit, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert set(audit.settings()) == set(RECORD)
    assert [name for name, one in RECORD.items() if "refused" in one] == []


@pytest.mark.parametrize("name", [CHEAP[0], *(pytest.param(name, marks=pytest.mark.slow) for name in CHEAP[1:])])
def test_plan_still_says_what_the_page_prints(audit, monkeypatch, name) -> None:
    monkeypatch.chdir(ROOT)
    recipe, capability = audit.settings()[name]
    seen = trace_recipe(recipe, capability=capability)
    assert seen.allocated == pytest.approx(RECORD[name]["allocated"], rel=0.01)
    assert seen.parameters == RECORD[name]["parameters"]


def test_no_guide_is_left_out() -> None:
    assert len(re.findall(r"^## ", PAGE, re.MULTILINE)) == 5
    for claim in ("22.3 %", "448: Out of Memory", "~9.3 GB", "4.8 GB just for attention scores", "300,124,416",
                  "12.8B", "49,300", "1.14 GB", "18.62", "50% memory reduction", "~20GB", "still = 144"):  # fmt: skip
        assert claim in PAGE


@pytest.mark.parametrize("path", GUIDED, ids=lambda path: path.stem)
def test_a_recipes_header_states_no_memory_of_its_own(path) -> None:
    """Figures of memory stand on the page, which is generated; a header names the guide's (GB) and points there."""
    header = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert not re.search(r"\d\s*(GiB|MiB)|reserved\)", header)
    if "The guide's ~" in header:
        assert "docs/guides-audit.md" in header
