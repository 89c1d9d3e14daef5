"""The pictures of README.md and docs, each for a light and a dark page: python benchmarks/pictures.py

docs/images/plan-*.svg      plan's memory chart, of benchmarks/results/plan_chart.json (`--trace` runs plan and rewrites
                            that record)
docs/images/report-*.png    the top of a run's report, of a record in recipes/results; needs Chromium

tests/test_docs.py draws the charts again, and holds each PNG to the report that it shows: the PNG carries that page's
SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
CHART = ROOT / "benchmarks/results/plan_chart.json"
RECORD = ROOT / "recipes/results/quickstart-classification--cpu--2026-11-22.json"
NAME = "quickstart-classification"
PLAN = ["plan", "recipes/rtx3070.yaml", "--gpu", "rtx-3070", "--length", "128", "--json"]
SCHEMES = ("light", "dark")
TEXT = {"light": "text { fill: #222 }", "dark": "text { fill: #ddd }"}
FRAME = {"light": "#d9dce1", "dark": "#363c46"}
SIZE = (1000, 850)  # pixels of the page that are shown
SUM = "report-sha256"


def trace() -> None:
    """Runs plan and keeps what the chart is drawn of."""
    done = subprocess.run([sys.executable, "-m", "hf_recipes", *PLAN], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    kept = {name: found[name] for name in ("recipe", "gpu", "verdict", "card_bytes", "card")}
    CHART.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def chart(scheme: str) -> str:
    """plan's own chart, with the text's colour fixed: a page that shows one of two pictures has chosen already."""
    from hf_recipes.plan.fit.show import memory_chart

    found = json.loads(CHART.read_text(encoding="utf-8"))
    title = f"{found['recipe']}: {found['verdict']} on {found['gpu']}"
    svg = memory_chart(title, found["card"].items(), found["card_bytes"])
    head, _, rest = svg.partition("<style>")
    return f"{head}<style>{TEXT[scheme]}</style>{rest.partition('</style>')[2]}"


def report() -> str:
    """The HTML report of the record."""
    from hf_recipes.compare.runs import read_runs
    from hf_recipes.report.of_run import build_report
    from hf_recipes.report.page import page

    return page(build_report(replace(read_runs([str(RECORD)])[0], name=NAME)))


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def carried(path: Path) -> str | None:
    """The checksum that a PNG carries."""
    from PIL import Image

    with Image.open(path) as image:
        found: Any = image.info.get(SUM)
        return found


def photograph(html: str, scheme: str, target: Path) -> None:
    """The top of the page as Chromium shows it to a reader of this colour scheme."""
    from PIL import Image, ImageOps
    from PIL.PngImagePlugin import PngInfo

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("the report's pictures need Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder, "report.html"), Path(folder, "report.png")
        source.write_text(html, encoding="utf-8")
        dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *dark, size]
        command += ["--force-device-scale-factor=1.5", f"--screenshot={shot}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        facts = PngInfo()
        facts.add_text(SUM, checksum(html))
        with Image.open(shot) as image:
            framed = ImageOps.expand(image.convert("RGB"), border=2, fill=FRAME[scheme])
            framed.quantize(128).save(target, pnginfo=facts, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", action="store_true", help="run plan first")
    parser.add_argument("--charts", action="store_true", help="the charts only; no Chromium is needed")
    words = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if words.trace:
        trace()
    for scheme in SCHEMES:
        (IMAGES / f"plan-{scheme}.svg").write_text(chart(scheme), encoding="utf-8")
        if not words.charts:
            photograph(report(), scheme, IMAGES / f"report-{scheme}.png")


if __name__ == "__main__":
    main()
