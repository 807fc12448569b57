"""The wait policy of OpenMP threads: chosen by the machine's load, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evenhand.core import threads

_CHOOSE = (
    "import os; from evenhand.core import threads; {patch}; print(threads.choose_wait_policy(), os.environ.get('OMP_WAIT_POLICY'))"
)


def _chosen(load: str, **environment: str) -> str:
    """What a fresh process, which has not imported torch, answers."""
    free = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    patch = f"os.getloadavg = lambda: ({load}, 0, 0); threads.cores = lambda: 4"
    command = [sys.executable, "-c", _CHOOSE.format(patch=patch)]
    return subprocess.run(command, env=free | environment, capture_output=True, text=True, check=True).stdout.strip()


def test_waiting_threads_sleep_where_the_machine_is_busy() -> None:
    assert _chosen("2.1") == "True PASSIVE"
    assert _chosen("1.9") == "False None"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "0")])
def test_a_policy_of_the_user_stays(name: str, value: str) -> None:
    assert _chosen("9", **{name: value}) == f"False {value if name == 'OMP_WAIT_POLICY' else None}"


def test_nothing_is_set_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environment: dict[str, str] = {}
    assert not threads.choose_wait_policy(environment) and not environment


def test_a_system_that_does_not_tell_its_load_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert not threads.is_busy() and threads.cores() >= 1
