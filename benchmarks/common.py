"""What every benchmark shares: results as JSON that say how they came about."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenhand.audit.frame import Estimate
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import provenance, write_json
from evenhand.core.groups import NOT_GROUPS, intersection

JOINT = "everything"  # label of all attributes and conditions
RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, payload: dict[str, Any], *, seeds: list[int]) -> Path:
    """Write ``results/name.json`` atomically: command, versions, commit, threads and load of the machine, seeds, then ``payload``.

    Paths of this machine are kept out of what is committed: of the arguments and values that are absolute paths the last part stays.
    """
    made = provenance(seeds=seeds, cores=os.cpu_count(), omp_num_threads=os.environ.get("OMP_NUM_THREADS"))
    made["command"] = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    made["load_average"] = [round(value, 2) for value in os.getloadavg()]
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, _without_roots({**made, **payload}))
    return path


def with_joint(cohort: Cohort, invisible: Sequence[str] = ()) -> Cohort:
    """The cohort with all attributes and conditions as one label: a classifier of it sees more of an image than one of a single label."""
    names = [name for name in (*cohort.schema.attributes, *cohort.schema.conditions) if name not in invisible]
    joint = intersection(cohort.table, names)
    labels = sorted(set(joint) - set(NOT_GROUPS))
    schema = cohort.schema.model_copy(update={"conditions": {**cohort.schema.conditions, JOINT: labels}})
    return Cohort(schema, cohort.table.assign(**{JOINT: joint}), cohort.root)


def number(found: Estimate | float) -> float:
    """A distance as a number, whether its measure gives an interval with it or not."""
    return found.value if isinstance(found, Estimate) else found


def _without_roots(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_roots(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_roots(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
        return Path(value).name if Path(value).is_absolute() else str(value)
    return value
