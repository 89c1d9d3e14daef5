"""A report is one file that needs nothing else, right on a phone and on a desk, in light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_recipes.commands.compare import command
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline import recorder
from hf_recipes.pipeline.run import run
from hf_recipes.report import of_run, plots
from hf_recipes.report.blocks import Cell, Code, Document, Figure, Heading, Note, Paragraph, Table, Verdict
from hf_recipes.report.markdown import markdown
from hf_recipes.report.page import page
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows
from tests.training.test_out_of_memory import texts
from tests.training.test_step_guard import CHAT, CLASSES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>alert(1)</script> | `a` *b* ünï"
MEASURE = """<script>
const seen = []; addEventListener("error", e => seen.push(e.message));
addEventListener("securitypolicyviolation", e => seen.push("blocked " + e.blockedURI));
addEventListener("load", () => {
  for (const button of document.querySelectorAll("th button")) { button.click(); button.click(); }
  const sorted = [...document.querySelectorAll("table")].map(table => [...table.tBodies[0].rows].map(row =>
    [...row.cells].map(cell => cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value))));
  parent.postMessage(JSON.stringify(
    {wide: document.documentElement.scrollWidth, window: innerWidth, seen, sorted}), "*");
});
</script>"""

# Chromium's own window is never narrower than 500 pixels: a page is looked at in a frame.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><style>body {{ margin: 0 }}</style>
<script>addEventListener("message", e => {{ const at = document.createElement("pre"); at.id = "measured";
at.textContent = e.data; document.body.append(at); }});</script>
<iframe src="{page}" style="border: 0; width: {width}px; height: 2400px; display: block"></iframe>"""


def everything() -> Document:
    return Document(
        title=NASTY,
        blocks=[
            Paragraph(text=NASTY),
            Note(text=NASTY),
            Heading(text=NASTY),
            Verdict(word="better", text=NASTY),
            Table(
                head=("name", "value"),
                rows=[
                    (NASTY, Cell(text="2", value=2)),
                    ("b" * 300, Cell(text="10", value=10)),
                    ("c", Cell(text="1", value=1)),
                ],
            ),
            Table(head=("", "code"), rows=[("x", NASTY)], code=frozenset({1}), folded=NASTY),
            Code(text=f"```\n{NASTY}\n```"),
            Figure(name="loss", svg=plots.curves({NASTY: [(1, 2.0), (2, 1.0)]}, "loss"), caption=NASTY),
        ],
    )


def test_what_a_user_wrote_is_text_in_both_formats() -> None:
    html, text = page(everything()), markdown(everything())
    assert "<script>alert" not in html and escape(NASTY, quote=False) in html
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "\\<script>" in text and "````\n```" in text


def test_a_page_brings_everything_with_it() -> None:
    html = page(everything())
    assert not re.findall(r'(?:src|href|action)\s*=\s*"(?!data:|#)', html) and "url(http" not in html
    assert "default-src 'none'" in html


def test_the_same_numbers_give_the_same_plots_in_colours_of_the_page() -> None:
    rng = np.random.default_rng(0)
    points = [(float(i), float(y)) for i, y in enumerate(rng.random(5000))]
    drawn = [
        lambda: plots.curves({"a": points, "b": points[:3]}, "loss"),
        lambda: plots.differences([("f1, points", 1.0, -0.5, 2.5), ("x", 0.0, 0.0, 0.0)]),
        lambda: plots.reliability({"a": [(0.6, 0.5, 10), (0.9, 0.95, 90)]}),
        lambda: plots.confusion(np.array([[5, 1], [0, 7]]), ["no", "yes"]),
        lambda: plots.parts([("weights", 2.0), ("free", 1.0)], "GiB"),
    ]
    for draw in drawn:
        svg = draw()
        assert svg == draw() and svg.startswith("<svg") and "var(--a, #2f6fb0)" in svg
        assert not any(marker in svg for marker in plots.VARIABLES) and "<metadata>" not in svg
        alone = plots.make_standalone(svg)
        assert "prefers-color-scheme: dark" in alone and ":root { color-scheme: light dark }" in alone
    assert len(drawn[0]()) < 60_000  # thousands of steps are thinned


