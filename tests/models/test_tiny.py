"""The offline model: the same from the same seed, gray and colour, and cohorts that it cannot be fitted on are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.errors import UserError
from evenhand.models.pipelines import image_geometry, load_pipeline
from evenhand.models.tiny import TinyImagenSettings, TinySettings, init_tiny_imagen, init_tiny_latent


def _settings(cohort: Path, out: Path, **changes: object) -> TinySettings:
    return TinySettings(**{"cohort": cohort, "out": out, "clip_steps": 2, "autoencoder_steps": 5, "width": 16, "batch_size": 8, **changes})


def test_the_same_seed_gives_the_same_model(tiny: Path, brain: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    init_tiny_latent(_settings(brain, tmp_path / "again"))
    assert torch.equal(torch.get_rng_state(), state)  # the global state is nobody's
    for file in tiny.rglob("*.safetensors"):
        a, b = load_file(file), load_file(tmp_path / "again" / file.relative_to(tiny))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_colour_at_64_px(tmp_path: Path) -> None:
    write_phantoms("dermoscopy", tmp_path / "skin", n=16, size=64, seed=0)
    settings = _settings(tmp_path / "skin", tmp_path / "model", clip_steps=0, autoencoder_steps=1, batch_size=2)
    pipeline = load_pipeline(init_tiny_latent(settings))
    assert image_geometry(pipeline) == (64, "RGB")
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels == 12


def test_a_cascade_of_the_same_seed_is_the_same_and_shares_the_text_side(tiny: Path, imagen: Path, brain: Path, tmp_path: Path) -> None:
    init_tiny_imagen(TinyImagenSettings(cohort=brain, out=tmp_path / "again", clip_steps=2, width=16, batch_size=8))
    for file in imagen.rglob("*.safetensors"):
        name = file.relative_to(imagen)
        assert file.read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    for name in ("text_encoder/model.safetensors", "clip/model.safetensors", "tokenizer/tokenizer.json"):
        assert (imagen / name).read_bytes() == (tiny / name).read_bytes(), name


def test_cohorts_that_do_not_fit_are_refused(brain: Path, tmp_path: Path) -> None:
    write_phantoms("brain", tmp_path / "odd", n=4, size=48, seed=0)
    with pytest.raises(UserError) as error:
        init_tiny_latent(_settings(tmp_path / "odd", tmp_path / "out"))
    assert str(error.value) == (f"{tmp_path / 'odd'}: images of 48 px; tiny-latent wants 32, 64, 128 or 256 (import again with --size)")
    with pytest.raises(UserError) as error:
        init_tiny_imagen(TinyImagenSettings(cohort=tmp_path / "odd", out=tmp_path / "out"))
    assert str(error.value) == f"{tmp_path / 'odd'}: images of 48 px; tiny-imagen wants 32 or 64 (import again with --size)"
    with pytest.raises(UserError, match=r"training images, fewer than one batch of 500"):
        init_tiny_latent(_settings(brain, tmp_path / "out", batch_size=500))
    assert not (tmp_path / "out").exists()
