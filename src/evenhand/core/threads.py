"""What OpenMP threads do while they wait for each other: spin, which is quick on an idle machine, or sleep."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
_THEIRS = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # whoever sets one of them has a policy
BUSY = 0.5  # load at start, in parts of the cores, above which waiting threads sleep; measured: docs/training.md


def choose_wait_policy(environment: MutableMapping[str, str] | None = None) -> bool:
    """Let waiting threads sleep where others want the cores; the number of threads, on which last bits depend, stays as it is.

    OpenMP reads the environment when it is loaded, so this does nothing once torch is imported.

    Returns:
        Whether a policy was set.
    """
    environment = os.environ if environment is None else environment
    if "torch" in sys.modules or any(name in environment for name in _THEIRS) or not is_busy():
        return False
    environment[POLICY] = "PASSIVE"
    return True


def is_busy() -> bool:
    """Whether the machine's load of the last minute is above ``BUSY`` of the cores; False where the system does not say."""
    try:
        return os.getloadavg()[0] > BUSY * cores()
    except (AttributeError, OSError):  # Windows has no load average
        return False


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
