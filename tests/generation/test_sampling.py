"""A model that was saved by a run is drawn as the one that it was made of: the same timesteps, the same images to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import read_json, sha256_file, write_json
from evenhand.core.errors import UserError
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.denoise import sampler
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import load_pipeline, save_pipeline, training_scheduler
from evenhand.models.sampling import Sampling
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

# scheduler/scheduler_config.json as the hub holds it
SD_1_5 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD_2_1 = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
SPARSE = {"_class_name": "DPMSolverSinglestepScheduler", "_diffusers_version": "0.20.0", "beta_schedule": "scaled_linear"}
CONFIGS: dict[str, tuple[dict[str, Any], str, int]] = {
    "sd 1.5": (SD_1_5, "linspace", 999),
    "sd 2.1": (SD_2_1, "linspace", 999),
    "stated leading": ({**SD_1_5, "timestep_spacing": "leading"}, "leading", 951),
    "stated trailing": ({**SD_2_1, "timestep_spacing": "trailing"}, "trailing", 999),
    "zero terminal SNR": ({**SD_2_1, "rescale_betas_zero_snr": True}, "trailing", 999),
    "no offset": ({key: value for key, value in SD_1_5.items() if key != "steps_offset"} | {"timestep_spacing": "leading"}, "leading", 950),
    "single-step": (SPARSE, "linspace", 999),
}


def with_scheduler(plain: Path, folder: Path, config: dict[str, Any]) -> Path:
    """The plain model with a scheduler file of its own."""
    shutil.copytree(plain, folder)
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "scheduler": ["diffusers", config["_class_name"]]})
    return folder


def times(model: Path, name: str = "dpm++") -> list[int]:
    """Timesteps of 25 solver steps as ``generate`` takes them."""
    solver = sampler(load_pipeline(model).scheduler, name, Sampling.resolve(model, sampler=name).timestep_spacing)  # type: ignore[arg-type]
    with quiet_libraries():  # diffusers hands tensors to numpy in a way that numpy warns of
        solver.set_timesteps(25)
    return [int(time) for time in solver.timesteps]


def images(model: Path, out: Path, like: Path, **changes: Any) -> list[str]:
    """Hashes of two drawn images."""
    cohort = generate(GenerateSettings(**{"model": str(model), "like": like, "out": out, "n": 2, "steps": 3, **changes}))
    return [sha256_file(cohort.image_path(name)) for name in cohort.table["image"]]


def untouched(model: Path, cohort: Path, out: Path, **changes: Any) -> Path:
    """A run of one step whose rate is too small to change a weight."""
    base = {"steps": 1, "batch_size": 2, "learning_rate": 1e-30, "weight_decay": 0.0, "ema": 0.0}
    train(TrainSettings(model=str(model), cohort=cohort, out=out, **{**base, **changes}))
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_the_grid_is_that_of_the_scheduler_file_before_and_after_saving(name: str, plain: Path, skin: Path, tmp_path: Path) -> None:
    config, spacing, first = CONFIGS[name]
    fresh = with_scheduler(plain, tmp_path / "fresh", config)
    run = untouched(fresh, skin, tmp_path / "run", **({"lora": 2} if name == "sd 2.1" else {}))
    again = untouched(run, skin, tmp_path / "again")
    block = read_json(run / "model" / "evenhand.json")["sampling"]
    assert block == {"sampler": "dpm++", "timestep_spacing": spacing} == read_json(again / "model" / "evenhand.json")["sampling"]
    assert times(fresh)[0] == first and len(times(fresh)) == 25
    assert times(fresh) == times(run) == times(again) and times(fresh, "model") == times(run, "model")
    drawn = [images(model, tmp_path / f"drawn-{place}", skin) for place, model in enumerate((fresh, run, again))]
    assert drawn[0] == drawn[1] == drawn[2]
    saved, stated = (read_json(model / "scheduler" / "scheduler_config.json") for model in (run / "model", fresh))
    assert {**saved, "_diffusers_version": ""} == {**stated, "_diffusers_version": ""}  # nothing of diffusers' own is written out


def test_saving_alone_keeps_the_grid(plain: Path, tmp_path: Path) -> None:
    fresh = with_scheduler(plain, tmp_path / "fresh", SD_1_5)
    save_pipeline(load_pipeline(fresh), tmp_path / "saved")
    assert times(tmp_path / "saved") == times(fresh)


@pytest.mark.parametrize("beside", ["scheduler_old", "samplers"])
def test_a_scheduler_that_lies_beside_the_model_does_not_count(beside: str, plain: Path, tmp_path: Path) -> None:
    model = with_scheduler(plain, tmp_path / "model", {**SD_1_5, "timestep_spacing": "leading"})
    shutil.copytree(model / "scheduler", model / beside)
    write_json(model / beside / "scheduler_config.json", {**SD_1_5, "timestep_spacing": "trailing"})
    assert Sampling.resolve(model).timestep_spacing == "leading"


def test_a_prediction_that_the_file_does_not_state_is_trained_and_saved(plain: Path, skin: Path, tmp_path: Path) -> None:
    fresh = with_scheduler(plain, tmp_path / "fresh", SD_1_5)
    run = untouched(fresh, skin, tmp_path / "run", prediction="v_prediction")
    pipeline = load_pipeline(run)
    assert training_scheduler(pipeline).config.prediction_type == "v_prediction"
    assert sampler(pipeline.scheduler).config.prediction_type == "v_prediction"


def test_options_come_before_what_a_model_records_and_that_before_defaults(plain: Path, skin: Path, tmp_path: Path) -> None:
    model = with_scheduler(plain, tmp_path / "model", SD_1_5)
    assert Sampling.resolve(model) == Sampling(25, 3.0, "dpm++", "linspace")
    write_json(model / "evenhand.json", {"sampling": {"steps": 7, "guidance_scale": 1.5, "timestep_spacing": "leading"}})
    assert Sampling.resolve(model) == Sampling(7, 1.5, "dpm++", "leading")
    assert Sampling.resolve(model, steps=3, guidance_scale=1, timestep_spacing="trailing") == Sampling(3, 1, "dpm++", "trailing")
    assert Sampling.resolve(model, sampler="model").timestep_spacing is None  # the saved one as it is: that spacing was another solver's
    cohort = generate(GenerateSettings(model=str(model), like=skin, out=tmp_path / "drawn", n=1, guidance_scale=2))
    told = [cohort.schema.made["settings"][key] for key in ("steps", "guidance_scale", "timestep_spacing", "batch_size")]
    assert told == [7, 2, "leading", 50]
    assert set(cohort.table["steps"]) == {7}


@pytest.mark.parametrize(
    ("block", "message"),
    [({"steps": 0}, "steps: Input should be greater than or equal to 1"), ({"timestep_spacing": "even"}, "timestep_spacing: Input should"),
     ([25], r"sampling is \[25\]"), ({"stepps": 3}, "stepps: Extra inputs are not permitted")],
)  # fmt: skip
def test_a_block_that_cannot_be_read_is_refused(block: Any, message: str, plain: Path, tmp_path: Path) -> None:
    model = shutil.copytree(plain, tmp_path / "model")
    (model / "evenhand.json").write_text(json.dumps({"sampling": block}))
    with pytest.raises(UserError, match=message):
        Sampling.resolve(model)


def test_a_spacing_for_a_scheduler_that_knows_none_is_refused(plain: Path, skin: Path, tmp_path: Path) -> None:
    model = with_scheduler(plain, tmp_path / "model", {"_class_name": "RePaintScheduler", "num_train_timesteps": 1000})
    with pytest.raises(UserError, match="RePaintScheduler has none"):
        sampler(load_pipeline(model).scheduler, "model", "trailing")


def test_a_resumed_generation_keeps_what_it_began_with(plain: Path, skin: Path, tmp_path: Path) -> None:
    first = images(plain, tmp_path / "drawn", skin, steps=2, guidance_scale=1, batch_size=1)
    for name in ("cohort.json", "cohort.parquet", "images/0000001.png"):
        (tmp_path / "drawn" / name).unlink()
    again = generate(GenerateSettings(model=str(plain), like=skin, out=tmp_path / "drawn", n=2, resume=True))
    assert [sha256_file(again.image_path(name)) for name in again.table["image"]] == first
    assert Cohort.load(tmp_path / "drawn").schema.made["settings"]["batch_size"] == 1


def test_zero_terminal_snr_with_leading_timesteps_is_warned_of(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = {**SD_2_1, "rescale_betas_zero_snr": True, "timestep_spacing": "leading"}
    assert Sampling.resolve(with_scheduler(plain, tmp_path / "model", config)).timestep_spacing == "leading"
    assert "give --timestep-spacing trailing" in " ".join(capfd.readouterr().err.split())
