"""Text samples while a model trains: the recipe's sample_prompts, continued or answered at each evaluation.

Errors in the recipe are reported before training; a sample that fails later is only reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback

from hf_recipes.common.device import is_sharded
from hf_recipes.common.text import first_line
from hf_recipes.data.chat_prompt import prompt_ids
from hf_recipes.data.chat_template import AnswerTemplate
from hf_recipes.errors import RecipeError
from hf_recipes.record import SAMPLES

NEW_TOKENS = 40  # of a sample, where GenerationConfig names no length


class SampleText(TrainerCallback):
    """Continues (or, in a chat, answers) prompts on rank 0; what training draws next stays what it was.

    `arguments`: GenerationConfig's; `template`: what training renders its rows with, None for plain texts;
    `positions`: tokens that the model can see, None without a limit; `location`: of a dotted key in the recipe. Raises
    RecipeError for what GenerationConfig refuses, and for a prompt without a token.
    """

    def __init__(
        self,
        prompts: list[str],
        arguments: Mapping[str, Any],
        tokenizer: Any,
        *,
        template: AnswerTemplate | None,
        positions: int | None,
        location: Callable[[str], str],
        say: Callable[[str], None],
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.prompts, self.arguments, self.tokenizer, self.say = prompts, dict(arguments), tokenizer, say
        self.template, self.positions = template, positions
        if "max_length" not in self.arguments:
            self.arguments.setdefault("max_new_tokens", NEW_TOKENS)
        try:
            self._generation(0)
        except (ValueError, TypeError) as problem:
            what = f"GenerationConfig refuses: {first_line(problem)}"
            raise RecipeError.at(location("GenerationConfig"), what) from problem
        for prompt in prompts:
            if not self._ids(prompt):
                what = f"the sample prompt {prompt!r} gives no token to continue"
                raise RecipeError.at(location("sample_prompts"), what, "write some text")
            shortened = self._shortened(prompt)
            if shortened:
                say(shortened)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sharded = is_sharded()  # then a forward needs every process
        if model is None or not (state.is_world_process_zero or sharded):
            return
        say = self.say if state.is_world_process_zero else lambda line: None
        model = getattr(model, "module", model)
        with _evaluation_mode(model), torch.no_grad():
            for prompt in self.prompts:
                try:
                    answers = self._answers(model, prompt, args.device, synced=sharded)
                except (ValueError, IndexError, RuntimeError) as problem:  # a sample is not worth a run
                    say(f"sample at step {state.global_step}: {prompt!r} failed: {first_line(problem)}")
                    continue
                for answer in answers:
                    if state.is_world_process_zero:
                        self._keep(args.output_dir, state.global_step, prompt, answer.strip())
                    say(f"sample at step {state.global_step}: {prompt!r} -> {answer.strip()!r}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:  # of an earlier run in this folder
            with suppress(OSError):
                Path(args.output_dir, SAMPLES).unlink()

    def _keep(self, folder: str, step: int, prompt: str, text: str) -> None:
        """For the report. It stays beside the record and is not pushed: the model may repeat what it was trained on."""
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        with suppress(OSError), Path(folder, SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _answers(self, model: Any, prompt: str, device: Any, *, synced: bool = False) -> list[str]:
        """`synced`: every process generates until all have an answer."""
        ids = self._ids(prompt)[-self._read(prompt) :]
        inputs = torch.tensor([ids], device=device)
        tokens = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=self._generation(len(ids)),
            synced_gpus=synced,
        )
        return list(self.tokenizer.batch_decode(tokens[:, len(ids) :], skip_special_tokens=True))

    def _generation(self, read: int) -> GenerationConfig:
        """The recipe's arguments; after `read` tokens no more new ones than the model has positions for."""
        arguments = dict(self.arguments)
        if self.positions is not None:
            for name, most in (("max_new_tokens", self.positions - read), ("max_length", self.positions)):
                if isinstance(arguments.get(name), int):
                    arguments[name] = max(1, min(arguments[name], most))
        return GenerationConfig(
            **{"use_cache": True, **arguments},
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )

    def _ids(self, prompt: str) -> list[int]:
        if self.template is None:
            return list(self.tokenizer(prompt, verbose=False)["input_ids"])
        message = [{"role": "user", "content": prompt}]
        return prompt_ids(self.template, self.tokenizer, message, None, self.chat_template_kwargs)

    def _read(self, prompt: str) -> int:
        """Tokens of the prompt that the model is given: its last ones, where all leave no room for an answer."""
        count = len(self._ids(prompt))
        return count if self.positions is None or count < self.positions else max(1, self.positions // 2)

    def _shortened(self, prompt: str) -> str:
        """What the model's length takes away from the prompt or the answer, as text; "" if nothing."""
        count, read = len(self._ids(prompt)), self._read(prompt)
        shown = repr(prompt if len(prompt) <= 40 else prompt[:37] + "...")
        if read < count:
            line = f"sample prompt {shown}: only its last {read} of {count} tokens are read"
            return f"{line}; the model has {self.positions} positions"
        asked, given = self.arguments.get("max_new_tokens"), self._generation(read).max_new_tokens
        if isinstance(asked, int) and given is not None and given < asked:
            return f"sample prompt {shown}: {given} new tokens, not {asked}: the model has {self.positions} positions"
        return ""


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode for a moment; afterwards the mode and the random numbers are those of before."""
    training, state = model.training, torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    model.eval()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        model.train(training)
