"""Prompts: the published wording, silence on chosen attributes, and what is unknown."""

import pytest

from evenhand.cohorts.prompts import TEMPLATES, check_state, write_prompt
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
