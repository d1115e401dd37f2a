"""celery-progress: what a locked body says of its progress can be seen while it runs."""

from __future__ import annotations

from typing import Any

from celery_etcdlock import singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

backend = package("celery_progress.backend")


def test_progress(lab: Lab) -> None:
    seen: list[Any] = []

    def body(self: Any) -> str:
        lab.body()
        backend.ProgressRecorder(self).set_progress(3, 10, "sending")
        result = lab.app.AsyncResult(self.request.id)
        seen.append((result.state, result.info["current"], result.info["description"]))
        return "done"

    task = singleton_task(app=lab.app, name="task", shared=False, bind=True)(body)
    result, message = lab.publish(task)
    run_message(lab.app, message)
    assert seen == [("PROGRESS", 3, "sending")]
    assert result.get(timeout=5) == "done"
    assert lab.bodies == ["task"]
    info = backend.Progress(lab.app.AsyncResult(result.id)).get_info()
    assert (info["state"], info["complete"], info["success"]) == ("SUCCESS", True, True)
