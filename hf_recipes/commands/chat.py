"""`hf-recipes chat`: type, and read what the model answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from hf_recipes.commands.predict import generation_settings, quiet_upstream
from hf_recipes.errors import RecipeError
from hf_recipes.inference.trained import find_trained, load_trained

HELP = "/reset begins again, /exit or Ctrl-D ends"


def command(
    run_dir: str,
    *,
    system: str | None = None,
    beside: str | None = None,
    max_new_tokens: int | None = None,
    overrides: Sequence[str] = (),
    base_model: str | None = None,
    task: str | None = None,
    cpu: bool = False,
) -> None:
    """Reads a message a line until the end of stdin and prints the answers as they come.

    Raises RecipeError for a model that generates no text, and for settings that do not fit.
    """
    from hf_recipes.inference.chat import Base, Chat

    found = find_trained(run_dir, task)
    given = generation_settings(found, overrides, max_new_tokens)
    quiet_upstream()
    trained = load_trained(found, base=base_model, cpu=cpu)
    chat = Chat(trained=trained, given=given, system=system)
    base = Base(trained) if beside else None
    asked = sys.stdin.isatty()
    if asked:
        click.echo(f"{run_dir}: {HELP}")
    while True:
        try:
            text = _read(asked)
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/reset":
            chat.reset()
            continue
        if not text.strip():
            continue
        try:
            chat.ask(text, lambda part: click.echo(part, nl=False), beside=base)
        except RecipeError as problem:  # of this message: the conversation continues
            click.echo(f"error: {problem}", err=True)
        except KeyboardInterrupt:  # ends the answer, not the conversation
            if not asked:
                raise
        click.echo()


def _read(asked: bool) -> str:
    if asked:
        return input("> ")
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
