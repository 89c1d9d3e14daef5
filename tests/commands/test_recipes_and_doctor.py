"""`hf-recipes recipes` and `doctor`, and recipes by their names in any folder."""

from __future__ import annotations

import configparser
import json
import re
import sys
from pathlib import Path

import pytest

from hf_recipes.commands import doctor, recipes
from hf_recipes.commands.check import check
from hf_recipes.common import shipped
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe


def test_a_recipe_that_came_with_the_package_is_found_by_its_name_with_its_data(folder: Path, root: Path) -> None:
    path = shipped.find("quickstart", "recipe")
    assert path == str(root / "recipes" / "quickstart.yaml")
    recipe = read_recipe(path)
    assert recipe.get("dataset.data_files.validation") == str(root / "recipes/data/austen/persuasion.txt")
    lines, errors = check(path)
    assert errors == 0 and not [line for line in lines if line.startswith("warning")]
    assert shipped.find("fsdp2", "launch file") == str(root / "accelerate_configs" / "fsdp2.yaml")


def test_a_file_of_the_same_name_wins(folder: Path) -> None:
    Path("quickstart").write_text("task: chat\n")
    assert shipped.find("quickstart", "recipe") == "quickstart"


def test_the_recipes_are_listed_with_what_was_measured(root: Path) -> None:
    lines = recipes.list_recipes()
    names = [line.split()[0] for line in lines[1:] if line and not line.startswith("hf-recipes")]
    assert sorted(names) == sorted(path.stem for path in (root / "recipes").glob("*.yaml"))
    assert any(line.startswith("quickstart ") and "perplexity" in line for line in lines)


def test_a_copied_recipe_is_complete_where_it_is_copied(folder: Path) -> None:
    lines = recipes.copy("gemma-270m-conservative", None)
    assert [line for line in lines if line.startswith("written")] == [
        "written: gemma-270m-conservative.yaml",
        "written: gemma-270m-optimized.yaml",
    ]
    assert read_recipe("gemma-270m-conservative.yaml").task == "causal-lm"
    lines = recipes.copy("quickstart", "mine.yaml")
    assert lines[-1] == "next     hf-recipes run mine.yaml"
    assert check("mine.yaml")[1] == 0
    assert Path("recipes/data/austen/emma.txt").is_file()
    with pytest.raises(RecipeError) as raised:
        recipes.copy("quickstart", "mine.yaml")
    assert str(raised.value) == "mine.yaml: is there already; name another file"


def test_a_misspelled_name_is_refused_with_the_nearest_one(folder: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        recipes.copy("quickstrat", None)
    assert str(raised.value) == (
        "arguments: no recipe 'quickstrat' comes with this package; did you mean 'quickstart'?"
    )


def test_doctor_names_versions_places_and_tokens_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "Q" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    lines, _ = doctor.command(as_json=True)
    facts = json.loads(lines[0])["facts"]
    assert facts["torch"] and facts["memory"] and facts["GPU"]
    assert facts["tokens"].startswith("HF_TOKEN")
    assert secret not in lines[0]


def test_doctor_says_what_is_wrong_and_how_to_fix_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package>=1", "click>=8"])
    problems = list(doctor.find_problems({"Hub cache": "/x (1 GiB free, cannot be written)"}))
    assert problems[0] == (
        "Hub cache: /x (1 GiB free, cannot be written); choose another folder (HF_HOME, HF_DATASETS_CACHE)"
    )
    assert [one.split()[0] for one in problems[-2:]] == ["torch", "no-such-package"]
    assert problems[-1] == "no-such-package is not installed; pip install 'no-such-package>=1'"


def test_every_recipe_launch_file_and_data_file_of_a_recipe_is_installed(root: Path) -> None:
    """By setup.cfg's data_files, whose folders are those in which common/shipped.py searches."""
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    installed: set[str] = set()
    for folder, patterns in setup["options.data_files"].items():
        assert folder.startswith("share/hf_recipes/")
        for pattern in patterns.split():
            files = sorted(root.glob(pattern))
            assert files, pattern
            for file in files:
                assert file.parent == root / folder.removeprefix("share/hf_recipes/")
            installed |= {file.relative_to(root).as_posix() for file in files}
    wanted = {f"recipes/{name}.yaml" for name in shipped.names("recipe")}
    wanted |= {f"accelerate_configs/{name}.yaml" for name in shipped.names("launch file")}
    for path in (root / "recipes").glob("*.yaml"):
        named = re.findall(r"recipes/data/[\w./-]+\.(?:txt|jsonl|jinja)", path.read_text(encoding="utf-8"))
        wanted |= set(named)
    assert wanted <= installed


def test_presets_are_listed_with_their_size(capsys: pytest.CaptureFixture[str]) -> None:
    from hf_recipes.catalog.presets import PRESETS
    from hf_recipes.cli import main

    main(["recipes", "--presets"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    assert all(f"{PRESETS[line.split()[0]].parameters / 1e6:,.1f}M" in line for line in lines[1:])


@pytest.mark.parametrize("width", [80, 100, 160])
def test_lists_fit_the_terminal_and_say_what_is_not_shown(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from hf_recipes.commands import runs

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    folder = str(Path(__file__).parents[1] / "data" / "run-587a747" / "runs")
    for lines in (recipes.list_recipes(), runs.command(folder)):
        assert max(map(len, lines)) <= width
        cut = [line for line in lines if line.startswith("not shown at this width: ")]
        assert bool(cut) == (width < 150 if lines[0].startswith("recipe") else width < 111)
