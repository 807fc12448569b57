"""A target for each class of prompts: by hand, and through an alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.drawing import read_prompts
from evenhand.alignment.exemplars import OWN_FILE, Exemplars
from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.targets import assign, assign_within
from evenhand.alignment.tune import align
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import read_json
from evenhand.core.errors import UserError
from evenhand.models.classifiers import ClassifierSettings, train_classifier

QUARTER = PromptClasses("tumour", ["none", "tumour"], {"a": 0, "b": 1}, np.array([0.25, 0.75]))


def test_class_and_group_are_one_joint_group() -> None:
    found = QUARTER.joint(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 0]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.9, 0.1], [0.2, 0.8, 0.0, 0.0]]))


def test_a_reading_is_brought_to_the_classes_own_shares() -> None:
    """Half of each class was drawn, .8 and .4 men in them; a class that was not drawn is on target."""
    target = np.array([0.125, 0.125, 0.375, 0.375])
    np.testing.assert_allclose(QUARTER.settled(np.array([0.4, 0.1, 0.2, 0.3]), target), [0.2, 0.05, 0.3, 0.45])
    np.testing.assert_allclose(QUARTER.settled(np.array([0.4, 0.6, 0, 0]), target), [0.1, 0.15, 0.375, 0.375])
    one = PromptClasses.one(["a"])
    np.testing.assert_allclose(one.settled(np.array([0.3, 0.7]), np.array([0.5, 0.5])), [0.3, 0.7])


@pytest.fixture(scope="module")
def speaking(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms with prompts that state the tumour alone."""
    whole = Cohort.load(brain)
    table = whole.table.assign(prompt="A brain MR slice, " + whole.table["tumour"])
    path = tmp_path_factory.mktemp("speaking") / "cohort"
    Cohort(whole.schema, table, whole.root).save(path)
    return path


def test_targets_in_words_and_from_a_cohort(classifier_folder: Path, speaking: Path) -> None:
    guides = Guides.load([classifier_folder])
    assert guides.joint == ["male", "female"]
    _, classes = read_prompts(speaking, "tumour")
    none, tumour = classes.names
    both = classes.target("sex=male:0.3,female:0.7", guides).reshape(2, 2)
    np.testing.assert_allclose(both, classes.shares[:, None] * np.array([0.3, 0.7]))
    apart = classes.target(f"sex*tumour=male/{none}:0.1,female/{none}:0.1,male/{tumour}:0.2,female/{tumour}:0.6", guides).reshape(2, 2)
    np.testing.assert_allclose(apart, classes.shares[:, None] * np.array([[0.5, 0.5], [0.25, 0.75]]))
    table = Cohort.load(speaking).table
    observed = pd.crosstab(table["tumour"], table["sex"], normalize="index").loc[classes.names, guides.joint].to_numpy()
    np.testing.assert_allclose(classes.target(str(speaking), guides).reshape(2, 2), classes.shares[:, None] * observed)
    with pytest.raises(UserError, match=f"says nothing of tumour '{tumour}', which prompts have"):
        classes.target(f"sex*tumour=male/{none}:0.5,female/{none}:0.5", guides)


def test_cohorts_that_name_classes_or_groups_otherwise_are_refused(classifier_folder: Path, speaking: Path, tmp_path: Path) -> None:
    guides, whole = Guides.load([classifier_folder]), Cohort.load(speaking)
    _, classes = read_prompts(speaking, "tumour")
    for column, near in (("tumour", "'TUMOUR' beside 'tumour'"), ("sex", "'FEMALE' beside 'female'")):
        groups = {**whole.schema.columns, column: [name.upper() for name in whole.schema.columns[column]]}
        kind = "attributes" if column in whole.schema.attributes else "conditions"
        schema = whole.schema.model_copy(update={kind: {name: groups[name] for name in getattr(whole.schema, kind)}})
        other = Cohort(schema, whole.table.assign(**{column: whole.table[column].str.upper()}), whole.root)
        other.save(tmp_path / column)
        with pytest.raises(UserError, match=f"its groups of {column} are .*{near}.*name groups alike"):
            classes.target(str(tmp_path / column), guides)
        if column == "tumour":
            with pytest.raises(UserError, match="those of the prompts are 'none', 'tumour'"):
                classes.within(other, np.zeros(len(other), dtype=int), 2)
    absent = whole.subset(whole.table["tumour"] == "tumour")  # one class has no image: no fault of names
    assert set(classes.within(absent, np.zeros(len(absent), dtype=int), 2)) == {2}


