"""The audit end to end on small phantoms, with real networks at tiny size."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evenhand.audit.result import AuditResult
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cli import app
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort, write_table
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import claim, write_json
from evenhand.core.errors import UserError
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder
from evenhand.report.html import write_report

SMALL = {"judge_epochs": 0.5, "repeats": 2, "n_boot": 100, "min_n": 5}


def silence(cohort: Cohort, columns: list[str]) -> None:
    """Turn phantoms into a generated cohort whose prompts said nothing of ``columns``."""
    table = cohort.table.assign(**dict.fromkeys(columns, "unspecified"))
    schema = cohort.schema.model_copy(update={"synthetic": True, "name": "generated"})
    write_table(cohort.root / TABLE_FILE, table)
    write_json(cohort.root / SCHEMA_FILE, schema.model_dump())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit")
    write_phantoms("brain", root / "real", n=160, mix="sex=male:0.7,female:0.3", size=32, seed=0, images_a_subject=2)
    silence(write_phantoms("brain", root / "generated", n=60, mix="sex=male:0.5,female:0.5", size=32, seed=1), ["sex"])
    return root


@pytest.fixture(scope="module", autouse=True)
def few_subsamples() -> Iterator[None]:
    """What is told of a subsample is tested with ``size_matched``; here a few will do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_LEAST", "_MOST", "_MOST_OF_SMALL"):
            patch.setattr(f"evenhand.audit.subsampling.{name}", 12)
        yield


