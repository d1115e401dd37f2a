"""Newest wins: one run at a time for each document, at most one more waiting, and that one has the newest arguments.

A call replaces the one that waits for its turn, so that ten quick edits cost two runs: the first and the last.
"""

from __future__ import annotations

import time

from celery import Celery

from celery_etcdlock import singleton_task
from examples.support import expect, expect_no_overlap, inside, say, spans, wait_for, workers

app = Celery("debounce")


@singleton_task(
    app=app,
    name="render",
    unique_on=["document"],
    lock="until_and_while_executing",
    on_conflict={"enqueue": "replace", "run": "wait"},
)
def render(document: str, text: str) -> str:
    with inside(f"render {document}", call=text):
        time.sleep(1.0)
    return text


def main() -> None:
    with workers("examples.debounce", "-c", "2"):
        edits = [f"edit {number}" for number in range(10)]
        render.delay("letter", edits[0])
        wait_for(lambda: bool(spans("render letter")), "the first run")
        results = [render.delay("letter", text) for text in edits[1:]]
        newest = results[-1].get(timeout=30)
    rendered = [span.call for span in spans("render letter")]
    say(f"{len(edits)} edits were rendered {len(rendered)} times: {', '.join(rendered)}.")
    expect_no_overlap("render")
    expect(newest == edits[-1], "the newest text was rendered")
    expect(rendered == [edits[0], edits[-1]], "nothing in between was")
