"""An audit that holds nasty names, as the reports read it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.audit.result import (
    AuditResult,
    Cell,
    CohortFacts,
    EncoderFacts,
    Finding,
    GroupRow,
    JudgeFacts,
    MonteCarlo,
    PresenceRow,
    PresenceTable,
    QualityTable,
    SemanticRow,
    SemanticTable,
)
from evenhand.cohorts.cohort import Cohort, CohortSchema, to_image
from evenhand.cohorts.writing import cohort_writer

EVIL = "<script>alert(1)</script>"
NAMES = ["male", EVIL, "=cmd()|' /C calc'!A0", '$x_1$ --> & "quoted"']


def write_cohort(path: Path, n: int) -> Cohort:
    schema = CohortSchema(name=path.name, modality="brain", attributes={"sex": NAMES}, conditions={}, image_size=16, image_mode="L")
    with cohort_writer(path, schema) as writer:
        for i in range(n):
            row = {"subject_id": str(i), "split": "test", "prompt": "", "sex": NAMES[i % 2]}
            writer.add(to_image(np.full((16, 16), i / n)), row, name=f"{i:03d}")
    return Cohort.load(path)


def facts(path: Path, n: int) -> CohortFacts:
    return CohortFacts(
        path=str(path), name=path.name, modality="brain", n=n, subjects=n, sha256="0" * 64, synthetic=True, source=EVIL,
        licence="CC0", model_sha256=None, image_size=16, made_at=None,
    )  # fmt: skip


def group(name: str, value: float | None, reference: Cell | None = None) -> GroupRow:
    if value is None:
        return GroupRow(group=name, n=0, n_real=0, n_synthetic=0, reason="no synthetic images", reference=reference)
    return GroupRow(group=name, n=30, value=value, low=value - 0.01, high=value + 0.01, n_real=30, n_synthetic=30, reference=reference)


def result_of(root: Path) -> AuditResult:
    cell, floor = Cell(n=60, value=0.05, low=0.04, high=0.06), Cell(n=60, value=0.0, low=-0.01, high=0.01)
    shares = [(0.83, 0.8), (0.17, 0.2), (0.0, 0.0)]
    presence = PresenceTable(
        question="presence:sex", by=["sex"], basis="judge", n=60, n_real=60, gap=0.03, raw_gap=0.03,
        method="emq", identifiable=True, n_calibration=40,
        rows=[
            PresenceRow(
                group=g, n=60, value=a, low=a * 0.9, high=min(1, a * 1.1), raw=a, raw_low=a * 0.9, raw_high=min(1, a * 1.1), target=b
            )
            for g, (a, b) in zip(NAMES, shares, strict=False)
        ],
    )  # fmt: skip
    quality = QualityTable(
        question="quality:sex", by=["sex"], basis="judge", metric="kid", primary=True, encoder="net", n=30, overall=cell,
        overall_reference=floor, rows=[group("male", 0.02, floor), group(EVIL, 0.09, floor), group(NAMES[2], None)], gap=0.07, worst=EVIL,
    )  # fmt: skip
    semantic = SemanticTable(
        question="semantics:tumour=yes:sex", condition="tumour", value="yes", by=["sex"], basis="judge", overall=cell,
        overall_reference=None,
        rows=[
            SemanticRow(**group(name, value, reference).model_dump(), difference=difference)
            for name, value, reference, difference in (
                ("male", 0.9, floor, Cell(n=30, value=-0.02, low=-0.04, high=0.0)),
                (NAMES[3], 0.895, None, Cell(n=30, reason="no real images")),
                (EVIL, None, None, Cell(n=0, reason="no generated images")),
            )
        ],
        gap=0.005, worst=NAMES[3],
    )  # fmt: skip
    return AuditResult(
        real=facts(root / "real", 10), synthetic=facts(root / "generated", 12), real_rows="all",
        n={"real": 10, "real_compared": 10, "synthetic": 12}, seeds={"audit": 0}, settings={"out": EVIL, "judge": None},
        judges=[JudgeFacts(path="p", target="sex", groups=NAMES, auc=None, sha256="a" * 64, subjects_sha256="b", trained_here=True)],
        encoders=[EncoderFacts(path="p", name=EVIL, dim=8, sha256="c" * 64, features_real=10, features_synthetic=12)],
        presence=[presence], semantics=[semantic],
        quality=[quality, quality.model_copy(update={"metric": "fid", "overall_reference": None})],
        findings=[Finding(question="presence:sex", kind="presence", text=f"Presence: 83 % {EVIL} [80, 86]"),
                  Finding(question="caveat", kind="caveat", text="A raw count.")],
        monte_carlo=MonteCarlo(value=0.017, bound=0.031, p_value=0.0022),
        provenance={"made_at": "2026-01-01", "versions": {"torch": "2"}},
    )  # fmt: skip


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    tables = []
    for side, name, n in (("real", "real", 10), ("synthetic", "generated", 12)):
        table = write_cohort(tmp_path / name, n).table
        tables.append(pd.DataFrame({"side": side, "image": table["image"], "subject_id": table["subject_id"], "group.sex": table["sex"]}))
    pd.concat(tables, ignore_index=True).to_parquet(tmp_path / "audit.parquet")
    result_of(tmp_path).save(tmp_path / "audit.json")
    return tmp_path / "audit.json"