@pytest.fixture(scope="module")
def audited(world: Path) -> tuple[AuditResult, Path, dict[str, int]]:
    """One audit with default judges and encoders, and how many images passed each network."""
    counted = {"features": 0, "judged": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENHAND_CACHE", str(world / "cache"))
        embed, logits = Encoder.embed, Classifier.logits

        def counting_embed(self, images):
            counted["features"] += len(images)
            return embed(self, images)

        def counting_logits(self, images):
            counted["judged"] += len(images)
            return logits(self, images)

        patch.setattr(Encoder, "embed", counting_embed)
        patch.setattr(Classifier, "logits", counting_logits)
        out = world / "audit.json"
        result = audit_cohorts(AuditSettings(real=world / "real", synthetic=world / "generated", out=out, **SMALL))
    return result, out, counted


def test_every_image_passes_each_network_once(audited: tuple[AuditResult, Path, dict[str, int]]) -> None:
    result, _, counted = audited
    images = result.n["real_compared"] + result.n["synthetic"]
    assert result.memorization is not None  # which reads the training images' features too, by the first encoder
    assert counted["features"] == len(result.encoders) * images + result.memorization.n_train == 2 * images + result.memorization.n_train
    assert counted["judged"] == len(result.judges) * images == 2 * images
    assert all(e.features_real + e.features_synthetic == images for e in result.encoders)


def test_what_the_draws_left_open_is_stated(audited: tuple[AuditResult, Path, dict[str, int]]) -> None:
    result, _, _ = audited
    by_metric: dict[str, list[float]] = {}
    for table in result.quality:
        by_metric.setdefault(table.metric, []).append(table.monte_carlo)
    assert set(by_metric["kid"]) == {0.0} and max(by_metric["fid"]) > 0  # closed form, and subsamples
    apart = 1.96 * np.sqrt(2)  # of two seeds, in 95 % of cases
    assert result.monte_carlo.value == pytest.approx(apart * max(max(values) for values in by_metric.values()), rel=1e-3)
    assert result.monte_carlo.bound == pytest.approx(apart * 1.363 / np.sqrt(SMALL["n_boot"]), rel=0.01)
    assert result.monte_carlo.p_value == pytest.approx(apart * 2 * np.sqrt(0.025 * 0.975 / 30_000), rel=1e-3)
    assert result.monte_carlo.p_value < 0.0051


def test_tables_cover_columns_and_pairs_and_say_their_basis(audited: tuple[AuditResult, Path, dict[str, int]]) -> None:
    result, _, _ = audited
    assert {(table.question, table.basis) for table in result.presence} == {
        ("presence:sex", "judge"),
        ("presence:age_group", "requested"),
        ("presence:sex*age_group", "mixed"),
    }
    metrics = Counter(table.metric for table in result.quality)
    assert metrics["kid"] == metrics["fid"] == 3 * 2  # questions, encoders
    assert metrics["precision"] == metrics["coverage"] == metrics["log-is"] == 2  # single attributes, one encoder
    questions = {table.question.removeprefix("semantics:tumour=tumour:") for table in result.semantics}
    assert questions == {"sex", "age_group", "sex*age_group"}
    sex = result.presence[0]
    assert sum(row.raw for row in sex.rows if row.raw is not None) == pytest.approx(1)
    assert {row.group: row.target for row in sex.rows}["male"] == pytest.approx(0.7, abs=0.12)
    pair = next(table for table in result.presence if len(table.by) == 2)
    assert [row.group for row in pair.rows] == ["male x young", "male x old", "female x young", "female x old"]
    for table in result.quality:
        assert table.n <= min(min(row.n_real, row.n_synthetic) for row in table.rows if row.value is not None)
        assert (table.overall_reference is not None) == (table.metric in ("kid", "log-is"))


def test_copies_of_training_images_are_found_and_shown(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    clean = audited[0].memorization
    assert clean is not None and clean.n_train == len(Cohort.load(world / "real").split("train"))
    train = Cohort.load(world / "real").split("train")
    copied = Cohort.load(shutil.copytree(world / "generated", world / "copied"))
    for place in range(0, 60, 2):  # every other one is a training image
        shutil.copy(train.image_path(train.table["image"].iloc[place]), copied.image_path(copied.table["image"].iloc[place]))
    write_table(copied.root / TABLE_FILE, copied.table.assign(sha256=None))
    judges = [Path(judge.path) for judge in audited[0].judges]
    found = audit_cohorts(AuditSettings(real=world / "real", synthetic=copied.root, out=world / "copied.json", judge=judges, **SMALL))
    assert found.memorization is not None
    rates = [result.memorization.tables[0].overall.value for result in (audited[0], found) if result.memorization is not None]
    assert rates[0] == pytest.approx(0, abs=0.1) and rates[1] == pytest.approx(0.5, abs=0.1)
    ratios = [
        {table.metric: table.overall.value for table in part.memorization.beside} for part in (audited[0], found) if part.memorization
    ]
    assert ratios[1]["nearest ratio"] < 0.8 * ratios[0]["nearest ratio"] and ratios[1]["authenticity"] < ratios[0]["authenticity"] - 0.2
    worst = found.memorization.worst[0]
    place = copied.table["image"].tolist().index(worst.image)
    assert place % 2 == 0 and worst.train_image == train.table["image"].iloc[place] and worst.score < 0.2
    page = write_report([world / "copied.json"], world / "copied.html").read_text()
    assert page.count("beside training image") == len(found.memorization.worst)
    assert any(finding.kind == "memorization" and "of the generated images" in finding.text for finding in found.findings)


def test_requested_shares_are_the_tables(audited: tuple[AuditResult, Path, dict[str, int]], world: Path) -> None:
    ages = Cohort.load(world / "generated").table["age_group"].value_counts(normalize=True)
    table = next(table for table in audited[0].presence if table.question == "presence:age_group")
    assert {row.group: row.raw for row in table.rows} == pytest.approx(ages.to_dict())


def test_files_hold_the_result_and_the_scores_of_every_image(audited: tuple[AuditResult, Path, dict[str, int]]) -> None:
    result, out, _ = audited
    assert AuditResult.load(out) == result
    assert "NaN" not in out.read_text()
    written = json.loads(out.read_text())
    assert written["provenance"]["versions"]["torch"] and written["seeds"] == {"audit": 0} and written["real_rows"] == "val+test"
    scores = pd.read_parquet(out.with_suffix(".parquet"))
    assert scores["side"].value_counts().to_dict() == {"real": result.n["real_compared"], "synthetic": 60}
    probabilities = scores[["judge.sex.male", "judge.sex.female"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
    generated = scores[scores["side"] == "synthetic"]
    judged = np.where(generated["judge.sex.male"] >= generated["judge.sex.female"], "male", "female")
    assert (generated["group.sex"] == judged).all()


def test_a_second_audit_reuses_judges_and_features(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    monkeypatch.setattr("evenhand.audit.judges.train_classifier", lambda settings: pytest.fail("trained again"))
    monkeypatch.setattr(Encoder, "embed", lambda self, images: pytest.fail("computed again"))
    again = audit_cohorts(AuditSettings(real=world / "real", synthetic=world / "generated", out=world / "audit.json", **SMALL))
    first = audited[0].model_dump(exclude={"provenance"})
    assert again.model_dump(exclude={"provenance"}) == first


def test_given_judge_and_encoder_are_used(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    judges = {judge.target: Path(judge.path) for judge in audited[0].judges}
    settings = AuditSettings(
        real=world / "real", synthetic=world / "generated", out=world / "given.json",
        judge=list(judges.values()), encoder=[judges["sex"]], **SMALL,
    )  # fmt: skip
    result = audit_cohorts(settings)
    assert not any(judge.trained_here for judge in result.judges)
    assert [encoder.path for encoder in result.encoders] == [str(judges["sex"])]
    assert not (world / "given-judges").exists()
    doubled = settings.model_copy(update={"judge": [judges["sex"], judges["sex"]]})
    with pytest.raises(UserError, match="sex has a judge already"):
        audit_cohorts(doubled)


def test_several_cohorts_share_the_judges_and_a_broken_rule_exits_with_3(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    monkeypatch.setattr("evenhand.audit.judges.train_classifier", lambda settings: pytest.fail("trained again"))
    (world / "small.yaml").write_text("".join(f"{key}: {value}\n" for key, value in SMALL.items()))
    judges = [part for judge in audited[0].judges for part in ("--judge", judge.path)]
    twice = [part for _ in range(2) for part in ("--synthetic", str(world / "generated"))]
    rules = ["--fail-on", "presence:age_group>0.9", "--fail-on", "presence:sex<=-1", "--primary", "quality:sex"]
    command = ["audit", "--real", str(world / "real"), *twice, "--out", str(world / "two.json"), "--config", str(world / "small.yaml")]
    found = CliRunner().invoke(app, [*command, *judges, *rules])
    assert found.exit_code == 3, found.output
    assert found.output.count("failed: presence:sex<=-1.0: the gap is") == 2 and "age_group" not in found.output
    first, second = AuditResult.load(world / "two.json"), AuditResult.load(world / "two-2.json")
    assert [part.model_dump() for part in first.quality] == [part.model_dump() for part in second.quality]
    assert [decision.question for decision in first.decisions if decision.primary] == ["quality:sex"]
    assert {rule.rule: rule.failed for rule in first.rules} == {"presence:age_group>0.9": False, "presence:sex<=-1.0": True}


def test_utility_is_measured_where_it_is_asked_for(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    (world / "small.yaml").write_text("".join(f"{key}: {value}\n" for key, value in SMALL.items()))
    command = ["audit", "--real", str(world / "real"), "--synthetic", str(world / "generated"), "--config", str(world / "small.yaml")]
    found = CliRunner().invoke(app, [*command, "--utility", "--out", str(world / "useful.json")])
    assert found.exit_code == 0, found.output
    result = AuditResult.load(world / "useful.json")
    questions = {table.question.removeprefix("utility:tumour=tumour:"): table for table in result.utility}
    assert set(questions) == {"sex", "age_group", "sex*age_group"}
    sex = questions["sex"]
    assert sex.n_train_synthetic == 60 and sex.n_train_real == len(Cohort.load(world / "real").split("train"))
    assert {row.group: row.n for row in sex.rows} == Cohort.load(world / "real").split("val", "test").table["sex"].value_counts().to_dict()
    assert any(finding.kind == "utility" and "60 generated instead of" in finding.text for finding in result.findings)
    assert len(list((world / "useful-judges").glob("tumour-*"))) == 2  # the judge is the real-trained one
    page = write_report([world / "useful.json"], world / "useful.html").read_text()
    assert "AUC, trained on generated" in page and "Overlap and variety" in page and "ECE, generated" in page
    flat = write_report([world / "useful.json"], world / "useful.csv", "csv").read_text()
    assert "utility:tumour=tumour:sex,auc difference" in flat and "fairness:tumour:sex,odds difference" in flat


def test_a_judge_that_cannot_tell_groups_parts_no_images_and_a_heavy_subject_decides_nothing(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    real = Cohort.load(world / "real")
    mixed_up = real.table.assign(sex=np.random.default_rng(0).permutation(real.table["sex"]))
    held_out = mixed_up.index[mixed_up["split"] != "train"][:12]
    mixed_up.loc[held_out, "subject_id"] = mixed_up.loc[held_out[0], "subject_id"]
    mixed_up.loc[held_out, "split"] = "test"
    Cohort(real.schema, mixed_up, real.root).save(world / "blind")
    judges = [Path(judge.path) for judge in audited[0].judges]
    result = audit_cohorts(
        AuditSettings(
            real=world / "blind", synthetic=world / "generated", out=world / "blind.json", judge=judges, primary=["quality:sex"], **SMALL
        )
    )
    sex = next(table for table in result.presence if table.by == ["sex"])
    assert sex.identifiable is False and "cannot see the attribute" in sex.refusal
    assert {tuple(table.by) for table in [*result.quality, *result.semantics]} == {("age_group",)}
    (declared,) = [decision for decision in result.decisions if decision.primary]
    assert declared.question == "quality:sex" and declared.p_value is None and not declared.flagged
    caveats = [finding.text for finding in result.findings if finding.kind == "caveat"]
    assert any(text.startswith("Quality, semantics, calibration and copies by sex are not given") for text in caveats)
    assert any(text.startswith("6 real and 0 generated images enter no distance") for text in caveats)
    overall = next(table for table in result.quality if table.metric == "kid")
    assert sum(row.n_real for row in overall.rows) == result.n["real_compared"] - 6


def test_without_any_group_that_can_be_told_the_whole_is_still_measured(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    for name in ("real", "generated"):
        cohort = Cohort.load(world / name)
        table = cohort.table.drop(columns="age_group")
        if name == "real":
            table["sex"] = np.random.default_rng(0).permutation(table["sex"])
        schema = cohort.schema.model_copy(update={"attributes": {"sex": ["male", "female"]}})
        Cohort(schema, table, cohort.root).save(world / f"{name}-groupless")
    settings = AuditSettings(real=world / "real-groupless", synthetic=world / "generated-groupless", out=world / "whole.json", **SMALL)
    result = audit_cohorts(settings)
    assert {tuple(table.by) for table in [*result.quality, *result.semantics]} == {("all",)}
    kid = next(table for table in result.quality if table.metric == "kid")
    assert kid.overall.value is not None and kid.rows[0].value == pytest.approx(kid.overall.value) and kid.p_value is None
    page = write_report([world / "whole.json"], world / "whole.html").read_text()
    assert "by sex are not given" in page and "all images" in page


def test_labels_of_a_column_that_no_judge_reads_are_refused(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    images = Cohort.load(world / "generated").table["image"]
    (world / "labels.csv").write_text("image,age_group\n" + "".join(f"{image},old\n" for image in images[:3]))
    judges = [Path(judge.path) for judge in audited[0].judges]
    settings = AuditSettings(
        real=world / "real", synthetic=world / "generated", out=world / "l.json", judge=judges, labels=world / "labels.csv", **SMALL
    )
    with pytest.raises(UserError, match="age_group has labels, but no judge reads it"):
        audit_cohorts(settings)


def test_a_guide_may_not_judge_unless_forced(
    audited: tuple[AuditResult, Path, dict[str, int]], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(world / "cache"))
    guide = next(judge for judge in audited[0].judges if judge.target == "sex")
    shutil.copytree(world / "generated", world / "aligned")
    schema = json.loads((world / "aligned" / "cohort.json").read_text())
    aligned = {"guides": [{"sha256": guide.sha256}], "model_provenance": {}}
    schema["made"]["model_provenance"] = {"guides": [{"sha256": "a later one"}], "model_provenance": aligned}  # and aligned again
    (world / "aligned" / "cohort.json").write_text(json.dumps(schema))
    settings = AuditSettings(
        real=world / "real", synthetic=world / "aligned", out=world / "aligned.json", judge=[Path(guide.path)], **SMALL
    )
    with pytest.raises(UserError, match=r"this classifier guided the alignment of the model .* give one that took no part"):
        audit_cohorts(settings)
    forced = audit_cohorts(settings.model_copy(update={"force_judge": True}))
    assert any("guided the model's alignment (--force-judge)" in finding.text for finding in forced.findings)


def test_a_rule_that_cannot_be_read_fails_before_any_work(world: Path) -> None:
    good = {"real": world / "real", "synthetic": world / "generated", "out": world / "rules.json", **SMALL}
    with pytest.raises(UserError, match="unknown attribute 'sexx'"):
        audit_cohorts(AuditSettings(**good, fail_on=["presence:sexx>0.1"]))
    with pytest.raises(UserError, match="unknown kind 'beauty'"):
        audit_cohorts(AuditSettings(**good, primary=["beauty:sex"]))
    assert not (world / "rules-judges").exists()


def test_wrong_inputs_are_one_line_errors(world: Path) -> None:
    good = {"real": world / "real", "synthetic": world / "generated", **SMALL}
    with pytest.raises(UserError, match=r"name a \.json file"):
        audit_cohorts(AuditSettings(out=world / "audit.txt", **good))
    with pytest.raises(UserError, match="not a cohort"):
        audit_cohorts(AuditSettings(out=world / "x.json", **{**good, "synthetic": world}))
    with claim(world / "busy-judges"), pytest.raises(UserError, match="in use by process"):
        audit_cohorts(AuditSettings(out=world / "busy.json", **good))
    with pytest.raises(UserError, match="no such file"):
        AuditResult.load(world / "absent.json")
    write_json(world / "other.json", {"format": 99})
    with pytest.raises(UserError, match="not an audit of format 5"):
        AuditResult.load(world / "other.json")
