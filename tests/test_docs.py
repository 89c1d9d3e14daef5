"""README and docs: every link leads somewhere, every output is what the command prints, every picture is current."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import outputs
import pictures
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "accelerate_configs/README.md")),
    *(ROOT / name for name in ("recipes/README.md", "recipes/data/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
COMMANDS = sorted({command for _, command in outputs.commands()})


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings: lower case, hyphens for spaces, no punctuation."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = 0
        while (one := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(one)
    return found


def broken(path: Path) -> Iterator[str]:
    for found in LINK.finditer(prose(path)):
        link = next(filter(None, found.groups()))
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.is_file():
            yield f"{name(path)}: {link}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{name(path)}: {link}: no such heading; there are {sorted(anchors(file))}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_and_anchor_of_a_page_leads_somewhere(path: Path) -> None:
    assert list(broken(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_source_file_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|json))`", path.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "hf_recipes", path.parent)
    assert [one for one in named if not any((place / one).is_file() for place in places)] == []


def test_every_page_of_docs_is_reached_from_the_index_and_stands_in_the_navigation_of_the_site() -> None:
    index, site = (ROOT / "docs" / one for one in ("index.md", "site/mkdocs.yml"))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        short = str(path.relative_to(ROOT / "docs"))
        assert f"docs/{short}" in site.read_text(encoding="utf-8")
        assert short == "index.md" or f"({short}" in index.read_text(encoding="utf-8"), short


def test_readme_keeps_the_two_commands_that_ci_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark in ("main", "test"):
        assert text.count(f"<!-- {mark} -->\n```sh\npython3 -m venv .venv && .venv/bin/pip install ") == 1


def test_the_recipe_in_readme_has_no_error(folder: Path) -> None:
    from hf_recipes.commands.check import check

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (folder / "mine.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    assert check("mine.yaml", ())[1] == 0


def differing(command: str) -> list[str]:
    """The pages whose block of this command differs from what it prints."""
    fresh = outputs.block(command)
    return [
        name(path)
        for path in outputs.pages()
        for found in outputs.BLOCK.finditer(path.read_text(encoding="utf-8"))
        if found["command"] == command and not outputs.same(found["body"], fresh)
    ]


@pytest.mark.parametrize("command", [one for one in COMMANDS if not outputs.is_slow(one)])
def test_an_output_on_a_page_is_what_its_command_prints(command: str) -> None:
    assert differing(command) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in COMMANDS if outputs.is_slow(one)])
def test_a_plan_on_a_page_is_what_plan_prints(command: str) -> None:
    assert differing(command) == []


@pytest.mark.parametrize("scheme", pictures.SCHEMES)
def test_the_memory_chart_is_drawn_from_its_record(scheme: str) -> None:
    assert (pictures.IMAGES / f"plan-{scheme}.svg").read_text(encoding="utf-8") == pictures.chart(scheme)


def test_the_memory_chart_shows_the_plan_that_readme_prints() -> None:
    import json

    from hf_recipes.common.text import format_bytes

    found = json.loads(pictures.CHART.read_text(encoding="utf-8"))
    command = "hf-recipes " + " ".join(one for one in pictures.PLAN if one != "--json")
    printed = next(
        one["body"]
        for one in outputs.BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
        if one["command"] == command
    )
    for part, size in found["card"].items():
        assert re.search(rf"^  {re.escape(part)} +{re.escape(format_bytes(size))}\b", printed, re.MULTILINE), part


@pytest.mark.parametrize("scheme", pictures.SCHEMES)
def test_the_picture_of_the_report_shows_the_report_of_today(scheme: str) -> None:
    assert pictures.carried(pictures.IMAGES / f"report-{scheme}.png") == pictures.checksum(pictures.report())
