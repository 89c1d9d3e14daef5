"""The error table against published peaks: its page is its JSON's, and its figures keep what was promised."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = json.loads((BENCHMARKS / "results" / "peaks.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("peaks", "peaks_page", "truths", "peaks_kernels", "peaks_bert", "peaks_peft", "peaks_lab", "peaks_t4"):
        sys.modules.pop(name, None)


def test_the_page_is_made_of_the_results():
    import peaks_page
    import truths

    rows = truths.read_rows()
    assert peaks_page.PAGE.read_text(encoding="utf-8") == peaks_page.page(RESULTS, rows)
    assert peaks_page.PLOT.read_text(encoding="utf-8") == peaks_page.plot(RESULTS, rows)


def test_every_published_row_is_predicted_or_refused_by_name():
    import peaks_page

    for key, source in peaks_page.SOURCES.items():
        published = json.loads((BENCHMARKS / "published" / f"{source}.json").read_text(encoding="utf-8"))
        assert published.get("source") or published.get("note")
        assert len(RESULTS[key]["rows"]) + len(RESULTS[key]["refused"]) == len(published["rows"])


def test_every_cell_that_finished_on_a_full_gpu_is_in_the_table():
    import peaks_lab

    assert [row["name"] for row in RESULTS["lab_reserved"]["rows"]] == [
        peaks_lab.name(cell) for cell in peaks_lab.rows()
    ]


def test_no_cell_of_a_real_gpu_was_predicted_to_fit_and_ran_out_of_memory():
    from hf_recipes.plan.measure import runner

    found = runner.read_records(BENCHMARKS.parent / "recipes" / "results" / "lab")
    assert sum(record.measured is not None for record in found) >= 24 and runner.false_fits(found) == []


def _with_errors(group):
    import peaks_page

    rows = [row for row in group["rows"] if row.get("predicted_bytes") is not None]
    return zip(rows, peaks_page.errors(group), strict=True)


def test_the_errors_are_what_was_promised():
    import peaks_page

    found = {key: peaks_page.summary(peaks_page.errors(RESULTS[key])) for key in peaks_page.TITLES}
    assert found["kernels"]["rows"] == 80 and found["kernels"]["worst"] <= 0.006
    assert found["bert"]["rows"] == 9 and found["bert"]["median"] <= 0.01
    assert found["bert"]["worst"] <= 0.05
    assert found["lab_allocated"]["rows"] >= 13 and found["lab_allocated"]["worst"] <= 0.005
    assert found["lab_reserved"]["median"] <= 0.005
    off = {row["name"]: error for row, error in _with_errors(RESULTS["lab_reserved"]) if abs(error) > 0.02}
    # Unexplained: exact until new segments got addresses below the older ones. No other row may be as far off.
    assert all("gemma-270m-optimized" in name for name in off) and len(off) <= 1
    assert all(abs(error) <= 0.03 for error in off.values())
    assert found["t4_allocated"]["rows"] == 5 and found["t4_allocated"]["worst"] <= 0.001  # eager attention, too
    assert found["t4_reserved"]["median"] <= 0.001 and found["t4_reserved"]["worst"] <= 0.062  # a race: see below
    assert found["peft"]["rows"] >= 28
    assert found["peft"]["median"] <= 0.01 and found["peft"]["ninth_decile"] <= 0.02


def test_what_a_t4_reserved_lies_in_the_interval_of_the_loads_race():
    import peaks_page

    rows = RESULTS["t4_reserved"]["rows"]
    assert len(rows) == 5 and all(peaks_page.is_in_range(row) for row in rows)
    for row in rows:
        least, most = row["range_bytes"]
        assert least <= row["predicted_bytes"] <= most < 1.5 * least  # the most: every original at once


def test_a_kernel_peak_is_found_again_to_the_byte():
    import peaks_kernels

    published = json.loads((BENCHMARKS / "published" / "liger_kernels.json").read_text(encoding="utf-8"))
    rows = {(row["kernel"], row["mode"]): row for row in published["rows"]}
    for key in (("swiglu", "full"), ("geglu", "forward"), ("rms_norm", "full"), ("layer_norm", "full")):
        assert peaks_kernels.peak(rows[key]) == rows[key]["mib"] * 2**20


def test_no_published_row_is_called_fits_where_it_would_not():
    """Fit on a GPU that has one byte less than what was measured."""
    import peaks_page
    import truths

    from hf_recipes.plan.fit.verdict import MARGIN

    wrong, asked = peaks_page.false_fits(RESULTS)
    assert wrong == [] and asked >= 120 + 26
    rows = [row for key in RESULTS for row in RESULTS[key]["rows"]]
    assert [row for row in rows if row["predicted_bytes"] * (MARGIN - 0.01) < row["measured_bytes"]], "no idle margin"
    # Of other programs' models, which are not traced here, and one row of GPT-BigCode, unexplained.
    older, _ = peaks_page.older_false_fits(truths.read_rows())
    assert {row.group for row in older if "santacoder" not in row.name} <= {"litgpt", "ms_swift", "qwen", "fsdp_qlora"}
    assert sum("santacoder" in row.name for row in older) <= 1


def test_rows_whose_releases_code_is_replayed_are_found_again():
    """fms-acceleration's: Mistral by LoRA and QLoRA, PowerLM in every way, on one A100."""
    import truths

    rows = [row for row in truths.read_rows() if row.group == "fms" and not row.sharded]
    replayed = [
        row for row in rows if "PowerLM" in row.name or ("Mistral" in row.name and "accelerated" not in row.name)
    ]
    assert len(replayed) == 16 and all(abs(row.error) <= 0.0006 for row in replayed)


def test_every_row_of_older_software_has_a_figure_a_refusal_or_a_cause():
    import truths

    names = {number: truths.name_of(row) for number, _, row in truths.published_rows()}
    record = json.loads(truths.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in record] == [names[row["row"]] for row in record]
    for row in truths.read_rows():
        assert row.refused or row.reserved is not None
        assert row.error is None or abs(row.error) <= 0.02 or row.cause
        assert row.error is None or row.error_before is not None
