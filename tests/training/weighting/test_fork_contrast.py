"""The robust form by simulation: what it tries, when it moves, and that noise alone does not move it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fork_contrast import COUNTS, SimulatedFork, nothing, simulated_run, towards_balanced, towards_natural
from scipy.stats import t as student

from evenhand.training.weighting import METHODS, fork_contrast
from evenhand.training.weighting.fork_contrast import ForkContrast, Look
from evenhand.training.weighting.gaussian_process import propose_by_contrasts
from evenhand.training.weighting.method import Arm

RACE = {"race": list(COUNTS)}


def fresh(**options: object) -> ForkContrast:
    """A method that has not looked yet."""
    method = METHODS["bayesian_perturbation"](RACE, counts={**COUNTS, "unknown": 7}, **options)  # type: ignore[arg-type]
    assert isinstance(method, ForkContrast)
    return method


def arm(name: str, **losses: list[float]) -> Arm:
    """An arm with losses written down."""
    return Arm(name, {}, {group: np.array(values) for group, values in losses.items()})


def test_it_starts_at_balanced_sampling_and_caps_tiny_groups() -> None:
    odds = fresh().odds(0)
    assert odds == {"unknown": 1.0, "common": 1.0, "rare": 770 / 80, "some": 770 / 150}
    assert fresh().odds_at(np.zeros(3)) == dict.fromkeys(odds, 1.0)
    tiny = METHODS["bayesian_perturbation"](RACE, counts={"common": 1000, "rare": 1})
    assert tiny.odds(0) == {"common": 1.0, "rare": 20.0}  # 'some' has no image, and no sigma
    with pytest.raises(ValueError, match="needs counts"):
        METHODS["bayesian_perturbation"](RACE)


def test_losing_arms_take_at_most_their_share() -> None:
    method = fresh()
    looks = method.schedule(1500)
    assert looks == [60, 210, 360, 510, 660, 810] and len(looks) * 90 <= 0.4 * 1500
    assert np.diff(looks).min() >= 90 and looks[-1] + 90 + 6 * 90 <= 1500
    assert method.schedule(600) == [] and len(fresh(arm_steps=30).schedule(600)) == 6


def test_the_first_looks_measure_the_noise_and_go_on_as_the_run() -> None:
    method, asked = fresh(), []

    def fork(odds: dict[str, float], steps: int, replica: int = 0) -> Arm:
        asked.append((odds["rare"], steps, replica))
        return arm(f"arm-{len(asked)}", common=[1.0], rare=[2.0], some=[1.0])

    assert method.adapt(59, 1500, fork) is None and not asked
    first = method.adapt(60, 1500, fork)
    assert first is not None and first.name == "arm-1" and asked == [(9.625, 90, 0), (9.625, 90, 1)]
    assert method.adapt(60, 1500, fork) is None  # this look is done
    method.adapt(210, 1500, fork)
    assert asked[2:] == [(9.625, 90, 0), (9.625, 90, 2)]


def judging(*null: float) -> ForkContrast:
    """A method about to decide, the noise of whose forks is written down."""
    method = fresh()
    method.looks = [Look(60, [1.0] * 3, [1.0] * 3, gain, None, None, False, dict.fromkeys(COUNTS, gain)) for gain in null]
    return method


def test_the_decision_by_hand() -> None:
    method = judging(0.03, -0.03, 0.0)
    here = arm("here", common=[1.0, 3.0], rare=[2.0, 4.0], some=[1.0, 1.0])
    there = arm("there", common=[1.0, 3.0], rare=[1.0, 2.0], some=[0.5, 0.5])
    chosen = method.adapt(510, 1500, lambda odds, steps, replica=0: there if odds["rare"] == 1.0 else here)
    look = method.looks[-1]
    assert look.by_group == pytest.approx({"common": 0.0, "rare": 0.693147, "some": 0.693147}, rel=1e-5)
    assert look.gain == pytest.approx(0.462098, rel=1e-5)  # two thirds of log 2
    assert look.error == pytest.approx(0.0244949, rel=1e-5)  # sqrt(18e-4 / 3); the probe adds nothing: both losses fell alike
    # three forks measured the noise, three decide: the upper 1/60 of Student's distribution
    assert look.bound == pytest.approx(student.isf(0.05 / 3, 3))
    assert chosen is there and look.moved and method.sigma.tolist() == [0.5] * 3


def test_what_one_group_loses_counts_against_what_another_wins() -> None:
    method = judging(0.001, 0.001, 0.001)
    here, there = (
        arm(name, common=[common] * 2, rare=[rare] * 2, some=[1.0] * 2) for name, common, rare in (("here", 1.0, 3.0), ("there", 0.5, 6.0))
    )
    assert method.adapt(510, 1500, lambda odds, steps, replica=0: there if odds["rare"] == 1.0 else here) is here
    assert method.looks[-1].gain == pytest.approx(0.0, abs=1e-12) and not method.looks[-1].moved


def test_the_probes_own_noise_counts_by_image() -> None:
    rng = np.random.default_rng(0)
    here, there = ({"rare": rng.gamma(2, 1, 64), "common": np.ones(64)} for _ in range(2))
    ratio = there["rare"] / there["rare"].mean() - here["rare"] / here["rare"].mean()
    errors = {}
    for images in (64, 16, 1):
        method = judging(0.0, 0.0, 0.0)
        which = {"rare": np.arange(64) % images}
        method.adapt(510, 1500, lambda odds, steps, replica=0, w=which: Arm("a", {}, there if odds["rare"] == 1.0 else here, w))
        errors[images] = method.looks[-1].error
        assert not method.looks[-1].moved or images > 1
    # the mean over two groups, one of which has no noise: half the error
    assert errors[64] == pytest.approx(np.sqrt(np.var(ratio, ddof=1) / 64) / 2)
    assert errors[16] == pytest.approx(np.sqrt(np.var(ratio.reshape(4, 16).mean(axis=0), ddof=1) / 16) / 2)
    assert errors[1] == pytest.approx(5e5)


def test_a_group_without_held_out_images_keeps_its_odds() -> None:
    method, tried = judging(0.01, 0.01, 0.01), []

    def fork(odds: dict[str, float], steps: int, replica: int = 0) -> Arm:
        tried.append(odds)
        level = 1.0 if len(tried) == 1 else 0.1
        return arm("a", common=[level] * 2, some=[level] * 2)

    method.adapt(510, 1500, fork)
    assert tried[1] == {"unknown": 1.0, "common": 1.0, "rare": 9.625, "some": 1.0}
    assert dict(zip(method.present, method.sigma.tolist(), strict=True)) == {"common": 0.5, "rare": 1.0, "some": 0.5}


def test_losses_that_are_not_finite_decide_nothing() -> None:
    method = judging(0.01, 0.01, 0.01)
    here, there = (arm(name, common=[1.0] * 2, rare=[level] * 2, some=[1.0] * 2) for name, level in (("here", 3.0), ("there", np.nan)))
    assert method.adapt(510, 1500, lambda odds, steps, replica=0: there if odds["rare"] == 1.0 else here) is here
    assert method.looks[-1].gain is None and not method.looks[-1].moved
    json.dumps(method.state_dict(), allow_nan=False)
    assert method.adapt(660, 1500, lambda odds, steps, replica=0: here) is here  # it goes on


def test_sampling_is_its_own() -> None:
    with pytest.raises(ValueError, match="leave --sampling out"):
        METHODS["bayesian_perturbation"](RACE, counts=COUNTS, odds={"rare": 2.0})


def test_it_moves_to_the_right_side_and_not_to_the_wrong_one() -> None:
    runs = [simulated_run(SimulatedFork(seed, towards_natural), seed) for seed in range(8)]
    rare = [run.sigma[run.present.index("rare")] for run in runs]
    assert np.mean(np.array(rare) < 1) >= 0.75
    harmed = [simulated_run(SimulatedFork(seed, towards_balanced), seed) for seed in range(4)]
    assert sum(look.moved for run in harmed for look in run.looks) <= 1


def test_noise_alone_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all looks of a run; what is tried does not matter where no setting is better, so it is drawn at random."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(fork_contrast, "propose_by_contrasts", lambda *contrasts, **given: rng.random(3))
    for noise in ({}, {"shared": 0.5}, {"shared": 0.9}, {"rare_sd": 2.0}):
        moved = [any(look.moved for look in simulated_run(SimulatedFork(seed, nothing, **noise), seed).looks) for seed in range(600)]
        assert np.mean(moved) <= 0.075  # .05 and less than three standard errors


def test_the_process_over_contrasts_finds_the_better_side() -> None:
    """f falls with distance from (.2, .8): contrasts against (1, 1) are enough to propose near it."""
    rng = np.random.default_rng(1)
    tried, against = rng.random((12, 2)), np.ones((12, 2))

    def f(x: np.ndarray) -> np.ndarray:
        return -20 * ((x - [0.2, 0.8]) ** 2).sum(axis=-1)

    proposed = propose_by_contrasts(tried, against, f(tried) - f(against), np.ones(2), beta=0.01)
    assert proposed == pytest.approx([0.2, 0.8], abs=0.15)


def test_its_state_survives_json() -> None:
    run = simulated_run(SimulatedFork(0, towards_natural), 0)
    again = METHODS["bayesian_perturbation"](RACE, counts=COUNTS)
    again.load_state_dict(json.loads(json.dumps(run.state_dict())))
    assert again.state_dict() == run.state_dict() and again.odds(0) == run.odds(0)
    assert len(run.report()["looks"]) == 6 and run.report()["looks"] == []
