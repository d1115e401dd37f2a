from __future__ import annotations

from tests.integration.workers.conftest import new_project, project

__all__ = ["new_project", "project"]
