"""Phantoms written as a cohort."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.errors import UserError


def test_a_cohort_holds_what_was_drawn(tmp_path: Path) -> None:
    written = write_phantoms("brain", tmp_path / "c", n=90, mix="sex=male:0.8,female:0.2", seed=5)
    loaded = Cohort.load(tmp_path / "c")
    drawn = MODALITIES["brain"].generate(90, mix="sex=male:0.8,female:0.2", seed=5)
    pd.testing.assert_frame_equal(loaded.table, written.table)
    assert loaded.table[["subject_id", "sex", "age_group", "tumour"]].to_numpy().tolist() == (
        drawn.table[["subject_id", "sex", "age_group", "tumour"]].to_numpy().tolist()
    )
    np.testing.assert_allclose(loaded.pixels(), drawn.images, atol=0.5 / 255 + 1e-6)
    assert loaded.schema.modality == "brain" and loaded.schema.image_size == 32 and loaded.schema.image_mode == "L"
    assert not loaded.schema.synthetic
    made = loaded.schema.made
    assert made["generator"] == "evenhand.cohorts.phantoms.brain"
    assert (made["seed"], made["size"], made["n"], made["harder"]) == (5, 32, 90, None)
    assert made["mix"] == "sex=male:0.8,female:0.2;age_group=young:0.5,old:0.5;tumour=none:0.5,tumour:0.5"
    assert "numpy" in made["versions"]


def test_subjects_stay_in_one_split(tmp_path: Path) -> None:
    cohort = write_phantoms("chest", tmp_path / "c", n=301, size=24, images_a_subject=3)
    by_subject = cohort.table.groupby("subject_id")
    assert by_subject["split"].nunique().max() == 1
    assert by_subject.size().tolist() == [3] * 100 + [1]
    assert set(cohort.table["split"]) == {"train", "val", "test"}
    shares = by_subject["split"].first().value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.70, abs=0.14)  # 3 standard errors of 101 subjects


@pytest.mark.parametrize(
    ("modality", "state", "said", "silent"),
    [
        ("brain", None, ["male", "young", "tumour"], []),
        ("brain", ["none"], ["tumour"], ["male", "young"]),
        ("brain", ["sex"], ["male", "tumour"], ["young"]),
    ],
)
def test_prompts_state_what_is_asked(tmp_path: Path, modality: str, state: list[str] | None, said: list, silent: list) -> None:
    mix = "sex=male:1;age_group=young:1;tumour=tumour:1"
    cohort = write_phantoms(modality, tmp_path / "c", n=2, size=24, mix=mix, prompt_attributes=state)
    prompt = cohort.table["prompt"][0]
    assert all(word in prompt for word in said)
    assert not any(word in prompt for word in silent)


@pytest.mark.parametrize("modality", ["dermoscopy", "fundus"])
def test_colour_cohorts_read_back(tmp_path: Path, modality: str) -> None:
    cohort = write_phantoms(modality, tmp_path / "c", n=40, harder="sex=female:2" if modality == "fundus" else None)
    kind = MODALITIES[modality]
    read = kind.oracle(cohort.pixels())
    assert cohort.schema.image_mode == "RGB"
    for column in kind.oracle_columns:
        assert (read[column].to_numpy() == cohort.table[column].to_numpy()).mean() >= 0.97, column


@pytest.mark.parametrize(
    ("modality", "kwargs", "message"),
    [
        ("brian", {"n": 3}, "phantom: unknown modality 'brian'; did you mean 'brain'? There is: brain"),
        ("brain", {"n": 0}, "n is 0"),
        ("brain", {"n": 3, "size": 23}, "size is 23"),
        ("brain", {"n": 3, "mix": "sex=male:0.5,female:0.4"}, "shares sum to 0.9, not 1"),
        ("brain", {"n": 3, "prompt_attributes": ["sexx"]}, "--prompt-attributes: no attribute 'sexx'; did you mean 'sex'?"),
    ],
)
def test_a_mistake_writes_nothing(tmp_path: Path, modality: str, kwargs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        write_phantoms(modality, tmp_path / "c", **kwargs)
    assert list(tmp_path.iterdir()) == []
