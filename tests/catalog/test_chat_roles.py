"""Advice on the names of roles: the texts of one who asks are never suggested as what is learned."""

from __future__ import annotations

import pytest

from hf_recipes.catalog.chat_roles import guess_roles


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["User", "Assistant"], {"User": "user", "Assistant": "assistant"}),
        (["human", "gpt"], {"human": "user", "gpt": "assistant"}),
        (["customer", "agent", "customer"], {"customer": "user", "agent": "assistant"}),
        (["SYSTEM", "USER", "AI"], {"SYSTEM": "system", "USER": "user", "AI": "assistant"}),
        (["system", "Anna", "Ben", "Anna"], {"Anna": "user", "Ben": "assistant"}),
        (["usre", "asistant"], {"usre": "user", "asistant": "assistant"}),
        (["user", "Ben", "ipython", "Ben"], {"Ben": "assistant", "ipython": "tool"}),
        (["user", "assistant", "Anna"], {"Anna": "user"}),
    ],
)
def test_a_name_of_a_role_is_suggested_for_the_one_who_speaks(names: list[str], expected: dict[str, str]) -> None:
    assert guess_roles(names, {}) == expected
