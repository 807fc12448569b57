"""Losses, weights and averages against literals worked by hand and against diffusers' own formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from evenhand.core.errors import UserError
from evenhand.engine.ema import Averages
from evenhand.engine.losses import min_snr_weights, per_sample_loss, signal_to_noise, target_of

# abar = 0.64 and 0.64 x 0.5625 = 0.36: square roots 0.8 and 0.6
BETAS = [0.36, 0.4375]


def _scheduler(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=2, trained_betas=BETAS, prediction_type=prediction)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("epsilon", [1.0, 1.0]),
        ("v_prediction", [0.8 * 1 - 0.6 * 2, 0.6 * 1 - 0.8 * 2]),  # sqrt(abar) noise - sqrt(1 - abar) x
        ("sample", [2.0, 2.0]),
    ],
)
def test_targets_by_hand(prediction: str, expected: list[float]) -> None:
    latents, noise = torch.full((2, 3, 4, 4), 2.0), torch.ones(2, 3, 4, 4)
    target = target_of(_scheduler(prediction), latents, noise, torch.tensor([0, 1]))
    assert target.shape == latents.shape
    torch.testing.assert_close(target[:, 0, 0, 0], torch.tensor(expected))
    zero = torch.zeros_like(target)
    torch.testing.assert_close(per_sample_loss(zero, target), torch.tensor(expected).square())


def test_the_loss_is_a_mean_over_each_sample_in_float32() -> None:
    prediction = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 3.0]]]], dtype=torch.bfloat16)
    target = torch.tensor([[[[1.0, 3.0]]], [[[1.0, 3.0]]]], dtype=torch.bfloat16)
    loss = per_sample_loss(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [5.0, 0.0]


def test_an_unknown_prediction_type_is_named() -> None:
    scheduler = _scheduler("epsilon")
    scheduler.register_to_config(prediction_type="v_predictoin")
    with pytest.raises(UserError) as error:
        target_of(scheduler, torch.zeros(1), torch.zeros(1), torch.tensor([0]))
    assert str(error.value) == (
        "scheduler: prediction type 'v_predictoin' is not supported; did you mean 'v_prediction'? There is: epsilon, v_prediction, sample"
    )


def test_signal_to_noise_by_hand() -> None:
    torch.testing.assert_close(signal_to_noise(_scheduler("epsilon"), torch.tensor([0, 1])), torch.tensor([16 / 9, 9 / 16]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_those_of_diffusers(prediction: str, gamma: float) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    timesteps = torch.arange(0, 1000, 37)
    snr = compute_snr(scheduler, timesteps)
    clipped = torch.minimum(snr, torch.full_like(snr, gamma))  # as in examples/text_to_image/train_text_to_image.py
    oracle = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[prediction]
    torch.testing.assert_close(min_snr_weights(scheduler, timesteps, gamma), oracle, rtol=1e-4, atol=1e-7)


def test_weights_stay_finite_where_no_signal_is_left() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert signal_to_noise(scheduler, torch.tensor([999])).item() == 0
    assert min_snr_weights(scheduler, torch.tensor([0, 999]), 5.0).isfinite().all()


def test_averages_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.0]))
    averages = Averages([parameter], decay=0.2)
    seen = []
    for value in (1.0, 2.0, 3.0):
        parameter.data.fill_(value)
        averages.update()
        with averages.applied():
            seen.append(parameter.item())
        assert parameter.item() == value
    # the decay warms up: 0, then 2/11 = 0.1818, then 3/12 = 0.25, of which 0.2 is left
    second = 2 / 11 * 1 + 9 / 11 * 2
    assert seen == pytest.approx([1.0, second, 0.2 * second + 0.8 * 3])
    assert averages.updates == 3


def test_averages_taken_back_go_on_as_before() -> None:
    parameter = torch.nn.Parameter(torch.tensor([5.0]))
    averages = Averages([parameter], decay=0.9)
    averages.adopt(4)
    parameter.data.fill_(10.0)
    averages.update()
    with averages.applied():
        assert parameter.item() == pytest.approx(5 / 14 * 5 + 9 / 14 * 10)  # (1 + 4) / (10 + 4)
