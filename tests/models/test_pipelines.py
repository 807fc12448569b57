"""Models are read from safetensors, and what cannot be read is said in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file

from evenhand.core.errors import UserError
from evenhand.models.pipelines import (
    encode_prompts,
    image_geometry,
    load_pipeline,
    model_folder,
    model_hash,
    quiet_libraries,
    save_pipeline,
    training_scheduler,
    warn_of_overlong,
)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("clip"))
    return tmp_path / "model"


def test_a_model_loads_and_saves(tiny: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(tiny)
    assert image_geometry(pipeline) == (32, "L")
    save_pipeline(pipeline, tmp_path / "again")
    weights = "unet/diffusion_pytorch_model.safetensors"
    a, b = load_file(tiny / weights), load_file(tmp_path / "again" / weights)
    assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()
    assert {path.suffix for path in (tmp_path / "again").rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt"}


def test_a_run_folder_is_a_model(copy: Path, tmp_path: Path) -> None:
    assert model_folder(tmp_path) == copy
    assert model_folder(copy) == copy


def _message(model: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_pipeline(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_not_a_model(tmp_path: Path) -> None:
    assert _message(tmp_path) == (
        f"{tmp_path}: not a model (no model_index.json); make one with 'evenhand model init' or give a diffusers folder"
    )
    (tmp_path / "checkpoints").mkdir()
    assert _message(tmp_path) == f"{tmp_path}: a run that has not finished (no model yet); go on with 'evenhand train --resume'"


def test_an_unknown_pipeline_class_is_named(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionXLPipeline"}))
    families = "StableDiffusionPipeline (Stable Diffusion 1.x and 2.x, tiny-latent) and ImagenPipeline (tiny-imagen)"
    assert _message(copy) == f"{copy}: pipeline class 'StableDiffusionXLPipeline' is not supported; supported are {families}"
    (copy / "model_index.json").write_text("{}")
    assert _message(copy) == f"{copy}: pipeline class None is not supported; supported are {families}"
    (copy / "model_index.json").write_text("[]")
    assert _message(copy) == f"{copy / 'model_index.json'}: not a table of components; copy the file again"


def _pickle_only(model: Path, canary: Path) -> None:
    folder = model / "unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(canary))))


def _text_pickle_only(model: Path, canary: Path) -> None:
    folder = model / "text_encoder"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(canary))))


def _truncated(model: Path, canary: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _other_shapes(model: Path, canary: Path) -> None:
    file = model / "unet" / "config.json"
    file.write_text(file.read_text().replace('"cross_attention_dim": 64', '"cross_attention_dim": 32'))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (_pickle_only, "unet: the weights are pickles (diffusion_pytorch_model.bin)"),
        (_text_pickle_only, "text_encoder: the weights are pickles (pytorch_model.bin)"),
        (_truncated, "unet/diffusion_pytorch_model.safetensors: not a whole safetensors file ("),
        (_other_shapes, "unet: 14 weights have another shape than config.json says (down_blocks.1.attentions.0"),
    ],
)
def test_broken_weights_are_one_line_and_no_pickle_is_opened(break_it: Callable, reason: str, copy: Path, tmp_path: Path) -> None:
    break_it(copy, tmp_path / "canary")
    assert _message(copy).startswith(f"{copy}/{reason}")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_never_executed(copy: Path, tmp_path: Path) -> None:
    planted = ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "training_args.bin")
    for name in planted:
        (copy / name).write_bytes(pickle.dumps(Bomb(str(tmp_path / "canary"))))
    load_pipeline(copy)
    assert not (tmp_path / "canary").exists()
    pickle.loads((copy / "training_args.bin").read_bytes())
    assert (tmp_path / "canary").exists()  # it would have been noticed


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (_write, (self.path,))


def _write(path: str) -> None:
    Path(path).write_text("executed")


def test_a_latent_without_a_side_is_refused(copy: Path) -> None:
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 16', '"sample_size": [16, 24]'))
    assert _message(copy) == f"{copy}/unet/config.json: sample_size is [16, 24]; write the latent's side, one number"


def test_a_hub_model_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = _message("nobody/no-such-model")
    assert message.startswith("nobody/no-such-model: no such folder here, and not to be had from the hub (")


def test_a_hub_model_is_fetched_once_and_hashed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    asked = []

    def download(name: str, **named: object) -> str:
        asked.append((name, named))
        return str(copy)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert image_geometry(load_pipeline("org/name")) == (32, "L")
    assert model_hash("org/name") == model_hash(copy)
    assert asked == [("org/name", {"use_safetensors": True})] * 2


def test_the_hash_knows_everything_that_changes_an_image(copy: Path) -> None:
    before = {model_hash(copy)}
    for name, a, b in (
        ("scheduler/scheduler_config.json", "v_prediction", "epsilon"),
        ("vae/config.json", '"scaling_factor": ', '"scaling_factor": 1'),
        ("tokenizer/tokenizer_config.json", "model_max_length", "model_max_lengths"),
    ):
        text = (copy / name).read_text()
        assert a in text, name
        (copy / name).write_text(text.replace(a, b))
        assert model_hash(copy) not in before, name
        before.add(model_hash(copy))


def test_prompts_over_the_limit_are_found_and_cut(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = load_pipeline(tiny)
    short, long = "Brain MR slice of a male patient", "Brain MR slice of a male patient " * 20
    warn_of_overlong(pipeline, [short, long, short, long])
    assert "1 prompts (2 images) exceed the tokenizer's" in capsys.readouterr().err
    for none in ([short], []):
        warn_of_overlong(pipeline, none)
    assert not capsys.readouterr().err
    states = encode_prompts(pipeline, [short, long])
    assert states.shape == (2, pipeline.tokenizer.model_max_length, 64)
    oracle, _ = pipeline.encode_prompt([short, long[:100]], "cpu", 1, False)
    torch.testing.assert_close(states[:1], oracle[:1])


def test_training_knows_the_noise_of_any_scheduler(tiny: Path) -> None:
    pipeline = load_pipeline(tiny)
    schedule = training_scheduler(pipeline)
    torch.testing.assert_close(schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert schedule.config.prediction_type == "v_prediction"


def test_quiet_leaves_settings_as_they_were() -> None:
    import logging

    diffusers_logging.disable_progress_bar()
    before = logging.getLogger("diffusers").level
    with quiet_libraries():
        assert logging.getLogger("diffusers").level == logging.ERROR
    assert logging.getLogger("diffusers").level == before and not diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.enable_progress_bar()
