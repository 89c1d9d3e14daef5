"""Small faults for one source file: what benchmarks/mutation.py plants, one at a time.

Each mutant is one edit of the syntax tree: a comparison flipped or moved by one, `and` for `or`, another arithmetic
operator, a number or a truth value changed, a condition negated, a `not` dropped, a statement or a returned value
removed. Text is never changed, and nothing inside an f-string, an annotation, a decorator or an import,
nor zip's `strict`, which shows only where another fault made the lengths differ.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
NOT_MUTATED = {"annotation", "returns", "decorator_list", "bases", "type_params"}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """`owner.field` (or its item `index`) becomes `new`."""

    owner: Any
    field: str
    index: int | None
    new: Any

    def swap(self, value: Any) -> Any:
        """Puts `value` in place and returns what was there."""
        if self.index is None:
            old = getattr(self.owner, self.field)
            setattr(self.owner, self.field, value)
        else:
            held = getattr(self.owner, self.field)
            old, held[self.index] = held[self.index], value
        return old


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One edit, the function (or constant) that it is in, and its statement before and after."""

    line: int
    function: str  # the qualified name, as in __qualname__; a module's constant: its name
    kind: str
    before: str
    after: str
    statement: int  # the line of the innermost statement: tests that reach it are run
    inside: bool  # in a function's body; otherwise a default or a module's constant
    edit: Edit


def mutants(tree: ast.Module) -> list[Mutant]:
    """Every mutant of a module, in the order of the source. The tree is as it was."""
    return list(_Finder().module(tree))


