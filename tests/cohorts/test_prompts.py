"""Prompts: the published wording, silence on chosen attributes, and what is unknown."""

import pytest

from evenhand.cohorts.prompts import TEMPLATES, check_state, template_pattern, write_prompt
from evenhand.core.errors import UserError


@pytest.mark.parametrize(
    ("modality", "attributes", "conditions", "prompt"),
    [
        (
            "dermoscopy",
            {"sex": "female", "age_group": ">=60"},
            {"malignancy": "malignant"},
            "Dermoscopic image of a female >=60 patient with the following diagnostic category: malignant",
        ),
        (
            "chest",
            {"sex": "male", "race": "Asian"},
            {"effusion": "none"},
            "Chest Radiography image of a male Asian patient diagnosed with non Pleural Effusion",
        ),
        (
            "chest",
            {"race": "White", "sex": "female"},
            {"effusion": "effusion"},
            "Chest Radiography image of a female White patient diagnosed with Pleural Effusion",
        ),
        (
            "fundus",
            {"race": "Black", "gender": "female", "ethnicity": "Hispanic"},
            {"cup_disc_ratio": "borderline", "glaucoma": "none", "md_severity": "mild"},
            "SLO fundus image of a Black female Hispanic patient with the following conditions: "
            "non-glaucoma, mild vision loss, borderline cup-disc ratio",
        ),
        (
            "fundus",
            {"race": "asian", "gender": "male", "ethnicity": "non-hispanic"},
            {"glaucoma": "glaucoma", "md_severity": "normal", "cup_disc_ratio": "normal", "refraction": "hyperopia"},
            "SLO fundus image of a asian male non-hispanic patient with the following conditions: "
            "glaucoma, normal vision, normal cup-disc ratio, hyperopia",
        ),
        (
            "chest",
            {"sex": "male", "race": "other"},
            {"effusion": "effusion", "lung_lesion": "none", "support_devices": "support_devices"},
            "Chest Radiography image of a male other race patient diagnosed with Pleural Effusion, non Lung Lesion, Support Devices",
        ),
        (
            "fundus",
            {"sex": "male"},
            {"glaucoma": "glaucoma"},
            "SLO fundus image of a male patient with the following conditions: glaucoma",
        ),
        ("fundus", {}, {"glaucoma": "non-glaucoma"}, "SLO fundus image of a patient with the following conditions: non-glaucoma"),
        ("brain", {"sex": "male", "age_group": "old"}, {"tumour": "tumour"}, "Brain MR slice of a male old patient with tumour"),
        ("brain", {"sex": "male", "age_group": "old"}, {"tumour": "none"}, "Brain MR slice of a male old patient without tumour"),
        (
            "dermoscopy",
            {"skin_tone": "dark", "age_group": "young"},
            {"malignancy": "benign"},
            "Dermoscopic image of a dark skin tone young patient with the following diagnostic category: benign",
        ),
        ("mixed", {"sex": "male"}, {"lung_lesion": "present"}, "Medical image of a male patient, lung lesion present"),
        ("knee_mr", {"sex": "female"}, {}, "Knee mr image of a female patient"),
        ("brain", {"sex": "male", "site": "north"}, {"grade": "2"}, "Brain MR slice of a male north patient, grade 2"),
    ],
)
def test_templates(modality: str, attributes: dict[str, str], conditions: dict[str, str], prompt: str) -> None:
    assert write_prompt(modality, attributes, conditions) == prompt


ABSENT = {
    ("brain", "tumour"): ["none", "0", "0.0", "-0", "0,0", " no ", "No", "FALSE", "notumor", "no tumour", "Non-Tumor", "normal", "Healthy"],
    ("fundus", "glaucoma"): ["0.00", "negative", "non_glaucoma", "Non Glaucoma", "no-glaucoma", "healthy", "glaucoma-free"],
    ("chest", "effusion"): ["absent", "no effusion", "No Pleural Effusion", "effusion none", "n", "No Finding"],
    ("chest", "finding"): ["No Finding", "no findings", "normal", "0"],
    ("chest", "lung_lesion"): ["none", "no lung lesion", "non Lung Lesion", "0.0", "-", "F"],
}
PRESENT = {
    ("brain", "tumour"): ["1", "1.0", "yes", "TRUE", "tumor", "Tumour", "with tumour", "positive"],
    ("fundus", "glaucoma"): ["1.00", "Glaucoma", "y", "present"],
    ("chest", "effusion"): ["effusion", "Pleural Effusion", "pleural_effusion", "1"],
    ("chest", "finding"): ["any", "abnormal", "finding"],
    ("chest", "lung_lesion"): ["lung_lesion", "Lung Lesion", "true", "+", "T"],
}
OTHER = {  # written as they are, or with the finding's name where they are a grade of it
    ("brain", "tumour"): {"glioma": ", glioma", "control": ", control", "kein Tumor": ", kein Tumor", "small": " with small tumour"},
    ("fundus", "glaucoma"): {"suspect": " with the following conditions: suspect", "mild": " with the following conditions: mild glaucoma"},
    ("fundus", "md_severity"): {"none": " with the following conditions: normal vision", "sever": " with the following conditions: sever"},
    ("chest", "effusion"): {"unclear": " diagnosed with unclear", "large": " diagnosed with large Pleural Effusion"},
    ("chest", "finding"): {"pneumonia": " diagnosed with pneumonia"},
}


