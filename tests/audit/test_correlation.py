"""Semantic correlation end to end on small phantoms, with classifiers that are really trained."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import demographic_parity_difference
from sklearn.metrics import roc_auc_score

from evenhand import cli
from evenhand.audit.correlation import SemanticSettings, semantic_correlation
from evenhand.audit.correlation_result import SemanticResult
from evenhand.audit.equity import WARNINGS
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort, write_table
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import write_json
from evenhand.core.errors import UserError

SMALL = {"epochs": 0.5, "n_boot": 100, "min_n": 3, "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real and generated fundus phantoms; no real subject is black, and prompts of the generated ones said nothing."""
    root = tmp_path_factory.mktemp("correlation")
    write_phantoms("fundus", root / "real", n=120, mix="race=asian:0.5,white:0.5", size=32, seed=0)
    made = write_phantoms("fundus", root / "generated", n=48, size=32, seed=1)
    write_table(made.root / TABLE_FILE, made.table.assign(prompt="a picture", split="test"))
    write_json(made.root / SCHEMA_FILE, made.schema.model_copy(update={"synthetic": True, "name": "generated"}).model_dump())
    return root


@pytest.fixture(scope="module")
def tried(world: Path) -> tuple[SemanticResult, SemanticSettings]:
    settings = SemanticSettings(
        real=world / "real", synthetic=world / "generated", out=world / "out", label=["glaucoma", "cup_disc_ratio"], arch=["vit"], **SMALL
    )
    return semantic_correlation(settings), settings


def test_every_figure_is_that_of_the_written_scores(tried: tuple[SemanticResult, SemanticSettings]) -> None:
    result, settings = tried
    scores = pd.read_parquet(settings.file.with_suffix(".parquet"))
    test = Cohort.load(settings.real).split("test").table.reset_index(drop=True)
    assert scores["image"].tolist() == test["image"].tolist() and result.n_test == len(test)
    asked = {(table.label, table.value, table.attribute) for table in result.tables}
    values = [("glaucoma", "non-glaucoma"), *(("cup_disc_ratio", value) for value in ("normal", "borderline", "abnormal"))]
    assert asked == {(*pair, attribute) for pair in values for attribute in ("race", "ethnicity", "sex")}
    for table in result.tables:
        truth = test[table.label] == table.value
        sides = {side: scores[f"{side}.{table.label}.vit.{table.value}"] for side in ("real", "synthetic")}
        aucs = {side: roc_auc_score(truth, column) for side, column in sides.items()}
        assert table.auc.real_trained.value == pytest.approx(aucs["real"], abs=1e-12)
        assert table.auc.synthetic_trained.value == pytest.approx(aucs["synthetic"], abs=1e-12)
        assert table.auc.difference.value == pytest.approx(aucs["synthetic"] - aucs["real"], abs=1e-12)
        assert table.n_train_synthetic == 48 and table.n_train_real == (Cohort.load(settings.real).table["split"] == "train").sum()
    sex = next(table for table in result.tables if table.attribute == "sex" and table.label == "glaucoma")
    for row in sex.rows:
        rows = test["sex"] == row.group
        value = roc_auc_score(test["glaucoma"][rows] == "non-glaucoma", scores["real.glaucoma.vit.non-glaucoma"][rows])
        assert row.real_trained.value == pytest.approx(value) and row.real_trained.n == rows.sum()
    names = ["glaucoma", "non-glaucoma"]
    guess = scores[[f"synthetic.glaucoma.vit.{name}" for name in names]].to_numpy().argmax(axis=1)
    assert sex.parity.synthetic_trained.value == pytest.approx(demographic_parity_difference(guess, guess, sensitive_features=test["sex"]))


def test_an_absent_group_has_reasons_and_no_figures(tried: tuple[SemanticResult, SemanticSettings]) -> None:
    race = next(table for table in tried[0].tables if table.attribute == "race")
    black = {row.group: row for row in race.rows}["black"]
    assert black.n_synthetic > 0 and black.real_trained.n == 0 and black.real_trained.value is None
    assert black.difference.reason == "no labelled images" and race.worst.real_trained in ("asian", "white")
    for measure in (race.es_auc, race.parity, race.odds):
        assert measure.real_trained.value is None and measure.difference.value is None and "black" in measure.difference.reason


