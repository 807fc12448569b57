"""Prompts that contradict the table, names that are code, and arrays that no metric can be computed from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evenhand.audit.equity import equity_scaled
from evenhand.audit.fidelity import frechet_distance, kernel_distance
from evenhand.audit.frame import Estimate, SubgroupFrame
from evenhand.audit.gaps import quality_gap
from evenhand.audit.intervals import FeatureError
from evenhand.audit.manifold import clip_distance, log_inception_score, manifold_metrics
from evenhand.audit.memorization import authenticity, copy_rate
from evenhand.audit.reliability import brier_score, expected_calibration_error
from evenhand.audit.representation import estimate_mix
from evenhand.audit.result import AuditResult
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.audit.semantics import group_auc, odds_difference, parity_difference
from evenhand.audit.subsampling import size_matched
from evenhand.audit.utility import utility_difference
from evenhand.cli import app
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.report.html import write_report

TRAPS = [
    "fundus, negative for glaucoma",
    "White matter lesions, a Black hole sign",
    "non-glaucoma, female doctor, male nurse",
    "glaucoma\nnegative\nmale",
    '<script>alert(1)</script>, "male", positive for nothing',
]


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder of images with a CSV whose prompts say other things than its columns; and the columns."""
    root = tmp_path_factory.mktemp("trapped")
    drawn = write_phantoms("fundus", root / "drawn", n=120, size=32, seed=0)
    table = pd.DataFrame(
        {
            "image": [str(drawn.image_path(name)) for name in drawn.table["image"]],
            "patient": np.arange(120) // 2,
            "race": np.array(["White", "Black", "=cmd()|' /C calc'!A0"])[np.arange(120) % 3],
            "eye": np.where(drawn.table["glaucoma"] == "glaucoma", "glaucoma", "non-glaucoma"),
            "prompt": [TRAPS[place % len(TRAPS)] for place in range(120)],
        }
    )
    (root / "raw").mkdir()
    for place, source in enumerate(table["image"]):
        (root / "raw" / f"{place}.png").write_bytes(Path(source).read_bytes())
    table["image"] = [f"{place}.png" for place in range(120)]
    table.to_csv(root / "raw" / "metadata.csv", index=False)
    return root, table


def test_groups_and_labels_come_from_columns_whatever_prompts_say(trapped: tuple[Path, pd.DataFrame], monkeypatch: Any) -> None:
    root, table = trapped
    monkeypatch.setenv("EVENHAND_CACHE", str(root / "cache"))
    given = ["--subject-column", "patient", "--attributes", "race", "--conditions", "eye", "--size", "32", "--prompt-column", "prompt"]
    for name, more in (("real", []), ("generated", ["--synthetic"])):
        found = CliRunner().invoke(app, ["cohort", "import", "table", str(root / "raw" / "metadata.csv"), str(root / name), *given, *more])
        assert found.exit_code == 0, found.output
    cohort = Cohort.load(root / "generated")
    np.testing.assert_array_equal(cohort.table["race"], table["race"])  # names stay as they are; what shows them makes them harmless
    np.testing.assert_array_equal(cohort.table["eye"], table["eye"])
    assert cohort.schema.conditions["eye"] == ["glaucoma", "non-glaucoma"] and cohort.table["prompt"].iloc[3] == "glaucoma negative male"
    small = {"judge_epochs": 0.5, "repeats": 2, "n_boot": 100, "min_n": 5, "copies": False}
    result = audit_cohorts(AuditSettings(real=root / "real", synthetic=root / "generated", out=root / "audit.json", **small))
    shares = next(part for part in result.presence if part.by == ["race"])
    assert {row.group: row.raw for row in shares.rows} == {name: pytest.approx(1 / 3) for name in set(table["race"])}
    assert shares.gap == pytest.approx(0, abs=1e-9) and shares.basis == "requested"
    positive = [part.value for part in result.semantics]
    assert set(positive) == {"non-glaucoma"} and result.semantics[0].overall.n == 120
    for format, name in (("html", "report.html"), ("csv", "report.csv"), ("markdown", "report.md"), ("data-card", "README.md")):
        text = write_report([root / "audit.json"], root / name, format).read_text()
        assert "<script>alert" not in text
        assert not any(line.startswith("=cmd") or ",=cmd" in line or ',"=cmd' in line for line in text.splitlines())
    assert AuditResult.load(root / "audit.json") == result


def frame(values: list[float]) -> SubgroupFrame:
    cells = {name: (Estimate(value, value, value, 20), "") for name, value in zip("abc", values, strict=False)}
    return SubgroupFrame.of(cells, Estimate(0.8, 0.7, 0.9, 40), True)


