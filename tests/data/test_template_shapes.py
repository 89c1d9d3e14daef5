"""One rendering serves all conversations of the same roles where the template only writes what messages say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jinja2 import TemplateError

from hf_recipes.data.chat_template import read_template
from tests.data.test_chat_masks import conversations, marked, shipped, tokenizer_of
from tests.support.tiny_models import CHATML

LOOP = "{% for message in messages %}"
ANSWER = "{% generation %}{{ message['content'] }}{% endgeneration %}"
END = "{% endfor %}"
WRITES_ONLY = {
    "stripped": LOOP + "{% generation %}{{ message.content | trim }}{% endgeneration %}" + END,
    "stripped on one side": LOOP + "{% generation %}[{{ message.content.rstrip() }}]{% endgeneration %}" + END,
    "a name for it": LOOP + "{% set text = message['role'] + ': ' + message['content'] %}{{ text }}" + ANSWER + END,
    "asked for": LOOP + "{{ message.get('name', 'nobody') }}{{ message.get('content') }}" + ANSWER + END,
    "the first one again": LOOP + "{{ messages[0]['content'] if messages[0].role == 'system' }}" + ANSWER + END,
    "the one before": LOOP + "{{ loop.previtem.content if not loop.first }}" + ANSWER + END,
    "text or nothing": LOOP + "{% if message.content is string and message.content %}" + ANSWER + "{% endif %}" + END,
    "the rest": "{% set rest = messages[1:] %}{{ rest | length }}" + LOOP.replace("messages", "rest") + ANSWER + END,
}
LOOKS_INTO = {
    "for a word": LOOP + "{% if '<think>' in message['content'] %}!{% endif %}" + ANSWER + END,
    "for its length": LOOP + "{{ message['content'] | length }}" + ANSWER + END,
    "for its beginning": LOOP + "{{ message.content.startswith('I') }}" + ANSWER + END,
    "for a part": LOOP + "{% generation %}{{ message.content[:5] }}{% endgeneration %}" + END,
    "for a part by name": LOOP + "{% set t = message.content %}{{ t.split('</think>')[0] }}" + ANSWER + END,
    "for equality": LOOP + "{{ message.content == 'I' }}" + ANSWER + END,
    "joined and stripped": LOOP + "{% generation %}{{ (' I' + message.content) | trim }}{% endgeneration %}" + END,
    "in capitals": LOOP + "{% generation %}{{ message.content | upper }}{% endgeneration %}" + END,
    "as JSON": LOOP + "{{ message | tojson }}" + ANSWER + END,
    "all messages": "{{ messages }}" + LOOP + ANSWER + END,
    "in a namespace": "{% set ns = namespace(t='') %}"
    + LOOP
    + "{% set ns.t = message.content %}{{ ns.t | length }}"
    + ANSWER
    + END,
    "in a macro": "{% macro say(m) %}{{ m.content | length }}{% endmacro %}"
    + LOOP
    + "{{ say(message) }}"
    + ANSWER
    + END,
    "by a computed key": LOOP + "{{ message['con' + 'tent'] | length }}" + ANSWER + END,
    "in items": LOOP + "{% for key, value in message.items() %}{{ value | length }}{% endfor %}" + ANSWER + END,
    "twice": LOOP + "{% generation %}{{ message.content * 2 }}{% endgeneration %}" + END,
    "the time": LOOP + "{{ strftime_now('%d %b') }}" + ANSWER + END,
    "by a filter": "{{ messages | map(attribute='content') | join }}" + LOOP + ANSWER + END,
    "by a name for both": LOOP + "{% set m = message %}{% set m = message.content %}{{ m | length }}" + ANSWER + END,
}
SHIPPED = ("gemma", "llama3", "phi3", "phi3_5", "qwen2_5", "qwen3_instruct_2507")


def count_shapes(source: str, strict: bool) -> int:
    """Renders 60 conversations with and without shapes, which must be equal; the shapes that were used."""
    template = read_template(tokenizer_of(source))
    each = replace(template, _by_roles=False)
    for talk in conversations(60, strict=strict):
        assert template.render(talk, None, {}) == each.render(talk, None, {})
    return len(template._shapes)


@pytest.mark.parametrize("name", list(WRITES_ONLY))
def test_a_template_that_only_writes_contents_is_rendered_once_for_the_same_roles(name: str) -> None:
    assert count_shapes(WRITES_ONLY[name], strict=False) > 5


@pytest.mark.parametrize("name", list(LOOKS_INTO))
def test_a_template_that_looks_into_contents_is_rendered_for_each_row(name: str) -> None:
    assert count_shapes(LOOKS_INTO[name], strict=False) == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_of_published_models_give_the_text_and_answers_of_a_rendering_for_each_row(name: str) -> None:
    for source in (marked(name), shipped(f"{name}_training")):
        assert count_shapes(source, strict=name == "gemma") > 2


def test_other_keys_tools_and_arguments_are_no_part_of_a_shape() -> None:
    template = read_template(tokenizer_of(CHATML.replace("Be kind.", "' + mood + '")))
    talk = [{"role": "user", "content": "I"}, {"role": "assistant", "content": "AI"}]
    texts = [template.render(talk, None, {"mood": mood}).text for mood in ("calm", "glad", "calm")]
    assert "calm" in texts[0] and "glad" in texts[1] and texts[0] == texts[2]
    assert template.render([{**talk[0], "name": "x"}, talk[1]], None, {"mood": "calm"}).text == texts[0]


def test_a_row_that_the_template_refuses_is_refused_with_its_own_reason() -> None:
    template = read_template(tokenizer_of(marked("gemma")))
    talk = [{"role": "user", "content": "I"}, {"role": "user", "content": "AI"}]
    for _ in range(2):
        with pytest.raises(TemplateError, match="must alternate"):
            template.render(talk, None, {})
