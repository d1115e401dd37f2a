"""Imports the package with a call at every place where a signal's exception may strike.

A signal's handler runs between two bytecodes of the main thread, wherever that is. The places here are: the entrance of
a function; before each statement; after each call, so that what it gave is lost; before a ``with`` is left, after it
was. Python itself runs handlers at fewer (at calls, at jumps back, at the entrance of a function); whatever holds here
holds there.

The source is changed rather than traced: a trace function that raises sends CPython 3.11 into an endless loop, and
tracing is slow.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType
from typing import Any, NamedTuple

PACKAGE = "celery_etcdlock"

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Place(NamedTuple):
    file: str
    line: int
    function: str
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function} ({self.kind})"


#: By number, in the order in which they were met.
PLACES: list[Place] = []


class Hook:
    """What the package calls: by its place's number."""

    def __init__(self) -> None:
        self.reach: Callable[[int], None] | None = None

    def before(self, place: int) -> None:
        if self.reach is not None:
            self.reach(place)

    def after(self, value: Any, place: int) -> Any:
        if self.reach is not None:
            self.reach(place)
        return value


HOOK = Hook()


class Left:
    """A context manager that is struck where it is left."""

    def __init__(self, manager: Any, place: int) -> None:
        self._manager = manager
        self._place = place

    def __enter__(self) -> Any:
        return type(self._manager).__enter__(self._manager)

    def __exit__(self, *error: Any) -> Any:
        HOOK.before(self._place)
        swallowed = type(self._manager).__exit__(self._manager, *error)
        HOOK.before(self._place + 1)
        return swallowed


BEFORE, AFTER, LEFT = "__strike_before__", "__strike_after__", "__strike_left__"


class Instrument(ast.NodeTransformer):
    """Only what is inside of functions: modules are imported unstruck."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._functions: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        around, self._functions = self._functions, []
        node.body = [self.visit(statement) for statement in node.body]
        self._functions = around
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._functions.append("<lambda>")
        node.body = self.visit(node.body)
        self._functions.pop()
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return self._call(AFTER, node, "after a call", node) if self._functions else node

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        if self._functions:
            for item in node.items:
                item.context_expr = self._call(LEFT, item.context_expr, "before it is left", node)
                self._place(node, "after it was left")
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._functions:
            for field in ("body", "orelse", "finalbody"):
                statements = getattr(node, field, None)
                if isinstance(statements, list):
                    setattr(node, field, self._between(statements))
        return node

    def _visit_function(self, node: Function) -> ast.AST:
        self._functions.append(node.name)
        has_docstring = ast.get_docstring(node, clean=False) is not None
        statements = node.body[1:] if has_docstring else node.body
        body = self._between([self.visit(statement) for statement in statements])
        node.body = node.body[:1] + body if has_docstring else body
        self._functions.pop()
        return node

    def _between(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in statements:
            if not isinstance(statement, ast.Global | ast.Nonlocal):
                place = ast.Constant(self._place(statement, "before the statement"))
                call = ast.Expr(ast.Call(ast.Name(BEFORE, ast.Load()), [place], []))
                found.append(ast.fix_missing_locations(ast.copy_location(call, statement)))
            found.append(statement)
        return found

    def _call(self, hook: str, expression: ast.expr, kind: str, node: ast.expr | ast.stmt) -> ast.Call:
        place = ast.Constant(self._place(node, kind))
        call = ast.Call(ast.Name(hook, ast.Load()), [expression, place], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def _place(self, node: ast.expr | ast.stmt, kind: str) -> int:
        PLACES.append(Place(self._file, node.lineno, self._functions[-1], kind))
        return len(PLACES) - 1


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache, nor into one."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        file = fullname.removeprefix(f"{PACKAGE}.").replace(".", "/")
        return compile(Instrument(f"{file}.py").visit(tree), path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on. Whoever has imported the package before has another."""
    assert PACKAGE not in sys.modules
    setattr(builtins, BEFORE, HOOK.before)
    setattr(builtins, AFTER, HOOK.after)
    setattr(builtins, LEFT, Left)
    sys.meta_path.insert(0, Finder())