def sweep() -> dict[str, Callable[[np.ndarray], Any]]:
    """Every public measure as a function of one side's features, scores or images (n, 4)."""
    good = np.random.default_rng(0).random((40, 4))
    groups = lambda x: np.array(["a", "b"] * len(x))[: len(x)]  # noqa: E731
    labels = lambda x: (np.arange(len(x)) // 2) % 2  # noqa: E731
    one = lambda x: x[:, 0] if x.ndim == 2 else x[:, None]  # noqa: E731
    both = lambda x: np.column_stack([one(x), 1 - one(x)]) if x.dtype.kind == "f" else x[:, :2]  # noqa: E731
    picture = lambda x: np.repeat(np.repeat(np.atleast_2d(x)[:, :, None], 4, axis=1), 16, axis=2)  # noqa: E731
    textures = np.random.default_rng(1).random((30, 16, 16))
    return {
        "frechet": lambda x: frechet_distance(x, good),
        "kernel": lambda x: kernel_distance(good, x),
        "size_matched": lambda x: size_matched(good, x, groups(good), groups(x), "frechet", repeats=2),
        "gap": lambda x: quality_gap(x, good, groups(x), groups(good), n_boot=99),
        "manifold": lambda x: manifold_metrics(good, x),
        "mmd": lambda x: clip_distance(good, x),
        "log-is": lambda x: log_inception_score(both(x)),
        "mix": lambda x: estimate_mix(both(x), both(good), labels(good), n_boot=20),
        "mix features": lambda x: estimate_mix(both(good), both(good), labels(good), features=x, calibration_features=good, n_boot=20),
        "auc": lambda x: group_auc(one(x), labels(x), groups(x), n_boot=50),
        "ece": lambda x: expected_calibration_error(one(x), labels(x), groups(x), n_boot=50),
        "brier": lambda x: brier_score(one(x), labels(x), groups(x), n_boot=50),
        "utility": lambda x: utility_difference(labels(x), one(x), one(x), groups(x), n_boot=50),
        "authenticity": lambda x: authenticity(good, x),
        "copies": lambda x: copy_rate(textures, textures[::-1] * 0.5 + np.random.default_rng(2).random((30, 16, 16)) / 2, picture(x)),
    }


@pytest.mark.parametrize("name", list(sweep()))
@pytest.mark.parametrize("bad", ["nan", "inf", "one row", "no rows", "one dimension", "text"])
def test_what_cannot_be_measured_is_a_one_line_error_or_undefined(name: str, bad: str) -> None:
    x = np.random.default_rng(3).random((40, 4))
    if bad in ("nan", "inf"):
        x[7, 0] = np.nan if bad == "nan" else np.inf
    given: Any = {"one row": x[:1], "no rows": x[:0], "one dimension": x[:, 0], "text": np.full((40, 4), "high")}.get(bad, x)
    try:
        found = sweep()[name](given)
    except FeatureError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert bad not in ("nan", "inf"), f"{name} took {bad} and found {found}"


@pytest.mark.parametrize("name", list(sweep()))
def test_constant_features_are_measured_or_undefined(name: str) -> None:
    try:
        sweep()[name](np.full((40, 4), 0.5))
    except FeatureError as error:
        assert "\n" not in str(error)


def test_equity_of_nothing_and_of_one_group_is_undefined() -> None:
    assert np.isnan(equity_scaled(0.8, frame([0.8]), higher_is_better=True))
    assert np.isnan(equity_scaled(np.nan, frame([0.8, 0.7]), higher_is_better=True))


def test_one_group_only_or_one_without_positives_is_undefined_and_never_perfect() -> None:
    labels, guess = np.array([0, 1] * 20), np.array([0, 1, 1, 0] * 10)
    assert np.isnan(parity_difference(labels, guess, ["a"] * 40)) and np.isnan(odds_difference(labels, guess, ["a"] * 40))
    groups = np.where(np.arange(40) % 2 == 0, "a", "b")  # a has negatives only
    assert np.isnan(odds_difference(labels, guess, groups))


def test_missing_labels_are_no_group() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    groups = np.array(["a", "b", None, "unknown", -1, float("nan")] * 10, dtype=object)
    assert size_matched(x, y, groups, groups, "kid").by_group.index.tolist() == ["a", "b"]
    assert quality_gap(x, y, groups, groups, n_boot=99).by_group.index.tolist() == ["a", "b"]
    assert group_auc(x[:, 0], rng.integers(2, size=60), groups, n_boot=50).by_group.index.tolist() == ["a", "b"]
