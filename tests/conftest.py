"""Shared by all tests: as many threads in every process, a cache of their own, and one tiny model of real classes."""

import os

# Before torch is imported. One thread: sums are the same in every process. Sleeping while they wait, should there be more: the threads of
# several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.pop("EVENHAND_DEBUG", None)

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is computed once stays within this test session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENHAND_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 brain phantoms of 32 px, 70 % male, sex and age stated."""
    from evenhand.cohorts.phantoms.cohort import write_phantoms

    out = tmp_path_factory.mktemp("cohorts") / "brain"
    write_phantoms("brain", out, n=120, mix="sex=male:0.7,female:0.3", size=32, seed=0)
    return out


@pytest.fixture(scope="session")
def tiny(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Stable Diffusion pipeline fitted on ``brain`` for a few steps."""
    from evenhand.models.tiny import TinySettings, init_tiny_latent

    out = tmp_path_factory.mktemp("models") / "tiny"
    settings = TinySettings(cohort=brain, out=out, clip_steps=2, autoencoder_steps=5, width=16, batch_size=8)
    return init_tiny_latent(settings)


@pytest.fixture(scope="session")
def imagen(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade of 16 and 32 px in gray, its text side fitted on ``brain`` for a few steps."""
    from evenhand.models.tiny import TinyImagenSettings, init_tiny_imagen

    out = tmp_path_factory.mktemp("models") / "imagen"
    return init_tiny_imagen(TinyImagenSettings(cohort=brain, out=out, clip_steps=2, width=16, batch_size=8))


@pytest.fixture(scope="session")
def skin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 dermoscopy phantoms in colour: 34 of them for training."""
    from evenhand.cohorts.phantoms.cohort import write_phantoms

    out = tmp_path_factory.mktemp("cohorts") / "skin"
    write_phantoms("dermoscopy", out, n=48, size=32, seed=0)
    return out


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest Stable Diffusion folder, for ``skin``, as plain diffusers writes it: what tests of the loop train."""
    from models.plain import write_plain

    return write_plain(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def classifier_folder(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of sex, trained on ``brain`` for a few steps."""
    from evenhand.models.classifiers import ClassifierSettings, train_classifier

    out = tmp_path_factory.mktemp("classifiers") / "sex"
    train_classifier(ClassifierSettings(cohort=brain, target="sex", out=out, steps=20, batch_size=16))
    return out
