"""Sex and age from captions: what counts as said of the patient, and the words that only look like it."""

import csv
from pathlib import Path

import pytest
from cohorts.raw_data import real_data

from evenhand.cohorts.sources.captions import Mined, mine

VERDICTS = Path(__file__).parents[2] / "benchmarks" / "caption_verdicts.csv"


def groups(caption: str) -> tuple[str, str, str]:
    found = mine(caption)
    return found.sex, found.age_group, found.age


@pytest.mark.parametrize(
    ("caption", "sex", "age_group", "age"),
    [
        ("CT of a 45-year-old woman with a mass", "female", "<60", "45Y"),
        ("Radiograph of a 3 month-old male infant.", "male", "<60", "3M"),
        ("A 60-year-old lady", "female", ">=60", "60Y"),
        ("59.9 years old male", "male", "<60", "59.9Y"),
        ("Pelvic MRI (M/72).", "male", ">=60", "72Y"),
        ("MRI, 45/F, axial", "female", "<60", "45Y"),
        ("Chest film, 61 y/o F", "female", ">=60", "61Y"),
        ("Another 10 yo male with arthritis", "male", "<60", "10Y"),
        ("Fifty-two years old, male, 75kg", "male", "<60", "52Y"),
        ("subgroup B2.Sixty years old, male", "male", ">=60", "60Y"),
        ("Eight-year-old girl", "female", "<60", "8Y"),
        ("Male patient, 33 years old, MEN 2", "male", "<60", "33Y"),
        ("female, 42 years, axial T2", "female", "<60", "42Y"),
        ("stage 3 in a male aged 17 years", "male", "<60", "17Y"),
        ("CT scan of the 31 year adult male", "male", "<60", "31Y"),
        ("forearm of 21 years old man", "male", "<60", "21Y"),
        ("a 9-year old female MPS VI patient", "female", "<60", "9Y"),
        ("Postmortem CT in a girl age 6 years 11 months", "female", "<60", "6Y"),
        ("a 19-year-old-man", "male", "<60", "19Y"),
        ("a 46-year-old Caucasian man", "male", "<60", "46Y"),
        ("a 45‐year‐old woman’s knee", "female", "<60", "45Y"),
        ("Young woman after a fall", "female", "unknown", ""),
        ("In a male patient free fluid", "male", "unknown", ""),
        ("a 12 year old child", "unknown", "<60", "12Y"),
        ("at the age of 9 months", "unknown", "<60", "9M"),
        ("the patient at age 9. Note the layers", "unknown", "<60", "9Y"),
        ("A newborn of 3 hours old", "unknown", "<60", "1D"),
        ("Figure 2: a 64-year-old man operated at the age of 30 years", "male", ">=60", "64Y"),  # "old" counts before "age of"
    ],
)
def test_what_is_said_of_the_patient(caption, sex, age_group, age) -> None:
    assert groups(caption) == (sex, age_group, age)
    assert mine(caption).refused == ""


@pytest.mark.parametrize(
    "caption",
    [
        "Mammogram of a pregnant patient; the prostate and the breast are normal",  # organs and states are not a sex
        "Manganese-enhanced human brain, Germany; a many-layered humanoid",  # 'man' inside words
        "The female connector of the catheter and the male end",
        "Excelsotarsonemus caravelis (female)",
        "A man-made device",
        "Lady Windermere syndrome",
        "Michelin man sign",
        "Tumour in MEN-1, MEN 2A",
        "His bundle catheter; HIS, HER2/neu-positive",
        "Her right hip and his lungs",  # pronouns alone
        "18F-FDG PET and a 12 F/14 F sheath, 6F/7 catheter",
        "a 2-year-old fracture; a 5 year old infarct",
        "bone age of 7 years 4 months",
        "gestational age 21 weeks, mean age 62 years",
        "Radiograph 5 years after surgery, 2-year follow-up",
        "aged 20-40 years",
        "10- to 12-year-old fragments",
        "A 26-week scan",
        "Age related atrophy",
        "",
    ],
)
def test_what_only_looks_like_it(caption) -> None:
    assert mine(caption) == Mined()


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("4-year-old, spayed, female Boxer dog", "an animal or a phantom"),
        ("a 6-month old mouse bladder", "an animal or a phantom"),
        ("male anthropomorphic phantom of an adult male", "an animal or a phantom"),
        ("Fetus of a 30-year-old woman", "a fetus"),
        ("MRI of a 5-year-old boy and of his 35-year-old mother", "a relative or a donor"),
        ("Kidney of a 50-year-old female donor", "a relative or a donor"),
        ("A 45-year-old man, and two other patients", "several patients"),
        ("young man; larger than in young men", "several patients"),
        ("Twins: a 3-day-old girl", "several patients"),
    ],
)
def test_nothing_is_taken_where_the_patient_is_not_plain(caption, why) -> None:
    assert mine(caption) == Mined(refused=why)


@pytest.mark.parametrize(
    ("caption", "age_group", "why"),
    [
        ("(a) a 45-year-old man, (b) a 50-year-old woman", "<60", "both sexes are named"),
        ("(a) a 45-year-old man, (b) a 70-year-old woman", "unknown", "both sexes are named"),
        ("(a) a 45-year-old man, (b) a 50-year-old patient", "<60", "several patients"),
        ("a 45-year-old woman; his wrist", "<60", "both sexes are named"),
        ("A 28-year-old male-to-female patient", "<60", "sex or gender is itself the matter"),
        ("A 28-year-old transgender man", "<60", "sex or gender is itself the matter"),
        ("(a) a 45-year-old patient, (b) a 70-year-old patient", "unknown", "ages on both sides of 60"),
    ],
)
def test_two_patients_and_contradictions_have_no_sex(caption, age_group, why) -> None:
    found = mine(caption)
    assert (found.sex, found.age_group, found.refused) == ("unknown", age_group, why)


def test_an_impossible_age_is_unknown() -> None:
    assert groups("a 412-year-old man") == ("male", "unknown", "412Y")


def test_verdicts_that_were_read_still_hold_of_the_pattern() -> None:
    """What the docs say of the pattern was measured with these values; a change of the pattern asks for new readings."""
    lines = (real_data("roco") / "data/validation/radiology/captions.txt").read_text().splitlines()
    captions = dict(line.split("\t", 1) for line in lines)
    with VERDICTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 300
    for row in rows:
        found = mine(captions[row["roco_id"]])
        assert (found.sex, found.age_group) == (row["sex"], row["age_group"]), row["roco_id"]
    named = {key for key, text in captions.items() if mine(text).sex != "unknown" or mine(text).age_group != "unknown"}
    assert named == {row["roco_id"] for row in rows if row["sample"] == "named"}