def test_a_page_sets_every_colour_of_its_plots_in_light_and_dark() -> None:
    light, dark = page(everything()).split("@media (prefers-color-scheme: dark)")[:2]
    for name, on_light, on_dark in plots.VARIABLES.values():
        assert f"--{name}: {on_light};" in light and f"--{name}: {on_dark};" in dark.split("</style>")[0]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def classes(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_bert("model", wordpiece(sorted({word for text in texts() for word in text.split()})))
    write_rows("rows.jsonl", ({"text": f"{t} {i}", "label": ("no", "<yes>")[i % 2]} for i, t in enumerate(texts())))
    return write_recipe(CLASSES)


def test_every_run_leaves_its_report(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(classes, ["TrainingArguments.eval_on_start=true", "TrainingArguments.eval_strategy=epoch"])
    assert "report   out/report.html" in capsys.readouterr().out
    record = json.loads(Path("out/record.json").read_text())
    text, html = Path("out/report.md").read_text(), unescape(Path("out/report.html").read_text())
    f1, interval = record["metrics"]["eval"]["eval_f1"], record["intervals"]["eval"]["f1"]
    assert interval["value"] == pytest.approx(f1) and interval["low"] <= f1 <= interval["high"]
    for part in (text, html):
        assert f"{100 * f1:.1f} %" in part and f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}" in part
        assert "max_steps: 8" in part and "Expected calibration error" in part
    for name in re.findall(r"\]\((report-plots/[\w-]+\.svg)\)", text):
        assert (Path("out") / name).is_file()
    assert sorted(path.stem for path in Path("out/report-plots").iterdir()) == [
        "confusion",
        "gradient",
        "learning-rate",
        "loss",
        "metric",
        "reliability",
    ]
    table = pq.read_table("out/scores.parquet").to_pylist()
    wrong = [max(row["probabilities"]) for row in table if row["gold"] != row["predicted"]]
    if wrong:
        part = text.partition(f"## Wrong and most confident ({len(wrong)} wrong)")[2].partition("## ")[0]
        shown = [float(one) for one in re.findall(r"\| ([\d.]+) % \|", part)]
        assert shown == pytest.approx([100 * one for one in sorted(wrong, reverse=True)[:10]], abs=0.051)
    run(classes, ["TrainingArguments.max_steps=3"])  # a second run into the folder replaces its own report


def test_a_run_that_fails_leaves_a_report_of_what_is_known(classes: str) -> None:
    with pytest.raises(RecipeError):
        run(classes, ["TrainingArguments.learning_rate=1e30"])
    text = Path("out/report.md").read_text()
    assert "> failed in training: TrainingError: argument" in text and "## Recipe" in text and "## Metrics" not in text


def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    classes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(of_run, "build_report", lambda run: 1 / 0)
    run(classes)
    assert json.loads(Path("out/record.json").read_text())["status"] == "finished"
    assert "report: could not be written (ZeroDivisionError: division by zero)" in capsys.readouterr().out


def test_a_report_that_somebody_else_wrote_is_not_replaced(classes: str) -> None:
    Path("out").mkdir()
    Path("out/report.md").write_text("# My own")
    with pytest.raises(RecipeError, match=r"output_dir 'out' has a report\.md that no run wrote"):
        run(classes)
    assert Path("out/report.md").read_text() == "# My own"


def test_a_language_models_report_has_no_labels(folder: Path, write_recipe: Callable[..., str]) -> None:
    save_llama("model", bpe(chat=CHATML))
    rows = (
        [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": t}] for i, t in enumerate(TEXTS * 10)
    )
    write_rows("rows.jsonl", ({"messages": messages} for messages in rows))
    run(write_recipe(CHAT))
    text = Path("out/report.md").read_text()
    assert "| perplexity |" in text and "## Labels" not in text and "| bits_per_byte |" in text


def test_samples_of_a_run_are_in_its_report_side_by_side_and_are_not_pushed(
    folder: Path, write_recipe: Callable[..., str]
) -> None:
    from hf_recipes.hub.pushed_files import RUN_FILES

    save_llama("model", bpe(chat=CHATML))
    rows = ([{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": t}] for i, t in enumerate(TEXTS * 4))
    write_rows("rows.jsonl", ({"messages": messages} for messages in rows))
    words = ["SFTConfig.max_steps=2", "SFTConfig.eval_strategy=steps", "SFTConfig.eval_steps=1"]
    run(write_recipe(CHAT), [*words, "sample_prompts=[the sea, '<b>']", "GenerationConfig.max_new_tokens=4"])
    samples = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert [(one["step"], one["prompt"]) for one in samples] == [(s, p) for s in (1, 2) for p in ("the sea", "<b>")]
    assert "| prompt | step 1 | step 2 |" in Path("out/report.md").read_text()
    assert "samples.jsonl" not in RUN_FILES
    run("recipe.yaml", [*words, "sample_prompts=[an old]"])  # another run begins its own file
    prompts = [json.loads(line)["prompt"] for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert prompts == ["an old"] * 2


def test_the_page_of_a_run_that_is_under_way_updates_itself(classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    real = of_run.write_report

    def watched(folder: Path, record: Any, say: Any) -> bool:
        found = real(folder, record, say)
        pages.append((folder / "report.html").read_text())
        return found

    monkeypatch.setattr(of_run, "write_report", watched)
    monkeypatch.setattr(recorder, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(recorder, "MOST_FOR_REPORTS", 1.0)
    run(classes, ["TrainingArguments.eval_strategy=steps", "TrainingArguments.eval_steps=2"])
    refresh = '<meta http-equiv="refresh" content="20">'
    assert len(pages) >= 4 and all(refresh in one for one in pages[:-1]) and refresh not in pages[-1]
    assert "running in training" in pages[1] and "Loss" in pages[1]


# --- in a browser ----------------------------------------------------------------------------------------------------


def chromium(path: Path, width: int, *words: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}", f"--window-size={width},2400"]
    return subprocess.run([*command, *words, path.resolve().as_uri()], capture_output=True, text=True, timeout=120)


def framed(path: Path, width: int) -> Path:
    frame = path.with_name("frame.html")
    frame.write_text(FRAME.format(page=path.name, width=width))
    return frame


def measure_page(path: Path, width: int) -> dict[str, Any]:
    """What a page says of itself in a window of this width, every table sorted by every column, twice."""
    probe = path.with_name("probe.html")
    probe.write_text(path.read_text().replace("<style>", MEASURE + "<style>", 1))
    ended = chromium(framed(probe, width), width, "--dump-dom")
    assert "CONSOLE" not in ended.stderr, ended.stderr
    found: dict[str, Any] = json.loads(unescape(ended.stdout.split('<pre id="measured">')[1].split("</pre>")[0]))
    return found


@pytest.fixture
def compared(classes: str) -> Path:
    for seed in (1, 2, 3):
        run(classes, [f"TrainingArguments.seed={seed}", f"TrainingArguments.output_dir=run-{seed}"])
    command(["run-1", "run-2", "run-3"], output="out", resamples=300)
    return Path("out/compare.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_pages_are_right_at_the_widths_of_a_phone_and_of_a_desk(compared: Path, tmp_path: Path) -> None:
    every = tmp_path / "everything.html"
    every.write_text(page(everything()))
    for path in (compared, Path("run-1/report.html"), every):
        shots = {}
        for width in (400, 1400):
            found = measure_page(path, width)
            assert found["seen"] == [] and found["window"] == width
            assert found["wide"] <= width, f"{path} is {found['wide']} pixels wide in a window of {width}"
            for mode, flag in {"light": "1", "dark": "0"}.items():
                shot = tmp_path / f"{path.stem}-{width}-{mode}.png"
                chromium(
                    framed(path, width), width, f"--blink-settings=preferredColorScheme={flag}", f"--screenshot={shot}"
                )
                shots[width, mode] = np.asarray(Image.open(shot).convert("L"), float)
                assert shots[width, mode].shape == (2400, width) and shots[width, mode].std() > 5  # not blank
            assert shots[width, "light"].mean() > 200 and shots[width, "dark"].mean() < 80
    assert [row[1] for row in found["sorted"][0]] == [10, 2, 1]  # a second click sorts by number, largest first


def test_a_comparison_names_the_examples_that_changed_sides_and_what_was_set(compared: Path) -> None:
    text = unescape(compared.read_text())
    record = json.loads(Path("run-1/record.json").read_text())
    assert record["scores"] == {"eval": "scores.parquet"} and Path("run-1/examples.parquet").is_file()
    markdown_text = compared.with_suffix(".md").read_text()
    gained = re.findall(r"^\| (?:gained|lost) \| (.*?) \| (.*?) \|$", markdown_text, re.MULTILINE)
    assert gained and all(any(sea in example for sea in texts()[:41]) for _, example in gained)
    assert "TrainingArguments.seed" in text and "Environment and data: the same" in text