def test_classes_that_prompts_do_not_tell_are_refused(brain: Path, tmp_path: Path) -> None:
    whole = Cohort.load(brain)
    silent = tmp_path / "silent"
    Cohort(whole.schema, whole.table.assign(prompt="A brain MR slice."), whole.root).save(silent)
    with pytest.raises(UserError, match=r"stands for tumour .* and .*; state tumour in prompts"):
        read_prompts(silent, "tumour")
    with pytest.raises(UserError, match="did you mean 'tumour'"):
        read_prompts(brain, "tumor")
    lines = tmp_path / "prompts.txt"
    lines.write_text("A brain MR slice.\n")
    with pytest.raises(UserError, match="--within wants --prompts to be a cohort"):
        read_prompts(lines, "tumour")


def test_images_are_assigned_within_their_class() -> None:
    """Two classes of three and two images: each as if it were alone, with its own target."""
    read = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    codes = np.array([1, 0, 1, 0, 1])
    classes = PromptClasses("tumour", ["none", "tumour"], {}, np.array([0.4, 0.6]))
    found = assign_within(classes.joint(torch.from_numpy(read), codes).numpy(), np.array([0.2, 0.2, 0.0, 0.6]), 2)
    for code, target in ((0, [0.5, 0.5]), (1, [0.0, 1.0])):
        alone = assign(read[codes == code], np.array(target))
        assert (found.groups[codes == code] - 2 * code).tolist() == alone.groups.tolist()
        np.testing.assert_allclose(found.confidence[codes == code], alone.confidence)
    assert found.groups[codes == 1].tolist() == [3, 3, 3]


@pytest.mark.parametrize("form", ["kl", "transport", "distill"])
def test_each_class_is_led_to_its_own_mix(
    form: str, classifier_folder: Path, brain: Path, speaking: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told and published is by class; own images are weighed so that each class has its mix."""
    judge = tmp_path / "judge"
    train_classifier(ClassifierSettings(cohort=brain, target="sex", out=judge, steps=20, batch_size=16, seed=1))
    settings: dict[str, Any] = {
        "model": str(tiny), "guide": [classifier_folder], "judge": [judge], "check_images": 40,
        "prompts": str(speaking), "within": "tumour", "form": form, "own_images": 0,
        "solver_steps": 2, "batch_size": 8, "iterations": 2, "validate_every": 1, "validation_images": 40,
        "consistency": 0,
    }  # fmt: skip
    names = read_prompts(speaking, "tumour")[1].names
    mix = "sex*tumour=" + ",".join(
        f"{sex}/{name}:{share}"
        for name, pair in zip(names, [(0.1, 0.4), (0.25, 0.25)], strict=True)
        for sex, share in zip(("male", "female"), pair, strict=True)
    )
    kept: list[Exemplars] = []
    if form == "distill":
        settings["own_images"] = 80
        with pytest.raises(UserError, match=r"however its own 80 images are weighed, \w+ x (fe)?male is"):
            align(AlignSettings(**settings, target=mix, out=tmp_path / "probe"))
        shown = load_file(tmp_path / "probe" / OWN_FILE)["shown"].double().numpy().reshape(80, 2, 2)
        reach = [np.quantile(shown[shown[:, code].sum(1) > 0.5, code, 0], q) for code, q in ((0, 0.2), (1, 0.8))]
        mix = "sex*tumour=" + ",".join(
            f"male/{name}:{male / 2:.6f},female/{name}:{0.5 - male / 2:.6f}" for name, male in zip(names, reach, strict=True)
        )
        own = Exemplars.own
        monkeypatch.setattr(Exemplars, "own", lambda *parts: kept.append(own(*parts)) or kept[-1])
    result = align(AlignSettings(**settings, target=mix, out=tmp_path / "run"))
    published = read_json(result.model / "evenhand.json")
    assert list(published["target"]) == [f"{name} x {sex}" for name in names for sex in ("male", "female")]
    assert sum(result.check["shares"].values()) == pytest.approx(1)
    for exemplars in kept:
        weighed = exemplars.weights @ load_file(result.run / OWN_FILE)["shown"].double().numpy()
        np.testing.assert_allclose(weighed, list(published["target"].values()), atol=2e-3)
