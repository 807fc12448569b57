"""Classifiers tell phantoms apart, are calibrated on held-out subjects, and say where they cannot be measured."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from full_disk import fail_at_every_write
from sklearn.metrics import confusion_matrix, roc_auc_score
from transformers import AutoModelForImageClassification

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.models.classifiers import ARCHITECTURES, Classifier, ClassifierSettings, _auc, _temperature, augmented, train_classifier
from evenhand.models.encoders import Encoder


def test_it_tells_phantoms_apart_and_says_how_well(classifier_folder: Path, brain: Path) -> None:
    classifier = Classifier.load(classifier_folder)
    test = Cohort.load(brain).split("test")
    probabilities = classifier.predict(test.pixels())
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    labels = (test.table["sex"] == classifier.groups[1]).to_numpy()
    oracle = roc_auc_score(labels, probabilities[:, 1])
    assert oracle > 0.9
    assert classifier.auc == pytest.approx(oracle, abs=1e-6)
    assert classifier.target == "sex" and classifier.temperature > 0
    facts = json.loads((classifier_folder / "calibration.json").read_text())
    assert facts["n"] == {split: len(Cohort.load(brain).split(split)) for split in ("train", "val", "test")}
    assert set(facts["auc_by_group"]) == {"age_group"}
    read_as = confusion_matrix(labels, probabilities.argmax(1), normalize="true")
    np.testing.assert_allclose(facts["read_as"], read_as)
    assert facts["test_subjects"] == [test.table["subject_id"][labels == code].nunique() for code in (0, 1)]
    assert classifier.subjects_sha256 == facts["subjects_sha256"] and len(facts["subjects_sha256"]) == 64
    assert AutoModelForImageClassification.from_pretrained(classifier_folder).config.id2label == dict(enumerate(classifier.groups))


def test_predictions_are_tempered(classifier_folder: Path, brain: Path) -> None:
    import dataclasses

    images = Cohort.load(brain).pixels(range(4))
    classifier = Classifier.load(classifier_folder)
    cold = dataclasses.replace(classifier, temperature=1.0)
    tensor = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(classifier.logits(tensor) * classifier.temperature, cold.logits(tensor))


def test_an_absent_group_is_undefined_and_so_is_one_class(brain: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(brain)
    schema = cohort.schema.model_copy(update={"attributes": {**cohort.schema.attributes, "age_group": ["young", "middle", "old"]}})
    Cohort(schema, cohort.table, cohort.root).save(tmp_path / "cohort")
    out = tmp_path / "classifier"
    train_classifier(ClassifierSettings(cohort=tmp_path / "cohort", target="age_group", out=out, steps=1, batch_size=4, augment=False))
    facts = json.loads((out / "calibration.json").read_text())
    assert facts["groups"] == ["young", "middle", "old"] and facts["auc"] is not None
    assert facts["read_as"][1] is None and sum(facts["read_as"][0]) == pytest.approx(1) and facts["test_subjects"][1] == 0
    out2 = tmp_path / "sex"
    train_classifier(ClassifierSettings(cohort=tmp_path / "cohort", target="sex", out=out2, steps=1, batch_size=4))
    by_group = json.loads((out2 / "calibration.json").read_text())["auc_by_group"]["age_group"]
    assert by_group["middle"] is None and isinstance(by_group["old"], float)


@pytest.mark.parametrize(
    "changed",
    [
        {"read_as": [[1.0, 0.0]]},
        {"read_as": [[1.0, 0.0], [1.0]]},
        {"read_as": [[80, 20], [35, 65]]},
        {"read_as": [[1.0, None], [0.0, 1.0]]},
        {"read_as": {"male": [1.0, 0.0]}},
        {"test_subjects": 9},
        {"test_subjects": [9, None]},
        {"test_subjects": [9]},
    ],
)
def test_errors_that_make_no_sense_are_refused(changed: dict[str, object], classifier_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(classifier_folder, tmp_path / "broken")
    facts = json.loads((broken / "calibration.json").read_text())
    (broken / "calibration.json").write_text(json.dumps({**facts, **changed}))
    with pytest.raises(UserError, match=r"calibration\.json: 'read_as' must have a row of 2 shares .* train the classifier again"):
        Classifier.load(broken)


@pytest.mark.parametrize("arch", ["vit", "efficientnet"])
def test_every_architecture_trains_and_loads(arch: str, brain: Path, tmp_path: Path) -> None:
    settings = ClassifierSettings(cohort=brain, target="sex", out=tmp_path / arch, arch=arch, steps=1, batch_size=2)
    classifier = train_classifier(settings)
    assert classifier.model.config.model_type == arch
    np.testing.assert_allclose(classifier.predict(Cohort.load(brain).pixels([0])).sum(1), 1)
    assert Encoder.load(tmp_path / arch).features(Cohort.load(brain).pixels([0, 1])).shape[0] == 2


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_an_untrained_network_sees_its_images(arch: str) -> None:
    """Weights of .02 throughout, as a library may draw them, let nothing of an image arrive: logits were equal to 1e-33."""
    torch.manual_seed(0)
    labels = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = ARCHITECTURES[arch](labels, 64).train()
    with torch.no_grad():
        logits = model(pixel_values=torch.rand(8, 3, 64, 64) * 2 - 1).logits
    assert logits.std(0).min() > 1e-3


def test_faults_are_named(brain: Path, tmp_path: Path) -> None:
    base = {"cohort": brain, "target": "sex", "out": tmp_path / "out", "steps": 1}
    with pytest.raises(UserError) as error:
        train_classifier(ClassifierSettings(**{**base, "arch": "resnt"}))
    assert str(error.value) == f"--arch: unknown architecture 'resnt'; did you mean 'resnet'? There is: {', '.join(ARCHITECTURES)}"
    with pytest.raises(UserError) as error:
        train_classifier(ClassifierSettings(**{**base, "target": "sexe"}))
    assert str(error.value).startswith(f"{brain}: no attribute or condition 'sexe'; did you mean 'sex'? There is: ")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="exists already; choose another output folder or remove it"):
        train_classifier(ClassifierSettings(**{**base, "out": tmp_path / "used"}))


def test_a_one_group_cohort_is_refused(brain: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(brain)
    cohort.subset(cohort.table["sex"] == "male").save(tmp_path / "men")
    with pytest.raises(UserError) as error:
        train_classifier(ClassifierSettings(cohort=tmp_path / "men", target="sex", out=tmp_path / "out"))
    assert str(error.value) == f"{tmp_path / 'men'}: sex has one group only in the training split (male); nothing to tell apart"


def test_a_group_that_the_schema_lacks_is_named_with_its_row(brain: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(brain)
    table = cohort.table.copy()
    table.loc[table.index[table["split"] == "train"][2], "sex"] = "other"
    Cohort(cohort.schema, table, cohort.root).save(tmp_path / "cohort")
    with pytest.raises(UserError, match="row 2: sex has no group 'other'; run 'evenhand cohort check'"):
        train_classifier(ClassifierSettings(cohort=tmp_path / "cohort", target="sex", out=tmp_path / "out", steps=1))


def test_temperature_is_the_one_of_least_log_loss() -> None:
    logits = np.random.default_rng(0).normal(size=(400, 3)) * 4
    tensor = torch.from_numpy(logits)
    codes = torch.multinomial((tensor / 2.5).softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    found = _temperature(logits, codes.numpy())
    assert found == pytest.approx(2.5, rel=0.25)
    losses = [float(F.cross_entropy(tensor / t, codes)) for t in (found * 0.98, found, found * 1.02)]
    assert losses[1] < losses[0] and losses[1] < losses[2]
    assert _temperature(logits[:3], np.zeros(3, np.int64)) == 1.0


def test_auc_of_several_classes_is_the_mean_over_those_present() -> None:
    logits = np.array([[2.0, 0, 0], [0, 1, 0], [1, 0.5, 0], [0.9, 1, 0]])
    codes = np.array([0, 1, 0, 1])
    assert _auc(logits, codes) == 1.0
    assert _auc(logits, np.zeros(4, int)) is None
    assert _auc(logits[:0], codes[:0]) is None


def test_augmented_images_stay_images() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    a, b = (augmented(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.shape == images.shape and a.min() >= 0 and a.max() <= 1 and torch.equal(a, b)
    assert not torch.allclose(a, images)


@pytest.fixture
def copy(classifier_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier_folder, tmp_path / "copy"))


def test_broken_folders_are_one_line(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Classifier.load(tmp_path)
    assert str(error.value) == f"{tmp_path}: no calibration.json; make a classifier with 'evenhand classifier train'"
    with pytest.raises(UserError) as error:
        Encoder.load(tmp_path)
    assert str(error.value) == f"{tmp_path}: not an encoder (no config.json); give a transformers vision folder or an Evenhand classifier"
    facts = json.loads((copy / "calibration.json").read_text())
    (copy / "calibration.json").write_text(json.dumps({**facts, "groups": ["a", "b", "c"]}))
    with pytest.raises(UserError) as error:
        Classifier.load(copy)
    assert str(error.value) == f"{copy}/calibration.json: 3 groups, the model tells 2 apart; train the classifier again"
    (copy / "calibration.json").write_text(json.dumps({"groups": ["a", "b"], "target": "sex"}))
    with pytest.raises(UserError) as error:
        Classifier.load(copy)
    assert str(error.value) == f"{copy}/calibration.json: no 'temperature'; train the classifier again"


def test_weights_that_are_not_safetensors_are_refused_and_not_unpickled(copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(canary))))
    Classifier.load(copy)
    (copy / "model.safetensors").unlink()
    for load in (Classifier.load, Encoder.load):
        with pytest.raises(UserError, match=r"it must be a .*folder with safetensors"):
            load(copy)
    assert not canary.exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (_write, (self.path,))


def _write(path: str) -> None:
    Path(path).write_text("executed")


def test_on_a_full_disk_no_half_classifier_appears(brain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenhand.models.classifiers._fit", lambda *args: None)
    facts = {"target": "sex", "groups": ["a", "b"], "temperature": 1}
    monkeypatch.setattr("evenhand.models.classifiers._held_out_facts", lambda *args: facts)
    out = tmp_path / "out"
    writes = fail_at_every_write(
        tmp_path, lambda: train_classifier(ClassifierSettings(cohort=brain, target="sex", out=out)), lambda: _nothing(out)
    )
    assert writes >= 4 and (out / "model.safetensors").is_file()


def _nothing(out: Path) -> None:
    assert not out.exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_with_code_of_its_own_is_refused_or_read_without_it(classifier_folder: Path, tmp_path: Path, known: bool) -> None:
    folder, mark = shutil.copytree(classifier_folder, tmp_path / "foreign"), tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom transformers import ResNetConfig as Own, ResNetModel as OwnModel\n"
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel", "AutoModelForImageClassification": "own.OwnModel"}
    config["model_type"] = config["model_type"] if known else "foreign"
    (folder / "config.json").write_text(json.dumps(config))
    for load in (Classifier.load, Encoder.load):
        if known:
            assert load(folder).model is not None
        else:
            with pytest.raises(UserError) as error:
                load(folder)
            assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists()


def test_no_question_is_asked_of_whether_to_run_a_folders_code(
    classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type whose configuration transformers knows, and which it has no model for but the folder's own."""
    folder, mark = shutil.copytree(classifier_folder, tmp_path / "foreign"), tmp_path / "executed"
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom transformers import ResNetModel as OwnModel\n"
    )
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "align_vision_model", "auto_map": {"AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    with pytest.raises(UserError, match="cannot load the encoder"):
        Encoder.load(folder)
    assert not asked and not mark.exists()
