"""Learning rates by what is trained, averages that are kept or not, and checkpoints that are freed."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from evenhand.core.artifacts import write_json
from evenhand.core.randomness import torch_generator
from evenhand.engine.checkpoints import load_latest
from evenhand.engine.ema import Averages
from evenhand.engine.rates import WARMUP, Rate, is_small
from evenhand.models.chunks import PIXELS_AT_ONCE, images_at_once
from evenhand.models.pipelines import load_pipeline, stage_of
from evenhand.models.stages import LatentStage
from evenhand.training.data import TrainingData
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState


def test_rates_go_by_what_is_trained(plain: Path, tiny: Path, tmp_path: Path) -> None:
    assert Rate.of(str(plain), lora=True) == Rate(1e-4, 0)
    assert Rate.of(str(plain), lora=False) == Rate(1e-5, WARMUP)
    assert Rate.of(str(tiny), lora=False).learning_rate == Rate.of(str(tiny), lora=True).learning_rate == 1e-3
    assert is_small({"steps": 3, "model_provenance": {"model_provenance": {"small": True}}})
    assert not is_small({"model_provenance": {"small": False, "model_provenance": {}}})


@pytest.mark.parametrize(("changes", "rate", "warmup"), [({}, 1e-5, WARMUP), ({"lora": 2}, 1e-4, 0), ({"learning_rate": 3e-3}, 3e-3, 0)])
def test_a_run_says_its_rate_and_goes_on_with_it(
    changes: dict[str, Any], rate: float, warmup: int, plain: Path, skin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(model=str(plain), cohort=skin, out=tmp_path / "run", steps=1, batch_size=2, **changes)
    train(settings)
    assert f"learning rate {rate:g}, warm-up {warmup} steps" in capfd.readouterr().err
    began = TrainSettings.resolve(tmp_path / "run" / "config.yaml")
    assert (began.learning_rate, began.warmup) == (rate, warmup)
    longer = settings.model_copy(update={"steps": 2, "resume": True, "learning_rate": None})
    assert train(longer).steps == 2 and TrainSettings.resolve(tmp_path / "run" / "config.yaml").learning_rate == rate


def test_a_run_on_a_run_of_a_small_model_has_its_rate(tiny: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "model_index.json", {})
    write_json(tmp_path / "evenhand.json", {"model_provenance": {"small": True}})
    assert Rate.of(str(tmp_path), lora=False).learning_rate == 1e-3


def test_without_ema_no_average_is_kept_and_the_model_is_the_last_one(plain: Path, skin: Path, tmp_path: Path) -> None:
    base = {"model": str(plain), "cohort": skin, "steps": 3, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 1}
    train(TrainSettings(**base, out=tmp_path / "run", ema=0))
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and set(checkpoint.tensors) == {"model", "optimizer"}
    weights = stage_of(load_pipeline(tmp_path / "run")).unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint.tensors["model"].items())
    parameter = torch.nn.Parameter(torch.ones(2))
    averages = Averages([parameter], 0)
    assert not averages.kept and averages._ema is None and averages.updates == 0
    averages.update()
    with averages.applied():
        assert parameter.tolist() == [1, 1]


def test_a_checkpoint_is_freed_before_the_next_one_is_made(plain: Path, skin: Path, tmp_path: Path) -> None:
    seen: list[weakref.ref[Any]] = []
    snapshot, restore = TrainingState.snapshot, TrainingState.restore

    def watched(state: TrainingState, fingerprint: dict[str, str]) -> Any:
        assert all(earlier() is None for earlier in seen)
        found = snapshot(state, fingerprint)
        seen.append(weakref.ref(found))
        return found

    def taken(state: TrainingState, checkpoint: Any, fingerprint: dict[str, str]) -> None:
        seen.append(weakref.ref(checkpoint))
        restore(state, checkpoint, fingerprint)

    base = {"model": str(plain), "cohort": skin, "out": tmp_path / "run", "batch_size": 2, "checkpoint_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "snapshot", watched)
        patch.setattr(TrainingState, "restore", taken)
        train(TrainSettings(**base, steps=2))
        train(TrainSettings(**base, steps=4, resume=True))
    assert len(seen) == 5  # four that were made, one that was read


@pytest.mark.parametrize(("part", "low", "high"), [(0.15, 0.0009, 0.0025), (0.0, 0.0, 0.0001)])
def test_the_noisiest_times_are_trained_where_times_are_logit_normal(part: float, low: float, high: float) -> None:
    """A part of .15 is uniform: .0015 of all times are 990 and later, of logit-normal ones a few in a million."""
    settings = TrainSettings(model="m", cohort=Path("c"), out=Path("o"), timesteps="logit-normal", uniform_part=part)
    data = TrainingData.__new__(TrainingData)
    data.settings, data.schedule_length = settings, 1000
    draws = torch_generator(0, "times")
    times = torch.tensor([data._timestep(draws) for _ in range(40_000)])
    assert low <= (times >= 990).double().mean() <= high
    middle = ((times >= 400) & (times < 600)).double().mean()  # logit-normal: Phi(ln 1.5) - Phi(-ln 1.5) = .315; uniform: .2
    assert float(middle) == pytest.approx((1 - part) * 0.3149 + part * 0.2, abs=0.01)


@pytest.mark.parametrize(("side", "images"), [(32, 50), (128, 50), (256, 16), (512, 4), (1024, 1), (2048, 1)])
def test_images_at_once_go_by_pixels(side: int, images: int) -> None:
    assert images_at_once(side, torch.device("cpu"), 50) == images


@torch.no_grad()
def test_an_autoencoder_works_through_large_batches_in_parts(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(load_pipeline(plain))
    assert isinstance(stage, LatentStage)
    pixels = torch.rand((5, 3, 32, 32), generator=torch_generator(0, "pixels"))
    whole, drawn = stage.encode(pixels), stage.decode(torch.ones(5, *stage.shape))
    sizes: list[int] = []
    vae = stage.pipeline.vae
    for name in ("encode", "decode"):
        compute = getattr(vae, name)
        monkeypatch.setattr(vae, name, lambda batch, compute=compute: (sizes.append(len(batch)), compute(batch))[1])
    monkeypatch.setattr("evenhand.models.chunks.PIXELS_AT_ONCE", 2 * 32 * 32)
    parts, again = stage.encode(pixels), stage.decode(torch.ones(5, *stage.shape))
    assert sizes == [2, 2, 1, 2, 2, 1] and PIXELS_AT_ONCE == 4 * 512 * 512
    for one, other in zip((*whole, drawn), (*parts, again), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # the last bits may go by what is computed together