def test_what_is_written_says_how_it_was_made_and_reads_back(tried: tuple[SemanticResult, SemanticSettings]) -> None:
    result, settings = tried
    assert settings.file == settings.out / "semantic.json" and SemanticResult.load(settings.file) == result
    text = settings.file.read_text()
    assert "NaN" not in text and json.loads(text)["provenance"]["versions"]["torch"]
    assert result.seeds == {"semantic": 3} and result.settings["arch"] == ["vit"] and result.warnings == list(WARNINGS)
    assert any(note.startswith("glaucoma: ") and "48 generated training images" in note for note in result.notes)
    frame = result.frame()
    groups = {"race": 3, "ethnicity": 2, "sex": 2}
    assert len(frame) == sum(4 * (5 + count) for count in groups.values())  # four values; AUC, gap, ES-AUC, parity, odds, and groups
    assert frame["real_trained"].dtype == float and frame.loc[frame["reason"] != "", "difference"].isna().all()
    with pytest.raises(UserError, match=r"config.json: not a semantic correlation of format 1"):
        SemanticResult.load(Path(result.classifiers[0].path) / "config.json")


def test_classifiers_of_the_same_recipe_and_data_are_used_again(
    tried: tuple[SemanticResult, SemanticSettings], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, settings = tried
    before = {path: path.stat().st_mtime_ns for path in (settings.out / "semantic-classifiers").rglob("model.safetensors")}
    assert len(before) == 4 and {fact.trained_on for fact in result.classifiers} == {"real", "synthetic"}
    again = semantic_correlation(settings.model_copy(update={"attributes": ["sex"]}))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.tables == [table for table in result.tables if table.attribute == "sex"]
    changed = shutil.copytree(world / "generated", world / "changed")
    made = Cohort.load(changed)
    write_table(changed / TABLE_FILE, made.table.assign(glaucoma=made.table["glaucoma"].sample(frac=1, random_state=0).to_numpy()))
    other = semantic_correlation(settings.model_copy(update={"synthetic": changed, "label": ["glaucoma"], "attributes": ["sex"]}))
    shas = {(fact.label, fact.trained_on): fact.sha256 for fact in result.classifiers}
    found = {fact.trained_on: fact.sha256 for fact in other.classifiers}
    assert found["real"] == shas["glaucoma", "real"] and found["synthetic"] != shas["glaucoma", "synthetic"]


def test_generated_images_of_one_value_or_without_one_are_said_and_not_trained_on(world: Path, tmp_path: Path) -> None:
    made = Cohort.load(shutil.copytree(world / "generated", tmp_path / "healthy"))
    ratios = made.table["cup_disc_ratio"].where(made.table["cup_disc_ratio"] != "abnormal", "unspecified")
    write_table(made.root / TABLE_FILE, made.table.assign(glaucoma="non-glaucoma", cup_disc_ratio=ratios))
    common = {"real": world / "real", "synthetic": made.root, "out": tmp_path / "a.json", "arch": ["vit"], "attributes": ["sex"], **SMALL}
    result = semantic_correlation(SemanticSettings(label=["glaucoma", "cup_disc_ratio"], **common))
    assert result.refused == ["glaucoma takes fewer than two values in the generated images, so no classifier can be trained"]
    assert {table.label for table in result.tables} == {"cup_disc_ratio"}
    silent = int((ratios == "unspecified").sum())
    assert f"cup_disc_ratio: {silent} generated images state none, and trained nothing" in result.notes
    assert "cup_disc_ratio: no generated image is abnormal, so the classifier trained on them cannot tell it" in result.notes
    real = Cohort.load(shutil.copytree(world / "real", tmp_path / "real"))
    write_table(
        real.root / TABLE_FILE, real.table.assign(glaucoma=np.where(real.table["split"] == "test", "unknown", real.table["glaucoma"]))
    )
    untested = semantic_correlation(SemanticSettings(label=["glaucoma"], **{**common, "real": real.root, "out": tmp_path / "b.json"}))
    assert untested.refused == ["glaucoma is known of no real test image"] and untested.tables == [] and untested.frame().empty
    assert not (tmp_path / "b-classifiers").exists() and (tmp_path / "b.json").is_file()


def test_generated_images_that_show_another_condition_than_their_label_train_the_wrong_thing(tmp_path: Path) -> None:
    write_phantoms("fundus", tmp_path / "real", n=260, size=32, seed=4)
    made = write_phantoms("fundus", tmp_path / "made", n=160, size=32, seed=5)
    swapped = made.table["cup_disc_ratio"].replace({"normal": "abnormal", "abnormal": "normal"})
    write_table(made.root / TABLE_FILE, made.table.assign(cup_disc_ratio=swapped))  # their prompts still say what they show
    settings = SemanticSettings(
        real=tmp_path / "real", synthetic=made.root, out=tmp_path / "x.json", label=["cup_disc_ratio"], arch=["resnet"],
        attributes=["sex"], epochs=8, n_boot=100, min_n=5, test_rows="val+test",
    )  # fmt: skip
    normal = next(table for table in semantic_correlation(settings).tables if table.value == "normal")
    assert normal.auc.real_trained.value > 0.85 and normal.auc.synthetic_trained.value < 0.3
    assert normal.auc.difference.high < -0.3 and all(row.difference.high < 0 for row in normal.rows)


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["evenhand", "semantic", *map(str, arguments)])
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        monkeypatch.setenv(f"{library}_VERBOSITY", "error")
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_the_command_prints_a_table_its_warnings_and_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, world: Path, tmp_path: Path
) -> None:
    config = tmp_path / "semantic.yaml"
    config.write_text("epochs: 0.1\nn_boot: 100\nmin-n: 3\n")
    code, out, error = _run(
        monkeypatch, capsys, "--real", world / "real", "--synthetic", world / "generated", "--label", "glaucoma", "--config", config,
        "--arch", "efficientnet", "--attributes", "race,sex", "--out", tmp_path / "found.json",
    )  # fmt: skip
    assert code == 0 and out == f"{tmp_path / 'found.json'}\n"
    result, printed = SemanticResult.load(tmp_path / "found.json"), " ".join(error.split())
    sex = next(table for table in result.tables if table.attribute == "sex")
    for name in ("glaucoma=non-glaucoma, efficientnet", "ES-AUC", "DPD", "EOD", *WARNINGS):
        assert name in printed
    assert f"sex real {sex.auc.real_trained.value:.3f} {sex.es_auc.real_trained.value:.3f} {sex.worst.real_trained}" in printed
    assert f"generated {sex.auc.synthetic_trained.value:.3f}" in printed and f"difference {sex.auc.difference.value:+.3f}" in printed
    assert "undefined: glaucoma=non-glaucoma by race, DPD: black: no labelled images" in printed


