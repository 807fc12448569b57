"""The whole story at the smallest size: every chapter leaves its folder, and a second run finds them."""

import json

import numpy as np
import pytest

from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.errors import UserError
from evenhand.quickstart import QuickstartSettings, oracle_facts, run_quickstart


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    out = tmp_path_factory.mktemp("story") / "quickstart"
    settings = QuickstartSettings(
        out=out,
        images=160,
        clip_steps=2,
        autoencoder_steps=4,
        train_steps=3,
        train_batch=8,
        generated=24,
        solver_steps=2,
        guidance_scale=1.0,
        judge_epochs=0.5,
        guide_images=200,
        guide_steps=40,
        align_iterations=2,
        validation_images=20,
    )
    return settings, run_quickstart(settings)


def test_every_chapter_leaves_its_folder(story):
    settings, report = story
    assert report == settings.out / "report.html"
    assert "<html" in report.read_text()
    for name in ("real/cohort.json", "initial/model_index.json", "run/model/model_index.json", "generated/cohort.json", "audit.json",
                 "aligned/model/model_index.json", "generated-aligned/cohort.json", "audit-aligned.json"):  # fmt: skip
        assert (settings.out / name).is_file(), name
    assert set(Cohort.load(settings.out / "generated").table["sex"]) == {"unspecified"}
    assert json.loads((settings.out / "oracle-generated.json").read_text())["n"] == 24


def test_a_second_run_makes_nothing_twice(story):
    settings, _ = story
    made = ("real/cohort.parquet", "initial/model_index.json", "run/model/model_index.json", "generated/cohort.parquet",
            "aligned/model/model_index.json", "generated-aligned/cohort.parquet")  # fmt: skip
    before = [(settings.out / name).stat().st_mtime_ns for name in made]
    run_quickstart(settings)
    assert [(settings.out / name).stat().st_mtime_ns for name in made] == before


def test_the_oracle_is_exact_on_phantoms_and_counts_what_is_no_image(tmp_path):
    cohort = write_phantoms("brain", tmp_path / "phantoms", n=60, mix="sex=male:1,female:0", seed=3)
    facts = oracle_facts("brain", cohort, cohort)
    assert facts["valid"] == 1.0
    assert facts["shares"]["sex"] == {"male": {"training": 1.0, "generated": 1.0}, "female": {"training": 0.0, "generated": 0.0}}
    assert facts["follows"] == {"tumour": 1.0}
    mislabelled = cohort.table.assign(tumour=np.where(cohort.table["tumour"] == "tumour", "none", "tumour"))
    assert oracle_facts("brain", cohort, Cohort(cohort.schema, mislabelled, cohort.root))["follows"] == {"tumour": 0.0}


def test_a_misspelt_modality_is_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'brain'"):
        run_quickstart(QuickstartSettings(modality="brian", out=tmp_path / "story"))
    assert not (tmp_path / "story").exists()