@pytest.mark.parametrize(("modality", "column"), ABSENT)
def test_a_value_is_absent_or_present_only_where_it_is_known_to_be(modality: str, column: str) -> None:
    absent, present = (write_prompt(modality, {}, {column: value}) for value in ("none", "yes"))
    assert absent != present
    assert {write_prompt(modality, {}, {column: value}) for value in ABSENT[modality, column]} == {absent}
    assert {write_prompt(modality, {}, {column: value}) for value in PRESENT[modality, column]} == {present}


@pytest.mark.parametrize(("modality", "column"), OTHER)
def test_any_other_value_is_written_as_it_is(modality: str, column: str) -> None:
    for value, end in OTHER[modality, column].items():
        assert write_prompt(modality, {}, {column: value}) == TEMPLATES[modality].head + " of a patient" + end


@pytest.mark.parametrize("value", ["2", "0.5", "-2", "1,5"])
@pytest.mark.parametrize(("modality", "column"), [("brain", "tumour"), ("chest", "edema")])
def test_a_number_whose_meaning_is_not_known_is_refused(modality: str, column: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{column} '{value}': of numbers only 0 \(absent\) and 1 \(present\) are known; write"):
        write_prompt(modality, {}, {column: value})


def test_a_code_is_named_by_its_column() -> None:
    assert write_prompt("knee", {"sex": "1", "site": "north"}, {}) == "Knee image of a sex 1 north patient"
    one, other = ({"smoker": "True", "diabetic": "unknown"}, {"smoker": "unknown", "diabetic": "True"})
    assert write_prompt("knee", one, {}) != write_prompt("knee", other, {})


def test_a_templates_prompts_are_told_from_captions() -> None:
    attributes, conditions = {"sex": ["male", "female"], "age_group": ["<60", ">=60"]}, {"tumour": ["none", "tumour", "2"], "site": ["a.b"]}
    pattern = template_pattern("brain", attributes, conditions)
    for row in ({"sex": "male"}, {"age_group": ">=60"}, {"sex": "female", "age_group": "<60"}, {}):
        for found in ({"tumour": "tumour"}, {"tumour": "none", "site": "a.b"}, {"site": "a.b"}, {}):
            assert pattern.fullmatch(write_prompt("brain", row, found))
    for caption in ("MRI of a male patient", "Brain MR slice of a tall patient", "Brain MR slice of a patient with stroke", ""):
        assert not pattern.fullmatch(caption)
    assert template_pattern("knee", {}, {}).fullmatch("Knee image of a patient")


@pytest.mark.parametrize("modality", [*TEMPLATES, "mixed"])
@pytest.mark.parametrize("value", ["unknown", "unspecified", "", " ", None, float("nan")])
def test_nothing_known_leaves_single_blanks_and_no_trace(modality: str, value: str) -> None:
    columns = {"sex": value, "race": value}
    prompt = write_prompt(modality, columns, {"effusion": value, "tumour": value})
    assert prompt.endswith("image of a patient") or prompt == "Brain MR slice of a patient"
    assert "  " not in prompt


def test_state_silences_attributes_and_never_conditions() -> None:
    attributes = {"sex": "male", "age_group": "old"}
    assert write_prompt("brain", attributes, {"tumour": "tumour"}, ["age_group"]) == "Brain MR slice of a old patient with tumour"
    assert write_prompt("brain", attributes, {"tumour": "tumour"}, []) == "Brain MR slice of a patient with tumour"


def test_check_state() -> None:
    schema = {"sex": ["male", "female"], "age_group": ["young", "old"]}
    assert check_state(None, schema) is None
    assert check_state([], schema) == check_state(["none"], schema) == []
    assert check_state(["sex"], schema) == ["sex"]
    with pytest.raises(UserError) as error:
        check_state(["age_gruop"], schema)
    assert str(error.value) == (
        "--prompt-attributes: no attribute 'age_gruop'; did you mean 'age_group'? There is: sex, age_group; or 'none' to state none"
    )