class _Finder:
    def module(self, tree: ast.Module) -> Iterator[Mutant]:
        for i, statement in enumerate(tree.body):
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                yield from self.definition(statement, "", tree, "body", i)
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(
                statement.value, (ast.Constant, ast.BinOp, ast.UnaryOp)
            ):
                name = ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)
                for mutant in self.expression(statement.value, statement, "value", None, statement, name):
                    yield replace(mutant, inside=False)

    def definition(self, node: Any, outer: str, owner: Any, field: str, index: int) -> Iterator[Mutant]:
        name = f"{outer}{node.name}"
        if isinstance(node, ast.ClassDef):
            for i, inner in enumerate(node.body):
                if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                    yield from self.definition(inner, f"{name}.", node, "body", i)
            return
        for field_name in ("defaults", "kw_defaults"):
            for i, default in enumerate(getattr(node.args, field_name)):
                if default is not None:
                    for mutant in self.expression(default, node.args, field_name, i, node, name):
                        yield replace(mutant, inside=False, line=default.lineno)
        yield from self.block(node, "body", name)

    def block(self, owner: Any, field: str, function: str) -> Iterator[Mutant]:
        for i, statement in enumerate(getattr(owner, field)):
            yield from self.statement(statement, owner, field, i, function)

    def statement(self, node: Any, owner: Any, field: str, index: int, function: str) -> Iterator[Mutant]:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Pass, ast.Assert)):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from self.definition(node, f"{function}.<locals>.", owner, field, index)
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            return
        if self.removable(node):
            # Under `if 0` and not gone: a generator stays one, and a name stays local.
            gone = ast.If(test=ast.Constant(value=0), body=[node], orelse=[])
            edit = Edit(owner=owner, field=field, index=index, new=ast.copy_location(gone, node))
            text = _first_line(node)
            yield _mutant(node, function, "statement removed", text, "(removed)", node, edit)
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
            # Not None alone: a method that no longer names super() would lose its cell, and its code could not be put
            # in place of the old one.
            nothing = ast.IfExp(test=ast.Constant(value=1), body=ast.Constant(value=None), orelse=node.value)
            edit = Edit(owner=node, field="value", index=None, new=ast.copy_location(nothing, node))
            yield _mutant(node, function, "return value removed", _first_line(node), "return None", node, edit)
        if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            edit = Edit(owner=node, field="op", index=None, new=ARITHMETIC[type(node.op)]())
            yield self.shown(node, function, "arithmetic", node, edit)
        for name, value in ast.iter_fields(node):
            if name in NOT_MUTATED:
                continue
            values = value if isinstance(value, list) else [value]
            for i, one in enumerate(values):
                place = i if isinstance(value, list) else None
                if isinstance(one, ast.stmt):
                    yield from self.statement(one, node, name, i, function)
                elif isinstance(one, (ast.ExceptHandler, ast.match_case)):
                    if isinstance(one, ast.match_case) and one.guard is not None:
                        yield from self.expression(one.guard, one, "guard", None, node, function)
                    yield from self.block(one, "body", function)
                elif isinstance(one, ast.AST):
                    yield from self.expression(one, node, name, place, node, function)

    @staticmethod
    def removable(node: ast.stmt) -> bool:
        """What a function does beside naming a value (a name that is gone fails at once and shows nothing)."""
        if isinstance(node, ast.Assign):
            return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
        return isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete))

    def expression(
        self, node: Any, owner: Any, field: str, index: int | None, statement: Any, function: str
    ) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            return

        def here(kind: str, new: ast.AST) -> Mutant:
            edit = Edit(owner=owner, field=field, index=index, new=ast.copy_location(new, node))
            return self.shown(node, function, kind, statement, edit)

        if _is_condition(node, owner, field) and not _flips_anyway(node):
            yield here("condition negated", ast.UnaryOp(op=ast.Not(), operand=node))
        if isinstance(node, ast.Compare):
            for i, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    edit = Edit(owner=node, field="ops", index=i, new=other())
                    yield self.shown(node, function, "comparison", statement, edit)
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield self.shown(node, function, "and / or", statement, Edit(owner=node, field="op", index=None, new=other))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            kind = "not dropped" if isinstance(node.op, ast.Not) else "sign dropped"
            yield here(kind, node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _of_text(node):
            edit = Edit(owner=node, field="op", index=None, new=ARITHMETIC[type(node.op)]())
            yield self.shown(node, function, "arithmetic", statement, edit)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            yield here("constant", ast.Constant(value=_other(node.value)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OPPOSITES:
            other_name = ast.copy_location(ast.Name(id=OPPOSITES[node.func.id], ctx=ast.Load()), node.func)
            edit = Edit(owner=node, field="func", index=None, new=other_name)
            yield self.shown(node, function, "min / max, any / all", statement, edit)
        for name, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            for i, one in enumerate(values):
                if isinstance(one, (ast.expr, ast.comprehension, ast.keyword)):
                    place = i if isinstance(value, list) else None
                    yield from self.expression(one, node, name, place, statement, function)

    @staticmethod
    def shown(node: Any, function: str, kind: str, statement: Any, edit: Edit) -> Mutant:
        before = _first_line(statement)
        old = edit.swap(edit.new)
        after = _first_line(statement)
        edit.swap(old)
        return _mutant(node, function, kind, before, after, statement, edit)


def _mutant(node: Any, function: str, kind: str, before: str, after: str, statement: Any, edit: Edit) -> Mutant:
    return Mutant(
        line=node.lineno,
        function=function,
        kind=kind,
        before=before,
        after=after,
        statement=statement.lineno,
        inside=True,
        edit=edit,
    )


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0] if not isinstance(node, ast.FunctionDef) else _signature(node)


def _signature(node: ast.FunctionDef) -> str:
    return f"def {node.name}({ast.unparse(node.args)})"


def _is_condition(node: Any, owner: Any, field: str) -> bool:
    if isinstance(owner, (ast.If, ast.While, ast.IfExp)):
        return field == "test"
    return isinstance(owner, ast.comprehension) and field == "ifs"


def _flips_anyway(node: Any) -> bool:
    """Another mutant is the negation already."""
    return isinstance(node, (ast.Compare, ast.Constant)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _of_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else value * 2


class Instrument(ast.NodeTransformer):
    """Puts `hit(line)` before every statement of every function: which tests reach it."""

    def __init__(self, hit: str) -> None:
        self.hit = hit
        self.depth = 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        into = isinstance(node, (ast.FunctionDef, ast.Lambda))
        self.depth += into
        super().generic_visit(node)
        if self.depth and not isinstance(node, ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                    setattr(node, field, [one for statement in block for one in self.marked(statement)])
        self.depth -= into
        return node

    def marked(self, statement: ast.stmt) -> list[ast.stmt]:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return [statement]
        call = ast.parse(f"{self.hit}({statement.lineno})").body[0]
        for inner in ast.walk(call):
            ast.copy_location(inner, statement)
        return [call, statement]
