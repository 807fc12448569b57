"""How many captions name a sex or an age, and how often what the pattern takes from them is right, as read by hand.

    EVENHAND_DATA=... python benchmarks/caption_demographics.py

``caption_verdicts.csv`` has the readings: ids, what was taken and the verdicts, no text. Its samples: ``named``, every caption of which the
pattern takes something; ``random``, captions drawn from the rest; ``keyword``, all others of the rest that hold a word of sex or age or a
pronoun. Verdicts: right, wrong, unsure (counted as wrong); of what was not taken: missed, pronoun (a pronoun alone tells the sex), or
empty where nothing is said.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from evenhand.audit.intervals import share_interval
from evenhand.cohorts.sources.captions import Mined, mine
from evenhand.core.artifacts import write_text
from evenhand.core.groups import UNKNOWN

VERDICTS = Path(__file__).with_name("caption_verdicts.csv")
CAPTIONS = "roco/data/validation/radiology/captions.txt"


def main() -> None:
    """Mine every caption, compare with the readings, write JSON and a table."""
    if "EVENHAND_DATA" not in os.environ:
        raise SystemExit("EVENHAND_DATA is not set; it names the folder that holds the raw data sets")
    lines = (Path(os.environ["EVENHAND_DATA"]) / CAPTIONS).read_text(encoding="utf-8").splitlines()
    mined = {key: mine(text) for key, _, text in (line.partition("\t") for line in lines)}
    with VERDICTS.open(newline="") as file:
        verdicts = list(csv.DictReader(file))
    _require_current(mined, verdicts)
    found = {"coverage": _coverage(mined), "precision": _precision(verdicts), "not_taken": _not_taken(verdicts)}
    write_result("caption_demographics", found, seeds=[0])
    table = _table(found)
    write_text(RESULTS / "caption_demographics.md", table)
    print(table)


def _require_current(mined: dict[str, Mined], verdicts: list[dict[str, str]]) -> None:
    """A reading counts for the value that was read, and the precision for all that is taken."""
    for row in verdicts:
        now = mined[row["roco_id"]]
        if (now.sex, now.age_group) != (row["sex"], row["age_group"]):
            raise SystemExit(f"{VERDICTS.name}: {row['roco_id']} is mined otherwise now ({now.sex}, {now.age_group}); read it again")
    unread = {key for key, now in mined.items() if _names(now)} - {row["roco_id"] for row in verdicts if row["sample"] == "named"}
    if unread:
        raise SystemExit(f"{VERDICTS.name}: {len(unread)} captions were never read, such as {min(unread)}; read them")


def _names(now: Mined) -> bool:
    return now.sex != UNKNOWN or now.age_group != UNKNOWN


def _coverage(mined: dict[str, Mined]) -> dict[str, Any]:
    values = mined.values()
    return {
        "captions": len(mined),
        "sex": dict(Counter(now.sex for now in values)),
        "age_group": dict(Counter(now.age_group for now in values)),
        "both": sum(UNKNOWN not in (now.sex, now.age_group) for now in values),
        "refused": dict(Counter(now.refused for now in values if now.refused)),
    }


def _precision(verdicts: list[dict[str, str]]) -> dict[str, Any]:
    """Right of all that was read, with Wilson's 95 % interval."""
    found = {}
    for name, column in (("sex", "sex_verdict"), ("age_group", "age_verdict")):
        read = [row[column] for row in verdicts if row["sample"] == "named" and row[name] != UNKNOWN]
        right = np.array([verdict == "right" for verdict in read])
        share, low, high = share_interval(right, np.arange(len(right)))
        found[name] = {"read": len(read), "right": int(right.sum()), "unsure": read.count("unsure"), "precision": share}
        found[name] |= {"low": low, "high": high}
    return found


def _not_taken(verdicts: list[dict[str, str]]) -> dict[str, Any]:
    """What a reader finds in captions of which the pattern takes nothing (or no sex)."""
    return {
        sample: {
            "read": sum(row["sample"] == sample for row in verdicts),
            "sex": dict(Counter(row["sex_verdict"] for row in verdicts if row["sample"] == sample and row["sex"] == UNKNOWN)),
            "age_group": dict(Counter(row["age_verdict"] for row in verdicts if row["sample"] == sample and row["age_group"] == UNKNOWN)),
        }
        for sample in ("named", "random", "keyword")
    }


def _table(found: dict[str, Any]) -> str:
    lines = ["| | named by | of captions | read | right | precision | 95 % interval |", "|---|---|---|---|---|---|---|"]
    total = found["coverage"]["captions"]
    for name, row in found["precision"].items():
        named = total - found["coverage"][name][UNKNOWN]
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(f"| {name} | {named} | {total} | {row['read']} | {row['right']} | {row['precision']:.3f} | {interval} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
