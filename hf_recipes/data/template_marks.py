"""A chat template with marks in its loops, put there after it is parsed: chat_template.py says what for."""

from __future__ import annotations

from typing import Any

MARK = "hf_recipes_mark"
CAPTURES = ("Macro", "CallBlock", "AssignBlock", "FilterBlock")  # their text is written elsewhere, or later


def parse_template(source: str) -> Any:
    """The template's syntax tree, as transformers' environment reads it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(source).environment.parse(source)


def with_marks(source: str) -> Any:
    """The template compiled with a call of `MARK` at the beginning of every turn of its loops, and after them."""
    from jinja2 import nodes

    tree = parse_template(source)

    def call(value: nodes.Expr) -> nodes.Output:
        return nodes.Output([nodes.Call(nodes.Name(MARK, "load"), [value], [], None, None)])

    def visit(node: nodes.Node, outer: str | None) -> None:
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node) and type(value).__name__ not in CAPTURES:
                visit(value, outer)
            if not isinstance(value, list):
                continue
            changed = []
            for child in value:
                changed.append(child)
                if not isinstance(child, nodes.Node) or type(child).__name__ in CAPTURES:
                    continue
                if isinstance(child, nodes.For) and isinstance(child.target, nodes.Name):
                    visit(child, child.target.name)
                    child.body.insert(0, call(nodes.Name(child.target.name, "load")))
                    changed.append(call(nodes.Name(outer, "load") if outer else nodes.Const(None)))
                else:
                    visit(child, outer)
            setattr(node, name, changed)

    visit(tree, None)
    return tree.environment.from_string(tree)
