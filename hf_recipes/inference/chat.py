"""A conversation with a trained model: streamed answers, prompts rendered exactly as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import ModelError
from hf_recipes.inference import generate
from hf_recipes.inference.trained import Trained
from hf_recipes.models.config import from_scratch, load_error

Write = Callable[[str], None]


@dataclass(kw_only=True)
class Chat:
    """One conversation. `ask` appends the user's message and the answer; `messages` are those so far."""

    trained: Trained
    given: Mapping[str, Any] = field(default_factory=dict)  # arguments of GenerationConfig
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises ModelError for a task that generates no text, RecipeError for what GenerationConfig refuses."""
        task = TASKS[self.trained.task]
        if not task.generates:
            what = f"a model for {task.title} does not answer"
            raise ModelError.at(str(self.trained.found.folder), what, "use `hf-recipes predict`")
        arguments = generate.generation_arguments(self.trained.recipe, self.given)
        self._config = generate.generation_config(self.trained, arguments)

    def reset(self) -> None:
        """Forgets the messages; the system prompt stays."""
        self.messages.clear()

    def ids(self) -> list[int]:
        """Token ids of the conversation so far with the beginning of an answer, as in training. The oldest turns are
        left out where the model's length leaves no room for an answer."""
        said = list(self.messages)
        while True:
            ids = generate.prompt_ids(self.trained, self._row(said))
            room = self.trained.positions
            if room is None or len(ids) < room - 1 or len(said) <= 1:
                return ids if room is None else ids[-(room - 1) :]
            said = said[2:] if len(said) > 2 else said[-1:]

    def _row(self, said: list[dict[str, Any]]) -> dict[str, Any]:
        if generate.is_plain_prompt(self.trained):  # no template: the model continues the last text
            return {"prompt": said[-1]["content"], "text": said[-1]["content"]}
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, *said]}

    def ask(self, text: str, write: Write, beside: Any = None) -> str:
        """Streams the answer through `write` and keeps it. `beside`: a model whose answer to the same conversation is
        written first and is not kept."""
        self.messages.append({"role": "user", "content": text})
        ids = self.ids()
        try:
            if beside is not None:
                with beside as model:
                    write("base: ")
                    self._stream(model, ids, write)
                    write("\ntrained: ")
            answer = self._stream(self.trained.model, ids, write)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _stream(self, model: Any, ids: list[int], write: Write) -> str:
        import torch

        inputs = torch.tensor([ids], device=model.device)
        streamer = _Streamer(self.trained.tokenizer, write)
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=generate.limited(self._config, self.trained.positions, len(ids)),
                streamer=streamer.upstream,
            )
        answer: str = self.trained.tokenizer.decode(tokens[0, len(ids) :], skip_special_tokens=True)
        return answer


class _Streamer:
    """transformers' TextStreamer, which prints, with another place to write to."""

    def __init__(self, tokenizer: Any, write: Write) -> None:
        from transformers import TextStreamer

        self.upstream = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.upstream.on_finalized_text = lambda text, stream_end=False: write(text)  # type: ignore[method-assign]


class Base:
    """The model before training, for `Chat.ask(beside=...)`. An adapter's is the same model with the adapter off; of a
    model that was trained in full it is loaded beside it."""

    def __init__(self, trained: Trained) -> None:
        """Raises ModelError where there is none: a model from scratch, or a base that is gone."""
        self.trained = trained
        self.other = None if trained.found.adapter else _load_base(trained)

    def __enter__(self) -> Any:
        if self.other is not None:
            return self.other
        self._off = self._adapter_off()
        return self._off.__enter__()

    def __exit__(self, *problem: Any) -> None:
        if self.other is None:
            self._off.__exit__(*problem)

    @contextmanager
    def _adapter_off(self) -> Iterator[Any]:
        with self.trained.model.disable_adapter():
            yield self.trained.model


def _load_base(trained: Trained) -> Any:
    import transformers

    recipe, where = trained.recipe, str(trained.found.folder)
    if trained.found.record is None or from_scratch(recipe):
        what = "it was trained from random weights, or its base model is not known"
        raise ModelError.at(where, what, "leave out --beside base")
    name = str(recipe.get("model.pretrained_model_name_or_path"))
    auto = getattr(transformers, TASKS[trained.task].auto_class)
    try:
        model = auto.from_pretrained(name, dtype=trained.model.dtype, trust_remote_code=False)
    except Exception as problem:  # upstream may raise anything
        raise load_error(where, "base model", name, problem) from problem
    return model.to(trained.model.device).eval()
