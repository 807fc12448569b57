"""Features and predictions: once an image, whatever its name and however often it is asked for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder


class Counting(Encoder):
    """Counts the images that it is given."""

    def features(self, images: np.ndarray) -> np.ndarray:
        self.counts.append(len(images))
        return super().features(images)

    @property
    def counts(self) -> list[int]:
        return self.__dict__.setdefault("_counts", [])


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoder(classifier_folder: Path) -> Encoder:
    return Encoder.load(classifier_folder)


def _counting(encoder: Encoder) -> Counting:
    return Counting(**{field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)})


def test_features_are_computed_once_an_image(encoder: Encoder, brain: Path, own_cache: Path) -> None:
    cohort, counting = Cohort.load(brain), _counting(encoder)
    part = cohort.subset(cohort.table.index < 10)
    first = cohort_features(counting, part, batch_size=4)
    assert counting.counts == [4, 4, 2] and first.shape == (10, 96) and first.dtype == np.float32
    again = cohort_features(counting, part, batch_size=4)
    assert counting.counts == [4, 4, 2]
    np.testing.assert_array_equal(again, first)
    more = cohort_features(counting, cohort.subset(cohort.table.index < 13), batch_size=4)
    assert counting.counts == [4, 4, 2, 3]
    np.testing.assert_array_equal(more[:10], first)
    np.testing.assert_allclose(more, encoder.features(cohort.pixels(range(13))), rtol=1e-4, atol=1e-5)


def test_equal_images_are_computed_once(encoder: Encoder, brain: Path, own_cache: Path) -> None:
    cohort, counting = Cohort.load(brain), _counting(encoder)
    twice = Cohort(cohort.schema, cohort.table.iloc[[3, 5, 3, 3, 5]].reset_index(drop=True), cohort.root)
    features = cohort_features(counting, twice)
    assert sum(counting.counts) == 2
    np.testing.assert_array_equal(features, features[[0, 1, 0, 0, 1]])
    assert not np.array_equal(features[0], features[1])


def test_an_empty_cohort_has_no_features(encoder: Encoder, brain: Path, own_cache: Path) -> None:
    cohort = Cohort.load(brain)
    assert len(cohort_features(encoder, cohort.subset(cohort.table.index < 0))) == 0


def test_predictions_are_those_of_the_classifier(classifier_folder: Path, brain: Path, own_cache: Path) -> None:
    cohort, classifier = Cohort.load(brain), Classifier.load(classifier_folder)
    few = cohort.subset(cohort.table.index < 6)
    np.testing.assert_allclose(cohort_predictions(classifier, few), classifier.predict(few.pixels()), atol=1e-6)
    warmer = dataclasses.replace(classifier, temperature=classifier.temperature * 10)
    assert np.abs(cohort_predictions(warmer, few) - 0.5).max() < np.abs(cohort_predictions(classifier, few) - 0.5).max()


def test_other_preprocessing_is_another_encoder(classifier_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(classifier_folder, other)
    assert Encoder.load(other).sha256 == Encoder.load(classifier_folder).sha256
    settings = other / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4"))
    assert Encoder.load(other).sha256 != Encoder.load(classifier_folder).sha256


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_stop_and_are_not_kept(encoder: Encoder, brain: Path, own_cache: Path, value: float) -> None:
    few = Cohort.load(brain).subset(np.arange(120) < 3)

    class Overflowing(Encoder):
        def features(self, images: np.ndarray) -> np.ndarray:
            found = super().features(images)
            found[1, 4] = value
            return found

    bad = Overflowing(**{field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)})
    for _ in range(2):
        with pytest.raises(UserError, match=r"not finite \(NaN or infinity\) for 1 of 3 images"):
            cohort_features(bad, few)
    assert np.isfinite(cohort_features(encoder, few)).all()
