"""The tables of options and settings are the code's, and no page names a setting or command that doesn't exist."""

from __future__ import annotations

import re
from types import ModuleType

import click
import pytest

import celery_etcdlock
import celery_etcdlock.signals
import celery_etcdlock.testing
from celery_etcdlock.cli import etcdlock
from celery_etcdlock.core.settings import SETTING_NAMES, SETTINGS
from celery_etcdlock.core.task_options import OPTIONS
from tests.docs.pages import PAGES, ROOT, text_of

ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", re.MULTILINE)
#: What else begins with etcdlock_: fixtures, headers, keys of ``inspect stats``.
OTHER_NAMES = {"etcdlock_memory", "etcdlock_beat_entry", "etcdlock_beat_due", "etcdlock_waiting"}


def table(page: str) -> dict[str, str]:
    first_section = text_of(page).split("\n## ")[0]
    return {name: default for name, default, _ in ROW.findall(first_section)}


def test_options() -> None:
    written = table("docs/options.md")
    assert set(written) == {option.name for option in OPTIONS}
    for option in OPTIONS:
        assert _default(written[option.name]) == option.default, option.name


def test_settings() -> None:
    written = table("docs/settings.md")
    assert list(written) == [setting.name for setting in SETTINGS]
    for setting in SETTINGS:
        if setting.name != "etcdlock_prefix":
            assert _default(written[setting.name]) == setting.default, setting.name


@pytest.mark.parametrize(
    "module", [celery_etcdlock, celery_etcdlock.testing, celery_etcdlock.signals], ids=lambda it: it.__name__
)
def test_the_api_reference_has_all_public_names(module: ModuleType) -> None:
    page = text_of("docs/api.md")
    for name in set(module.__all__) - {"send_signal"}:
        assert re.search(rf"\b{name}\b", page), name


@pytest.mark.parametrize("page", PAGES)
def test_names_of_settings(page: str) -> None:
    named = set(re.findall(r"\b(etcdlock_[a-z_]+[a-z])\b(?!\*)", text_of(page))) - OTHER_NAMES
    assert named <= {*SETTING_NAMES}, named - {*SETTING_NAMES}


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str) -> None:
    """``etcdlock COMMAND --option`` in a line of shell, or quoted as such."""
    context = click.Context(etcdlock)
    for name, rest in re.findall(r"-A \w+ etcdlock ([a-z]+)([^`\n]*)", text_of(page)):
        command = etcdlock.get_command(context, name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest):
            assert option in known, f"{name} {option}"


def test_troubleshooting_quotes_the_log() -> None:
    package = ROOT / "celery_etcdlock"
    source = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*"', "", source)  # texts that go on in the next line
    quoted = re.findall(r'log say "([^"]+)"', text_of("docs/troubleshooting.md"))
    assert len(quoted) == 3
    for text in quoted:
        assert text in source, text


def _default(cell: str) -> object:
    cell = cell.split(":")[0] if cell.startswith("`None`") else cell
    return eval(cell.strip("`")) if cell else None
