"""The presence chapter: requested, judged and corrected, refused, or anchored by a hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from evenhand.audit.findings import presence_finding
from evenhand.audit.presence import JudgedColumn, PresenceData, Target, presence_table, target_shares
from evenhand.audit.readings import Reading, cross, hand_labels, judged, read_column
from evenhand.audit.result import PresenceTable
from evenhand.cohorts.cohort import Cohort, CohortSchema
from evenhand.core.errors import UserError
from evenhand.core.groups import parse_mix

GROUPS = {"sex": ["male", "female"], "race": ["x", "y"]}


def cohort(n: int, **columns: list) -> Cohort:
    schema = CohortSchema(name="c", modality="m", attributes=GROUPS, conditions={}, image_size=8, image_mode="L")
    names = [f"images/{i}.png" for i in range(n)]
    return Cohort(schema, pd.DataFrame({"image": names, "subject_id": names, **columns}), Path("nowhere"))


def sensitive(rng: np.random.Generator, labels: np.ndarray, moved: float = 0.0) -> np.ndarray:
    """Probabilities (n, 2) of a judge that is right four times in five; in each group its errors are the quantiles of a normal law."""
    errors = np.empty(len(labels))
    for rows in (np.flatnonzero(labels == group) for group in GROUPS["sex"]):
        errors[rows] = ndtri((rng.permutation(len(rows)) + 0.5) / len(rows))
    logits = 1.68 * (errors + 1.68 * ((labels == "female") - 0.5)) + moved
    second = 1 / (1 + np.exp(-logits))
    return np.column_stack([1 - second, second])


def in_shares(n: int, share: float) -> np.ndarray:
    """Labels (n,) of exactly this share of men, in every run of twenty alike."""
    return np.where(np.arange(n) % 20 < round(20 * share), "male", "female")


def world(share: float, asked_race: list[str], moved: float = 0.0, labels: dict | None = None) -> tuple[PresenceData, Reading, Reading]:
    rng = np.random.default_rng(0)
    truth, shown = in_shares(900, 0.5), in_shares(600, share)
    real = cohort(900, sex=truth.tolist(), race=["x", "y"] * 450)
    synthetic = cohort(600, sex=["unspecified"] * 600, race=asked_race)
    probs = sensitive(rng, truth), sensitive(rng, shown, moved)
    noise = rng.normal(size=(900, 4)), rng.normal(size=(600, 4))
    data = PresenceData(real, synthetic, np.ones(900, dtype=bool), {"sex": JudgedColumn(GROUPS["sex"], *probs, lambda: noise)},
                        labels or {}, n_boot=100, seed=0)  # fmt: skip
    return data, read_column(real, synthetic, "sex", judged(probs[1], GROUPS["sex"])), read_column(real, synthetic, "race", None)


def shares(table: PresenceTable) -> dict[str, float | None]:
    return {row.group: row.value for row in table.rows}


def test_a_judges_count_is_corrected_and_the_headline_reads_as_promised() -> None:
    data, sex, _ = world(0.9, ["x"] * 600)
    table = presence_table(sex, target_shares([sex], parse_mix("sex=male:0.5,female:0.5")), data)
    male = table.rows[0]
    assert male.raw is not None and male.value is not None and male.low is not None and male.high is not None
    assert male.raw < 0.8 and male.value == pytest.approx(0.9, abs=0.08) and male.low < 0.9 < male.high
    assert table.identifiable and table.gap == pytest.approx(male.value - 0.5, abs=1e-6) and table.n_calibration == 900
    assert presence_finding(table).text == (
        f"Presence by sex: {100 * male.value:.0f} % male [{100 * male.low:.0f}, {100 * male.high:.0f}] by the judge, corrected, "
        f"target 50 %: gap {100 * table.gap:.0f} points."
    )


def test_a_moved_judge_gives_no_share_and_a_hand_gives_it_back() -> None:
    target = Target({"male": 0.5, "female": 0.5})
    data, sex, _ = world(0.5, ["x"] * 600, moved=1.5)
    refused = presence_table(sex, target, data)
    assert refused.identifiable is False and refused.gap is None and "fit no mixture" in refused.refusal
    assert "not identifiable, so no share is given" in presence_finding(refused).text
    hand = pd.Series(np.where(np.arange(600) < 150, in_shares(600, 0.5), None), dtype=object)
    data, sex, _ = world(0.5, ["x"] * 600, moved=1.5, labels={"sex": hand})
    labelled = presence_table(sex, target, data)
    assert labelled.identifiable and labelled.method == "labelled" and shares(labelled)["male"] == pytest.approx(0.5, abs=0.1)
    assert "with labels of a hand" in presence_finding(labelled).text


def test_requested_and_judged_columns_cross() -> None:
    data, sex, race = world(0.8, ["x"] * 450 + ["y"] * 150)
    both = cross([sex, race])
    table = presence_table(both, target_shares([sex, race], None), data)
    found = shares(table)
    assert table.basis == "mixed" and list(found) == ["male x x", "male x y", "female x x", "female x y"]
    assert found["male x x"] + found["female x x"] == pytest.approx(0.75)
    assert found["male x x"] == pytest.approx(0.6, abs=0.08)  # type: ignore[operator]
    assert {row.group: row.target for row in table.rows}["male x x"] == pytest.approx(0.25, abs=0.04)
    requested = presence_table(race, target_shares([race], None), data)
    assert shares(requested) == {"x": 0.75, "y": 0.25} and requested.method == "requested" and requested.gap == pytest.approx(0.25)


def test_without_held_out_images_or_a_judge_there_is_no_share() -> None:
    data, sex, _ = world(0.8, ["x"] * 600)
    blind = PresenceData(data.real, data.synthetic, np.zeros(900, dtype=bool), data.columns, {}, 100, 0)
    table = presence_table(sex, target_shares([sex], None), blind)
    assert table.identifiable is False and "held out" in table.refusal and shares(table) == {"male": None, "female": None}
    silent = read_column(data.real, data.synthetic, "sex", None)
    nothing = presence_table(silent, target_shares([silent], None), data)
    assert nothing.gap is None and all(row.raw is None and "silent" in row.reason for row in nothing.rows)
    assert "undefined" in presence_finding(nothing).text


def test_an_absent_group_stays_with_a_share_of_nothing() -> None:
    data, _, race = world(0.8, ["x"] * 600)
    table = presence_table(race, target_shares([race], None), data)
    assert shares(table) == {"x": 1.0, "y": 0.0} and table.rows[1].target == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sex\nmale\n", "wants a column image and one or more of sex, race; it has sex"),
        ("image,sex\nimages/9.png,male\n", "row 2: image 'images/9.png' is not in nowhere"),
        ("image,sex\nimages/0.png,male\nimages/0.png,male\n", "row 3: image 'images/0.png' stands twice; keep one row per image"),
        ("image,sex\nimages/0.png,man\n", "row 2: sex has no group 'man'; .*male, female"),
        ("image,sex\nimages/0.png,male, sure\n", "row 2: 3 cells for 2 columns; quote cells that hold a comma"),
        ("image,sex,race\nimages/0.png,male\n", "row 2: 2 of 3 cells: no value in column 'race'; the row is cut short"),
        ("image,Sex,race\nimages/0.png,male,x\n", "column 'Sex' is 'sex' in nowhere; rename it"),
        ("image,sex,RACE \nimages/0.png,male,x\n", "column 'RACE' is 'race' in nowhere; rename it"),
        ("image,sex,sex\nimages/0.png,male,\n", "column 'sex' stands twice in the header"),
    ],
)
def test_bad_labels_name_file_row_and_value(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        hand_labels(tmp_path / "labels.csv", cohort(3))


def test_labels_are_found_by_image(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,sex,race\nimages/2.png,female,\nimages/0.png,unknown,\n")
    found = hand_labels(tmp_path / "labels.csv", cohort(3))
    assert list(found) == ["sex"] and found["sex"].tolist() == [None, None, "female"]


def test_labels_mean_what_they_mean_in_any_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,sex\nimages/0.png,MALE\nimages/1.png,N/A\nimages/2.png,Fe\u00admale\n")
    assert hand_labels(tmp_path / "labels.csv", cohort(3))["sex"].tolist() == ["male", None, "female"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("labels.csv", "image;sex\r\nimages/2.png;female\r\n".encode("utf-16")),
        ("labels.tsv", "image\tsex\nimages/2.png\t female \n\n".encode("utf-8-sig")),
        ("labels.json", b'[{"image": "images/2.png", "sex": "female"}, {"image": "images/1.png"}]'),
    ],
)
def test_labels_are_read_as_any_table(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert hand_labels(tmp_path / name, cohort(3))["sex"].tolist() == [None, None, "female"]


def test_a_target_of_few_patients_with_many_images_is_no_exact_one() -> None:
    patients = np.repeat(np.arange(60), 33)
    sexes = pd.Series(pd.Categorical(np.where(patients % 2 == 0, "male", "female"), categories=["male", "female"]))
    reading = Reading(("sex",), sexes, sexes, "requested")
    by_patient, by_image = target_shares([reading], None, patients), target_shares([reading], None)
    assert by_patient.shares == by_image.shares == {"male": 0.5, "female": 0.5}
    assert by_patient.n == by_image.n == 1980 and by_patient.effective == pytest.approx(60) and by_image.effective == pytest.approx(1980)


def singles(sexes: list[str], races: list[str]) -> list[Reading]:
    both = cohort(len(sexes), sex=sexes, race=races)
    return [read_column(both, both, name, None) for name in GROUPS]


def test_a_target_of_one_column_holds_in_its_crossings_and_real_images_say_the_rest() -> None:
    parts = singles(["male"] * 8 + ["female"] * 4, ["x"] * 6 + ["y"] * 2 + ["x"] + ["y"] * 3)
    target = target_shares(parts, parse_mix("sex=male:0.5,female:0.5"))
    assert target.shares == pytest.approx({"male x x": 0.375, "male x y": 0.125, "female x x": 0.125, "female x y": 0.375})
    # eight images count 0.75 each and four 1.5: 12^2 / (8 * 0.75^2 + 4 * 1.5^2)
    assert target.n == 12 and target.effective == pytest.approx(144 / 13.5) and target.stated == ("sex",)
    unstated = target_shares(parts, None)
    assert unstated.shares == pytest.approx({"male x x": 6 / 12, "male x y": 2 / 12, "female x x": 1 / 12, "female x y": 3 / 12})
    assert unstated.stated == () and unstated.effective == pytest.approx(12)
    both = target_shares(parts, parse_mix("race*sex=x/male:0.7,y/female:0.3"))
    assert both.shares == {"male x x": 0.7, "male x y": 0.0, "female x x": 0.0, "female x y": 0.3} and both.n == 0


def test_a_stated_group_that_no_real_image_shows_leaves_its_crossings_undefined() -> None:
    parts = singles(["male"] * 6, ["x", "y"] * 3)
    target = target_shares(parts, parse_mix("sex=male:0.5,female:0.5"))
    assert target.shares == {} and "the target wants female, and no real image" in target.reason
    data, sex, race = world(0.8, ["x"] * 300 + ["y"] * 300)
    table = presence_table(cross([sex, race]), target, data)
    assert table.gap is None and all(row.target is None and "wants female" in row.reason for row in table.rows)
    wholly_male = target_shares(parts, parse_mix("sex=male:1,female:0"))
    assert wholly_male.shares == {"male x x": 0.5, "male x y": 0.5, "female x x": 0.0, "female x y": 0.0}


def test_a_few_silent_images_stay_out_and_ask_no_judge() -> None:
    asked = ["male"] * 60 + ["female"] * 38 + ["unspecified"] * 2
    real, synthetic = cohort(20, sex=["male", "female"] * 10), cohort(100, sex=asked)
    reading = read_column(real, synthetic, "sex", pd.Series(["female"] * 100))
    assert reading.basis == "requested" and reading.synthetic.isna().sum() == 2


def test_the_few_that_are_silent_on_one_column_stay_out_of_its_crossing_with_a_judged_one() -> None:
    data, sex, race = world(0.8, ["x", "y"] * 290 + ["unspecified"] * 20)
    assert race.basis == "requested"
    table = presence_table(cross([sex, race]), target_shares([sex, race], None), data)
    assert table.identifiable and table.n == 580 and sum(row.value or 0 for row in table.rows) == pytest.approx(1)
    assert shares(table)["male x x"] == pytest.approx(0.4, abs=0.06)
