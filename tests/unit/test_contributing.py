"""CONTRIBUTING.md says where things are and how one is added: these are true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from celery_etcdlock.cli import COMMANDS
from celery_etcdlock.core.lifetimes import LIFETIMES
from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.core.task_options import OPTIONS
from celery_etcdlock.listeners import NAMED_LISTENERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_etcdlock"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
#: Policies whose names are also other things': of what is done at a loss or in an outage, of methods, of HTTP.
OTHER_MEANINGS = {"raise", "retry", "skip", "wait", "replace"}


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def files_in(text: str) -> set[str]:
    return set(re.findall(r"`([\w/]+(?:\.py|/))`", text))


@pytest.mark.parametrize("title", ["The life of one call", "How to add", "Glossary"])
def test_each_file_is_there(title: str) -> None:
    found = files_in(section(title))
    assert found
    missing = [each for each in found if not (PACKAGE / each).exists() and not (ROOT / each).exists()]
    assert missing == []


def row(what: str) -> set[str]:
    [line] = [line for line in section("How to add").splitlines() if line.startswith(f"| {what} |")]
    return files_in(line.split("|")[2])


def strings(path: Path) -> set[str]:
    """The values of the plain strings in a file that aren't docstrings."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in constants if isinstance(node.value, str)}


def where_written(names: set[str]) -> set[str]:
    """The files of the package in which one of these names stands as a string by itself."""
    paths = PACKAGE.rglob("*.py")
    return {str(path.relative_to(PACKAGE)) for path in paths if strings(path) & names}


def test_a_policy() -> None:
    names = {name for name in POLICIES if name not in OTHER_MEANINGS}
    # What joins is known in the message, too: by the word in its header.
    assert where_written(names) <= row("a policy for conflicts") | {"tasks/execution/meet_conflict.py"}


def test_a_lifetime() -> None:
    default = {OPTIONS[0].default}
    readers = {
        "core/policies.py",
        "core/policy_choice.py",
        "core/task_options.py",
        "tasks/execution/run_under_lock.py",
        "tasks/producer/publish.py",
    }
    assert where_written(set(LIFETIMES) - default) <= row("a lifetime") | readers


def test_settings_and_options_are_each_declared_in_one_file() -> None:
    homes = row("a setting") | row("an option of tasks")
    assert homes == {"core/settings.py", "core/task_options.py"}
    for path in PACKAGE.rglob("*.py"):
        made = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        declares = any(getattr(node.func, "id", "") == "declared" for node in made)
        assert declares == (str(path.relative_to(PACKAGE)) in homes), path


def test_a_command_is_a_file_and_a_name() -> None:
    assert row("an operator's command") == {"cli/", "cli/__init__.py"}
    for name in COMMANDS:
        assert (PACKAGE / "cli" / f"{name}.py").exists()
    assert where_written({f"celery_etcdlock.cli.{name}" for name in COMMANDS}) == set()


def test_a_listener_is_a_file_and_a_name() -> None:
    assert row("a listener") == {"listeners/", "listeners/__init__.py"}
    for name, module in NAMED_LISTENERS.items():
        assert module == f"celery_etcdlock.listeners.{name}"
        assert (PACKAGE / "listeners" / f"{name}.py").exists()


def test_no_import_circles() -> None:
    """Also none for type checkers alone: who is typed by whom is a dependency, too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = imports.setdefault(module, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("celery_etcdlock"):
                found |= {
                    name if (name := f"{node.module}.{alias.name}") in modules else str(node.module)
                    for alias in node.names
                }
    left = dict(imports)
    while True:
        free = [module for module, needs in left.items() if not any(need in left for need in needs - {module})]
        if not free:
            break
        for module in free:
            del left[module]
    # A package's __init__ that leads to its own files isn't a circle of theirs.
    assert sorted(left) == []
