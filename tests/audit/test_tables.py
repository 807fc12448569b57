"""Readings, tables and findings, on small tables of labels and arrays."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.audit.findings import auc, figure, headline_findings, points
from evenhand.audit.frame import Estimate
from evenhand.audit.readings import Reading, alike_column, cross, read_column
from evenhand.audit.tables import (
    Resampling,
    Scored,
    Sides,
    Whole,
    condition_labels,
    inception_table,
    overlap_tables,
    quality_table,
    real_floor,
    semantic_table,
    values_with_auc,
)
from evenhand.audit.verdicts import decide
from evenhand.cohorts.cohort import Cohort, CohortSchema

HOW = Resampling(repeats=2, n_boot=100, min_n=5, seed=0)


def cohort(**columns: list) -> Cohort:
    schema = CohortSchema(
        name="c", modality="m", attributes={"sex": ["male", "female"], "race": ["x", "y", "z"]}, conditions={}, image_size=8, image_mode="L"
    )
    return Cohort(schema, pd.DataFrame(columns), Path("nowhere"))


def reading(real: list, synthetic: list, names: list[str], basis: str = "requested") -> Reading:
    return Reading(("sex",), *(pd.Series(pd.Categorical(side, categories=names)) for side in (real, synthetic)), basis)


def test_requested_value_comes_first_then_the_judges_reading() -> None:
    real, judged = cohort(sex=["male", "female"]), pd.Series(["female", "female", "male"])
    cases = {
        "requested": ["male", "male", "female"],
        "mixed": ["male", "unspecified", "unknown"],
        "judge": ["unspecified", "unspecified", None],
    }
    for basis, asked in cases.items():
        found = read_column(real, cohort(sex=asked), "sex", judged)
        assert found.basis == basis
    assert read_column(real, cohort(sex=cases["mixed"]), "sex", judged).synthetic.tolist() == ["male", "female", "male"]
    assert read_column(real, cohort(sex=cases["requested"]), "sex", judged, prefer_judge=True).synthetic.tolist() == judged.tolist()
    blind = read_column(real, cohort(race=["x"] * 3), "sex", None)
    assert blind.basis == "none" and blind.synthetic.isna().all() and list(blind.real.cat.categories) == ["male", "female"]


def test_images_are_compared_by_groups_told_alike_on_both_sides() -> None:
    real = cohort(sex=["male", "female", "unknown"])
    judged = (pd.Series(["female", "female", "male"]), pd.Series(["male", "female", "female"]))
    silent = alike_column(real, cohort(sex=["unspecified"] * 3), "sex", judged)
    assert silent.basis == "judge" and silent.real.tolist() == judged[0].tolist() and silent.synthetic.tolist() == judged[1].tolist()
    mixed = alike_column(real, cohort(sex=["male", "unspecified", "female"]), "sex", judged)
    assert mixed.basis == "requested" and mixed.synthetic.isna().tolist() == [False, True, False] and mixed.real.isna().sum() == 1
    assert alike_column(real, cohort(sex=["unspecified"] * 3), "sex", None).basis == "none"
    some = mixed.kept(np.array([True, False, True]), np.array([False, True, True]))
    assert some.synthetic.tolist()[1] == "female" and len(some.real) == 2 and list(some.real.cat.categories) == ["male", "female"]


def test_an_intersection_keeps_its_empty_cells() -> None:
    real = cohort(sex=["male", "female", "unknown"], race=["x", "x", "y"])
    parts = [read_column(real, real, name, None) for name in ("sex", "race")]
    both = cross(parts)
    assert list(both.real.cat.categories) == ["male x x", "male x y", "male x z", "female x x", "female x y", "female x z"]
    assert both.real.tolist()[:2] == ["male x x", "female x x"] and both.real.isna().tolist() == [False, False, True]


def test_quality_names_the_worse_group_only_where_intervals_part() -> None:
    rng = np.random.default_rng(0)
    groups = ["male"] * 80 + ["female"] * 60
    real, good = rng.normal(size=(140, 6)), rng.normal(size=(140, 6))
    bad = np.where(np.arange(140)[:, None] < 80, good, 0.2 * good + 0.5)
    texts = {}
    for name, synthetic in (("good", good), ("bad", bad)):
        sides = Sides(real, synthetic, np.arange(140) // 2, np.arange(140))
        table = quality_table(
            reading(groups, groups, ["male", "female", "other"]), sides, Whole.of(sides, HOW), "kid", "net", HOW, primary=True
        )
        assert table.n == 60 and table.rows[2].reason == "no real images" and table.rows[2].value is None
        assert table.rows[0].reference is not None and table.rows[0].reference.low <= 0 <= table.rows[0].reference.high
        texts[name] = headline_findings([table], decide([table], []))[0].text
    assert "no gap is shown, adjusted p = " in texts["good"]
    assert "images of female lie further" in texts["bad"] and "adjusted p = " in texts["bad"]


def test_overlap_and_variety_at_one_n() -> None:
    rng = np.random.default_rng(3)
    groups = ["male"] * 80 + ["female"] * 40
    real, made = rng.normal(size=(120, 4)), rng.normal(size=(120, 4))
    made[:80] = 0.05 * made[:80] + 6  # far away and all alike
    sides = Sides(real, made, np.arange(120), np.arange(120))
    tables = {table.metric: table for table in overlap_tables(reading(groups, groups, ["male", "female", "other"]), sides, "net", HOW)}
    assert set(tables) == {"precision", "recall", "density", "coverage"} and {table.n for table in tables.values()} == {40}
    for table in tables.values():
        male, female, other = table.rows
        assert male.value == 0 and female.value is not None and female.value > 0.5 and table.worst == "male"
        assert other.value is None and other.reason == "no real images" and table.direction == "higher" and not table.primary
    alike, varied = np.full((120, 2), 0.5), np.eye(2)[np.arange(120) % 2]
    table = inception_table(reading(groups, groups, ["male", "female"]), Sides(varied, alike, *[np.arange(120)] * 2), "judge", HOW)
    assert table.overall.value == 0 and table.rows[0].reference is not None
    assert table.rows[0].reference.value == pytest.approx(np.log(2), abs=0.02)


def test_the_floor_splits_by_subject_and_needs_enough_images() -> None:
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(30), 4)
    features = rng.normal(size=(30, 5))[subjects] + 0.01 * rng.normal(size=(120, 5))
    sides = Sides(features, features, subjects, subjects)
    floor = real_floor(sides, np.ones(120, dtype=bool), HOW)
    assert floor.value is not None and floor.low <= 0 <= floor.high
    assert real_floor(sides, subjects == 0, HOW).reason.startswith("insufficient")
    assert real_floor(sides, np.zeros(120, dtype=bool), HOW).value is None


def test_semantics_takes_labels_from_the_table() -> None:
    asked = pd.Series(["glaucoma", "non-glaucoma", None, "glaucoma", "non-glaucoma", "White matter"] * 4)
    labels = condition_labels(asked, "glaucoma")
    assert labels[:6].tolist() == [1, 0, -1, 1, 0, 0]
    scores = np.where(labels == 1, 0.9, 0.2)
    groups = reading(["male"] * 24, ["male"] * 12 + ["female"] * 12, ["male", "female"])
    scored = Scored(scores, labels, np.arange(24))
    table = semantic_table(groups, "eye", "glaucoma", scored, scored, HOW)
    assert table.overall.value == 1 and table.overall.n == 20
    female = table.rows[1]
    assert female.value == 1 and female.reference is not None and female.reference.reason == "no labelled images"
    assert values_with_auc(["none", "tumour"]) == ["tumour"] and values_with_auc(["a", "b", "c"]) == ["a", "b", "c"]
    assert female.difference.value is None and female.difference.reason == "real images: no labelled images"
    assert table.gap is None and table.p_value is None and "by sex" not in headline_findings([table])[0].text
    both = reading(*[["male"] * 12 + ["female"] * 12] * 2, ["male", "female"])
    told = semantic_table(both, "eye", "glaucoma", scored, scored, HOW)
    assert (told.gap, told.p_value) == (0, 1) and "the same difference to real images in all groups" in headline_findings([told])[0].text
    blurred = Scored(np.where(np.arange(24) < 12, scores, 0.5), labels, np.arange(24))
    worse = semantic_table(both, "eye", "glaucoma", scored, blurred, HOW)
    said = "lowest against real images for female (0.50 [0.50, 0.50], real 1.00"
    assert worse.worst == "female" and said in headline_findings([worse])[0].text


def test_figures_in_words() -> None:
    assert [figure(x) for x in (0.01234, 0.456, 12.34, 345.6, -0.0001)] == ["0.012", "0.46", "12.3", "346", "-0.0001"]
    assert auc(Estimate(0.998, 0.996, 1.0, 9)) == "0.998 [0.996, 1.000]" and auc(Estimate(0.9, 0.8, 1.0, 9)) == "0.90 [0.80, 1.00]"
    assert points(0.333) == "33 points" and points(0.0123) == "1.2 points"
