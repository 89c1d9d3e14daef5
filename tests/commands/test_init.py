"""`hf-recipes init`: what it takes a file for, and a recipe that passes `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_recipes.commands.check import check
from hf_recipes.commands.init import choose_target, command, recipe_text
from hf_recipes.data.first_look import look
from hf_recipes.data.splits import load_splits
from hf_recipes.data.trial import try_data
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from hf_recipes.record.file import read_record
from tests.support.tiny_models import save_bert, wordpiece, write_rows

ROOT = Path(__file__).resolve().parents[2]
ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CONLL = "Anne B-PER\nElliot I-PER\nsmiled O\n\nThe O\nsea O\n\n" * 3
FILES = {
    "a.csv": "review,stars\n" + "a good film,5\na bad film,1\n" * 5,
    "a.tsv": "text\tlabel\n" + "good\tyes\nbad\tno\n" * 5,
    "b.csv": "label;text\n" + "yes;a good film, really\nno;bad\n" * 5,
    "chat.jsonl": f"{json.dumps({'messages': [ASKED, ANSWERED]})}\n" * 3,
    "share.json": json.dumps([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3),
    "pairs.jsonl": f"{json.dumps({'prompt': '1 + 1 =', 'completion': ' 2'})}\n" * 3,
    "words.jsonl": f"{json.dumps({'tokens': ['Anne', 'smiled'], 'ner_tags': ['B-PER', 'O']})}\n" * 3,
    "talks.jsonl": f"{json.dumps({'prompt': [ASKED], 'completion': [ANSWERED]})}\n" * 3,
    "nli.csv": "premise,hypothesis,label\n" + "it rains,it is wet,yes\nit rains,it is dry,no\n" * 5,
    "pos.conll": "The DT\nsea NN\n\nIt PRP\nrose VB\n\n" * 3,
    "numbers.jsonl": f"{json.dumps({'tokens': ['Anne', 'smiled'], 'ner_tags': [3, 0]})}\n" * 3,
    "spans.jsonl": f"{json.dumps({'text': 'Anne smiled', 'entities': [{'start': 0, 'end': 4, 'label': 'PER'}]})}\n" * 3,
    "below.json": json.dumps({"version": 1, "data": [{"text": "x", "label": i % 2} for i in range(9)]}),
    "pretty.json": json.dumps({"train": [{"text": "x", "label": i % 2} for i in range(9)], "test": []}, indent=2),
    "a.conll": CONLL,
    "b.txt": CONLL,
    "book.txt": "It is a truth.\nUniversally acknowledged.\n\nA second paragraph.\n" * 3,
    "lines.txt": "one sentence\nanother one\n" * 3,
}
EXPECTED = {
    "a.csv": ("text-classification", {"text_column": "review", "label_column": "stars"}),
    "a.tsv": ("text-classification", {"delimiter": "\t"}),
    "b.csv": ("text-classification", {"delimiter": ";", "text_column": "text"}),
    "chat.jsonl": ("chat", {"path": "json"}),
    "share.json": ("chat", {"path": "json"}),
    "pairs.jsonl": ("chat", {"path": "json"}),
    "words.jsonl": ("token-classification", {"tokens_column": "tokens", "tags_column": "ner_tags"}),
    "talks.jsonl": ("chat", {"path": "json"}),
    "nli.csv": ("text-classification", {"text_column": "premise", "text_pair_column": "hypothesis"}),
    "pos.conll": ("token-classification", {"format": "conll"}),
    "numbers.jsonl": ("token-classification", {"tags_column": "ner_tags"}),
    "spans.jsonl": ("token-classification", {"path": "json"}),
    "below.json": ("text-classification", {"field": "data"}),
    "pretty.json": ("text-classification", {"field": "train"}),
    "a.conll": ("token-classification", {"path": "text", "format": "conll"}),
    "b.txt": ("token-classification", {"path": "text", "format": "conll"}),
    "book.txt": ("causal-lm", {"sample_by": "paragraph"}),
    "lines.txt": ("causal-lm", {"path": "text"}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_taken_for_what_it_is(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    seen = look(name)
    task, section = EXPECTED[name]
    assert seen.task == task
    assert section.items() <= seen.dataset.items()


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_passes_check_and_reads_back(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    lines: list[str] = []
    assert command(name, yes=True, say=lines.append), lines
    assert check("recipe.yaml")[1] == 0
    recipe = read_recipe("recipe.yaml")
    assert recipe.task == EXPECTED[name][0]
    assert try_data(recipe) is not None  # a run reads every row
    assert recipe.get("dataset.data_files") == {"train": name}
    assert lines[-1].startswith("written: recipe.yaml\nnext     hf-recipes run recipe.yaml")
    assert lines[0].startswith(f"{name}: ")


def test_what_cannot_be_told_is_asked_and_with_yes_refused(folder: Path) -> None:
    write_rows("odd.jsonl", [{"a": f"the day {i}", "b": f"the night {i}", "c": i + 0.5} for i in range(9)])
    with pytest.raises(RecipeError) as raised:
        command("odd.jsonl", yes=True, say=lambda line: None)
    assert str(raised.value) == (
        "odd.jsonl: it is not clear what is to be learned from it: its columns are a, b, c; "
        "name it with --task: causal-lm, chat, text-classification, token-classification"
    )
    asked: list[str] = []

    def answer(what: str, answers: object) -> str:
        asked.append(what)
        return "causal-lm"

    command("odd.jsonl", say=lambda line: None, ask=answer)
    assert asked == ["task"]
    assert read_recipe("recipe.yaml").get("dataset.text_column") == "b"


@pytest.mark.parametrize(
    ("name", "task", "section"),
    [
        ("a.csv", "causal-lm", {"text_column": "review"}),
        ("pairs.jsonl", "causal-lm", {"text_column": "prompt"}),
        ("pairs.jsonl", "text-classification", {"text_column": "prompt", "label_column": "completion"}),
        ("a.csv", "chat", {"prompt_column": "review", "completion_column": "stars"}),
        ("b.txt", "token-classification", {"format": "conll"}),
    ],
)
def test_a_task_that_is_asked_for_reads_the_columns_that_could_serve_it(
    folder: Path, name: str, task: str, section: dict[str, str]
) -> None:
    Path(name).write_text(FILES[name])
    seen = look(name, task)
    assert seen.task == task and section.items() <= seen.dataset.items()


def test_a_task_that_the_file_cannot_teach_is_refused(folder: Path) -> None:
    write_rows("numbers.jsonl", [{"a": 1.5, "b": 2.5}, {"a": 3.5, "b": 1.0}])
    with pytest.raises(RecipeError) as raised:
        command("numbers.jsonl", task="chat", say=lambda line: None)
    assert str(raised.value) == (
        "numbers.jsonl: it has no columns with a prompt and an answer (it has a: numbers, b: numbers); "
        "name another file, or another task with --task"
    )
    Path("lines.txt").write_text("one\ntwo\n")
    with pytest.raises(RecipeError, match=r"cannot be read as CoNLL: line 1 has one column only \('one'\)"):
        command("lines.txt", task="token-classification", say=lambda line: None)
    assert not Path("recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_what_init_writes_trains(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name] if name != "lines.txt" else "one sentence and more\n" * 300)
    command(name, model="scratch", yes=True, say=lambda line: None)
    arguments = f"{read_recipe('recipe.yaml').trainer}."
    if name == "book.txt":
        Path(name).write_text(FILES[name] * 40)
    run("recipe.yaml", [f"{arguments}max_steps=1", f"{arguments}use_cpu=true", f"{arguments}bf16=false"])
    assert Path("runs/recipe/model.safetensors").exists()


@pytest.mark.parametrize("name", ["a.csv", "share.json", "words.jsonl", "b.txt", "lines.txt"])
def test_a_recipe_from_scratch_needs_no_download_and_passes_check(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    command(name, model="scratch", yes=True, say=lambda line: None)
    assert check("recipe.yaml")[1] == 0
    assert "BpeTrainer" in read_recipe("recipe.yaml").sections


@pytest.mark.slow
def test_two_hundred_tagged_sentences_teach_a_model_from_scratch_something(folder: Path) -> None:
    rows = [json.loads(line) for line in (ROOT / "recipes/data/names/train.jsonl").read_text().splitlines()[:200]]
    text = ("\n".join(map(" ".join, zip(row["tokens"], row["tags"], strict=True))) for row in rows)
    Path("a.conll").write_text("\n\n".join(text) + "\n")
    command("a.conll", model="scratch", yes=True, say=lambda line: None)
    record = run("recipe.yaml", ["TrainingArguments.use_cpu=true"])
    assert read_record(record).metrics.of("eval")["eval_span_f1"] > 0.3


def test_a_model_that_is_not_here_is_named_where_the_hub_is_off(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    lines: list[str] = []
    command("a.csv", yes=True, say=lines.append)
    assert (
        "warning: distilbert/distilbert-base-uncased is not on this machine, and the Hub is off: "
        "--model FOLDER, or --model scratch"
    ) in lines


@pytest.mark.slow
def test_a_recipe_for_a_gpu_has_its_batch_and_its_precision(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    save_bert("model", wordpiece(("good", "bad")))
    lines: list[str] = []
    command("a.csv", model="model", gpu="rtx-3070", yes=True, say=lines.append)
    recipe = read_recipe("recipe.yaml")
    assert recipe.get("TrainingArguments.bf16") is True
    assert recipe.get("TrainingArguments.per_device_train_batch_size") == 32
    assert "rtx-3070: 32 rows of 32 tokens fit, by plan" in lines
    assert lines[-1].endswith("hf-recipes plan recipe.yaml --gpu rtx-3070    does it fit, how long will it take?")


def test_a_gpu_without_bf16_trains_in_fp16(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    assert "  fp16: true" in recipe_text(look("a.csv"), "scratch", Path("a.yaml"), 8, choose_target("t4"), "a.csv")


def test_a_gpu_that_is_not_known_is_refused_before_anything_is_written(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    with pytest.raises(RecipeError, match="unknown GPU 'rtx-3071'"):
        command("a.csv", gpu="rtx-3071", yes=True, say=lambda line: None)
    assert not Path("recipe.yaml").exists()


def test_files_that_cannot_be_read_are_refused(folder: Path) -> None:
    Path("empty.csv").write_text("")
    Path("bad.json").write_text("{")
    Path("bad.jsonl").write_text('{"text": "a"}\n' * 5 + '{"text": "b\n')
    Path("latin.json").write_bytes('[{"text": "caf\xe9", "label": 1}]'.encode("latin-1"))
    Path("ragged.csv").write_text("text,label\na, b,1\n")
    messages = []
    for name in ("empty.csv", "bad.json", "latin.json", "emtpy.csv", "a.docx", "bad.jsonl", "ragged.csv", "no/file"):
        Path("a.docx").write_text("x")
        with pytest.raises(RecipeError) as raised:
            command(name, yes=True, say=lambda line: None)
        messages.append(str(raised.value))
    assert messages[0] == "empty.csv: there are no rows in it; name a file with some"
    assert messages[1].startswith("bad.json: cannot be read as json: ")
    assert messages[2] == (
        "latin.json: cannot be read as json: it is latin-1, and a file that is one JSON document is read as UTF-8 "
        "only; convert it: iconv -f latin-1 -t utf-8 latin.json > FILE"
    )
    assert messages[3] == "emtpy.csv: no such file; did you mean 'empty.csv'?"
    assert messages[4].startswith("a.docx: is no data file that is known; the formats are json, ")
    assert messages[5].startswith("bad.jsonl: cannot be read as json: line 6 is not JSON: ")
    assert messages[6] == (
        "ragged.csv: cannot be read as csv: line 2 has more fields than the 2 columns (text, label); "
        "put texts that hold ',' into quotes"
    )
    assert messages[7] == (
        "no/file: no such file; of a data set on the Hub download a file first: hf download --repo-type dataset no/file"
    )
    assert not Path("recipe.yaml").exists()


def test_a_recipe_that_is_there_is_not_replaced(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    Path("recipe.yaml").write_text("task: chat\n")
    with pytest.raises(RecipeError) as raised:
        command("a.csv", yes=True, say=lambda line: None)
    assert str(raised.value) == "recipe.yaml: is there already; name another file with --output"


def test_a_place_that_cannot_be_written_is_refused(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    with pytest.raises(RecipeError) as raised:
        command("a.csv", output="no/such/recipe.yaml", yes=True, say=lambda line: None)
    assert str(raised.value) == (
        "argument '--output': 'no/such/recipe.yaml' cannot be written (No such file or directory); choose another place"
    )


@pytest.mark.parametrize(
    ("name", "encoding", "written"),
    [
        ("a.csv", "latin-1", "latin-1"),
        ("a.csv", "cp1252", "cp1252"),
        ("a.csv", "utf-16", "utf-16"),
        ("a.csv", "utf-8-sig", None),
        ("lines.txt", "latin-1", "latin-1"),
        ("lines.txt", "utf-16", "utf-16"),
        ("a.jsonl", "latin-1", "latin-1"),
        ("a.conll", "latin-1", "latin-1"),
        ("a.conll", "utf-16", "utf-16"),
    ],
)
def test_a_file_that_is_not_utf8_is_read_by_its_encoding(
    folder: Path, name: str, encoding: str, written: str | None
) -> None:
    letter = "\u2019" if encoding == "cp1252" else "\xf6"
    rows = '{"text": "good", "label": "a"}\n{"text": "no", "label": "b"}\n' * 5
    text = {**FILES, "a.jsonl": rows}[name].replace("o", letter)
    Path(name).write_bytes(text.encode(encoding))
    lines: list[str] = []
    assert command(name, yes=True, say=lines.append), lines
    recipe = read_recipe("recipe.yaml")
    assert recipe.get("dataset.encoding") == written
    assert (f"{name} is no UTF-8: it is read as {written} (dataset.encoding)" in lines) == (written is not None)
    splits = load_splits(recipe)
    assert letter in str([*splits.train, *splits.validation])


def test_rows_that_a_run_refuses_are_named_and_the_command_fails(folder: Path) -> None:
    Path("a.csv").write_text("text,label\ngood,a\nbad,b\n" * 5 + "none,\n,a\n")
    lines: list[str] = []
    assert not command("a.csv", yes=True, say=lines.append)
    assert "warning: 1 row has no label in 'label' (the first is row 14): a run refuses such rows; remove them" in lines
    assert "warning: 1 row has no text in 'text' (the first is row 15): a run refuses such rows; remove them" in lines
    assert any("has no label (None); remove such rows" in line for line in lines)
    assert lines[-1] == "written: recipe.yaml; correct that before: hf-recipes run recipe.yaml"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./modle", "argument '--model': './modle': no such folder; did you mean 'model'?"),
        ("/no/where", "argument '--model': '/no/where': no such folder; name a model's folder, a Hub id, or scratch"),
        (
            "a model",
            "argument '--model': 'a model' is neither a folder nor a Hub id; name a model's folder, a Hub id such",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(folder: Path, model: str, message: str) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    Path("model").mkdir()
    with pytest.raises(RecipeError) as raised:
        command("a.csv", model=model, yes=True, say=lambda line: None)
    assert str(raised.value).startswith(message)


def test_what_is_not_read_is_named_and_the_next_command_can_be_typed(folder: Path) -> None:
    Path("my data").mkdir()
    Path("my data/a.csv").write_text("id,text,label\n" + "".join(f"{i},day {i},{'ab'[i % 2]}\n" for i in range(9)))
    lines: list[str] = []
    command("my data/a.csv", output="my data/r.yaml", model="scratch", yes=True, say=lines.append)
    assert "not read: id" in lines
    assert "next     hf-recipes run 'my data/r.yaml'" in lines[-1]
    assert "# Run:      hf-recipes run 'my data/r.yaml'" in Path("my data/r.yaml").read_text()
    read_recipe("my data/r.yaml")


def test_a_gpu_that_is_not_known_gets_advice_that_this_command_has(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    with pytest.raises(RecipeError) as raised:
        command("a.csv", gpu="rtx-9999", yes=True, say=lambda line: None)
    assert str(raised.value).endswith("all: hf-recipes plan --gpu list") and "--memory" not in str(raised.value)


def test_a_model_of_another_task_and_a_folder_without_one_are_refused(folder: Path) -> None:
    Path("chat.jsonl").write_text(FILES["chat.jsonl"])
    save_bert("bert", wordpiece(("good", "bad")))
    Path("empty").mkdir()
    for model, message in {"bert": "a bert model is an encoder", "empty": "config.json"}.items():
        with pytest.raises(RecipeError, match=message) as raised:
            command("chat.jsonl", model=model, yes=True, say=lambda line: None)
        assert str(raised.value).startswith("argument '--model': ")
        assert not Path("recipe.yaml").exists()
