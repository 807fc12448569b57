"""Before and after: paired on the same samples, and gaps that closed from above."""

import numpy as np
import pandas as pd
import pytest

from evenhand.audit.comparison import compare
from evenhand.audit.result import AuditResult, Cell, CohortFacts, JudgeFacts, MonteCarlo, SemanticRow, SemanticTable


def audit(values: dict[str, float], judge: str = "j", real: str = "r") -> AuditResult:
    facts = CohortFacts(
        path="p", name="n", modality="m", n=2, subjects=2, sha256=real, synthetic=True, source="", licence="", model_sha256=None,
        image_size=8, made_at=None,
    )  # fmt: skip
    rows = [
        SemanticRow(group=name, n=50, value=v, low=v - 0.01, high=v + 0.01, n_real=50, n_synthetic=50, difference=Cell(n=50))
        for name, v in values.items()
    ]
    table = SemanticTable(
        question="semantics:tumour=yes:sex", condition="tumour", value="yes", by=["sex"], basis="requested",
        overall=Cell(n=100, value=0.8, low=0.7, high=0.9), overall_reference=None, rows=rows, gap=None, worst=None,
    )  # fmt: skip
    seen = JudgeFacts(path="p", target="tumour", groups=["no", "yes"], auc=0.9, sha256=judge, subjects_sha256="s", trained_here=True)
    return AuditResult(
        real=facts, synthetic=facts, real_rows="val+test", n={}, seeds={}, settings={}, judges=[seen], encoders=[], presence=[], quality=[],
        semantics=[table], findings=[], provenance={}, monte_carlo=MonteCarlo(value=0.0, bound=0.0, p_value=0.0),
    )  # fmt: skip


def images(sharpness: float, names: str = "i", n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2
    score = 1 / (1 + np.exp(-(sharpness * label + rng.normal(size=n))))
    return pd.DataFrame(
        {
            "side": "synthetic", "image": [f"{names}{i}" for i in range(n)], "subject_id": [str(i) for i in range(n)],
            "condition.tumour": np.where(label == 1, "yes", "no"), "judge.tumour.yes": score,
        }
    )  # fmt: skip


LEVEL = {"male": 0.9, "female": 0.8}


def test_a_better_model_is_told_from_the_same_on_the_same_samples() -> None:
    same = compare(audit(LEVEL), audit(LEVEL), (images(1.0), images(1.0)))
    assert same.changes[0].difference.estimate.value == 0 and same.changes[0].difference.p_value == pytest.approx(1)
    better = compare(audit(LEVEL), audit(LEVEL), (images(1.0), images(2.0).sample(frac=1, random_state=1)))
    (change,) = better.changes
    assert change.label == "AUC of tumour = yes" and change.n == 200 and change.difference.estimate.low > 0.05
    assert change.difference.p_value < 0.01


def test_what_cannot_be_paired_says_why() -> None:
    pair = images(1.0), images(1.0, names="other")
    assert "no image names in common" in compare(audit(LEVEL), audit(LEVEL), pair).unpaired
    assert "judges of tumour differ" in compare(audit(LEVEL), audit(LEVEL, judge="k"), (images(1.0), images(1.0))).unpaired
    assert "real cohorts differ" in compare(audit(LEVEL), audit(LEVEL, real="q"), (images(1.0), images(1.0))).unpaired
    asked_otherwise = images(1.0).assign(**{"condition.tumour": "unspecified"})
    assert "asked for the same tumour" in compare(audit(LEVEL), audit(LEVEL), (images(1.0), asked_otherwise)).unpaired


def test_a_gap_closed_from_above_is_levelling_down() -> None:
    pair = images(1.0), images(1.0)
    worse, better = audit({"male": 0.81, "female": 0.8}), audit({"male": 0.9, "female": 0.89})
    assert "Levelling down" in compare(audit(LEVEL), worse, pair).levelling[0].text
    assert compare(audit(LEVEL), better, pair).levelling == []