def test_names_and_files_that_cannot_be_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, world: Path, tmp_path: Path
) -> None:
    real, made = world / "real", world / "generated"
    blind = Cohort.load(shutil.copytree(made, tmp_path / "blind"))
    schema = blind.schema.model_copy(update={"conditions": {"cup_disc_ratio": blind.schema.conditions["cup_disc_ratio"]}})
    write_json(blind.root / SCHEMA_FILE, schema.model_dump())
    leaky = Cohort.load(real).split("test")
    leaky.save(tmp_path / "leaky")
    common = {"--real": real, "--synthetic": made, "--label": "glaucoma", "--out": tmp_path / "out.json"}
    for changed, message in (
        ({"--label": "glaucome"}, f"{real}: no attribute or condition 'glaucome'; did you mean 'glaucoma'? There is: "),
        ({"--synthetic": blind.root}, f"{blind.root}: no attribute or condition 'glaucoma'; There is: "),
        ({"--attributes": "rase,sex"}, "--attributes: no attribute 'rase'; did you mean 'race'? There is: race, ethnicity, sex"),
        ({"--arch": "vitt"}, "--arch: unknown architecture 'vitt'; did you mean 'vit'? There is: resnet, vit, efficientnet"),
        ({"--synthetic": tmp_path / "leaky"}, f"{tmp_path / 'leaky'}: {len(leaky)} images are real test images of {real}, to the byte"),
        ({"--out": made / TABLE_FILE}, f"--out {made / TABLE_FILE}: name a .json file, or a folder"),
        ({"--label": None}, "setting 'label' is missing; give --label or put it into --config"),
    ):
        given = {name: value for name, value in (common | changed).items() if value is not None}
        code, out, error = _run(monkeypatch, capsys, *(part for pair in given.items() for part in pair))
        assert (code, out) == (1, "") and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out.json").exists() and not (tmp_path / "out-classifiers").exists()
