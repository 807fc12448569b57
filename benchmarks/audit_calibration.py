"""Does the audit cry wolf, miss a gap, or guess? Simulated worlds where the truth is known, at full size.

    python benchmarks/audit_calibration.py presence --repeats 100

Each section writes results/audit_calibration_SECTION.json. The test suite holds the same at reduced size.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from calibration_verdicts import fidelity, reached, shares, utility
from common import write_result
from PIL import Image
from refusals import refusals
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import norm

from evenhand.audit.decisions import holm, paired_bootstrap
from evenhand.audit.fidelity import kernel_distance
from evenhand.audit.gaps import quality_gap
from evenhand.audit.memorization import score_copies
from evenhand.audit.paired import paired_auc, paired_rates
from evenhand.audit.representation import estimate_mix, mix_gap
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.randomness import generator
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder

Rates = dict[str, Any]


def two_groups(rng: np.random.Generator, n: int, share: float, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and logits (n,) of a classifier of this accuracy at equal shares, calibrated there."""
    apart = 2 * norm.ppf(accuracy)
    labels = (rng.random(n) < share).astype(int)
    return labels, apart * (rng.normal(size=n) + apart * (labels - 0.5))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probability of the second group."""
    return 1 / (1 + np.exp(-logits))


def presence(repeats: int) -> Rates:
    """Bias, error and coverage of the corrected share; refusals where only the mix differs, and where scores or features moved."""
    cells = list(itertools.product((0.75, 0.8, 0.85), (0.05, 0.2, 0.5, 0.9)))
    with ProcessPoolExecutor() as pool:
        found = pool.map(_presence_cell, itertools.repeat(repeats), *zip(*cells, strict=True))
    return {f"accuracy {accuracy}, share {share}": rates for (accuracy, share), rates in zip(cells, found, strict=True)}


def _presence_cell(repeats: int, accuracy: float, share: float) -> Rates:
    errors, covered = [], 0
    refused = {"mix": 0, "mix, with features": 0, "score +1 logit": 0, "score -1 logit": 0, "one feature +1 sd": 0}
    for repeat in range(repeats):
        rng = generator(repeat, "presence", f"{accuracy}", f"{share}")
        (labels, calibration), (kinds, logits) = two_groups(rng, 2000, 0.5, accuracy), two_groups(rng, 500, share, accuracy)
        there, here = (rng.normal(size=(len(kind), 16)) + np.outer(kind, np.arange(16) < 2) for kind in (labels, kinds))
        probs = sigmoid(calibration)

        def judged(logits: np.ndarray, n_boot: int = 0, features: np.ndarray | None = None) -> Any:
            given = {} if features is None else {"features": features, "calibration_features": there}  # noqa: B023
            return estimate_mix(sigmoid(logits), probs, labels, n_boot=n_boot, seed=repeat, **given)  # noqa: B023

        estimate = judged(logits, 300)
        errors.append(estimate.values[1] - share)
        covered += estimate.low[1] <= share <= estimate.high[1]
        refused["mix"] += not estimate.identifiable
        refused["mix, with features"] += not judged(logits, features=here).identifiable
        refused["score +1 logit"] += not judged(logits + 1).identifiable
        refused["score -1 logit"] += not judged(logits - 1).identifiable
        moved = here + (np.arange(16) == repeat % 16)
        refused["one feature +1 sd"] += not judged(logits, features=moved).identifiable
    return {
        "bias": float(np.mean(errors)), "rmse": float(np.sqrt(np.mean(np.square(errors)))), "coverage": covered / repeats,
        "refused": {name: count / repeats for name, count in refused.items()},
    }  # fmt: skip


def groups(repeats: int) -> Rates:
    """Three groups: distance of the estimated mix from the true one, and coverage; two groups and a judge of AUC .6: refusals."""
    found: Rates = {}
    corners = 1.9 * np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])  # a judge that is right four times in five
    for mix in ((1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1), (0.05, 0.05, 0.9)):
        distance, covered, refused = [], 0.0, 0
        for repeat in range(repeats):
            rng = generator(repeat, "groups", str(mix))
            labels, kinds = rng.integers(3, size=2000), rng.choice(3, size=500, p=mix)
            probs = [softmax((corners[kind] + rng.normal(size=(len(kind), 2))) @ corners.T, axis=1) for kind in (labels, kinds)]
            estimate = estimate_mix(probs[1], probs[0], labels, seed=repeat)
            truth = np.array(mix)
            distance.append(mix_gap(estimate.values, truth))
            covered += float(((estimate.low <= truth) & (truth <= estimate.high)).mean())
            refused += not estimate.identifiable
        found[f"mix {', '.join(f'{share:.2f}' for share in mix)}"] = {
            "mean_total_variation": float(np.mean(distance)), "largest_total_variation": float(np.max(distance)),
            "coverage": covered / repeats, "refused": refused / repeats,
        }  # fmt: skip
    blind = 0
    for repeat in range(repeats):
        rng = generator(repeat, "groups", "blind")
        accuracy = float(norm.cdf(norm.ppf(0.6) / 2**0.5))  # of equal normal classes whose AUC is .6
        (labels, calibration), (_, logits) = two_groups(rng, 2000, 0.5, accuracy), two_groups(rng, 500, 0.2, accuracy)
        blind += not estimate_mix(sigmoid(logits), sigmoid(calibration), labels, n_boot=0, seed=repeat).identifiable
    return {**found, "judge of AUC .6": {"refused": blind / repeats}}


def bounds(repeats: int) -> Rates:
    """What any test could reach in ``presence`` where scores move by one logit: computed, not simulated (``repeats`` plays no part).

    The power, at level .05, of the test that knows both class densities in form and which way the scores moved: by the log-ratio of
    the moved scores' density to the mixture nearest to it (in Kullback-Leibler divergence), made blind to the mix; 500 scores, 1000
    calibration scores a class. Numbers beyond it are out of reach of every method.
    """
    cells = itertools.product((0.75, 0.8, 0.85), (0.05, 0.2, 0.5, 0.9))
    return {
        f"accuracy {accuracy}, share {share}": {f"score {shift:+d} logit": _best_power(accuracy, share, shift) for shift in (1, -1)}
        for accuracy, share in cells
    }


def _best_power(accuracy: float, share: float, shift: float) -> float:
    grid = np.linspace(-14, 14, 4001)
    apart = 2 * norm.ppf(accuracy)
    classes = np.array([norm.pdf(grid, apart**2 * (kind - 0.5), apart) for kind in (0, 1)])
    moved = np.array([1 - share, share]) @ [norm.pdf(grid, apart**2 * (kind - 0.5) + shift, apart) for kind in (0, 1)]

    def mean(values: np.ndarray, density: np.ndarray) -> float:
        return float((values * density).sum() * (grid[1] - grid[0]))

    def variance(values: np.ndarray, density: np.ndarray) -> float:
        return mean(values**2, density) - mean(values, density) ** 2

    near = minimize_scalar(lambda w: -mean(np.log((1 - w) * classes[0] + w * classes[1] + 1e-300), moved), bounds=(1e-4, 1 - 1e-4)).x
    mix = np.array([1 - near, near])
    nearest = mix @ classes
    ratio, slope = np.clip(np.log(moved / nearest), -3, 3), (classes[1] - classes[0]) / nearest
    steep = [mean(values, classes[1]) - mean(values, classes[0]) for values in (ratio, slope)]
    score = ratio - steep[0] / steep[1] * slope  # of equal mean in both classes: a change of the mix leaves it where it is
    spread = variance(score, moved) / 500 + mix**2 @ [variance(score, density) for density in classes] / 1000
    return float(norm.cdf((mean(score, moved) - mean(score, nearest)) / np.sqrt(spread) - norm.isf(0.05)))


def distances(repeats: int) -> Rates:
    """KID where both sides share a law: mean over its standard error, and how often the interval holds 0; then 10 images a subject."""
    found = {}
    for name, images in (("alone", 1), ("ten images a subject", 10)):
        values, covered = [], 0
        for repeat in range(repeats):
            rng = generator(repeat, "kid", name)
            sides = [_clustered(rng, 400 // images, images, 32) for _ in range(2)]
            subjects = tuple(np.repeat(np.arange(400 // images), images) for _ in range(2))
            estimate = kernel_distance(*sides, subjects=subjects)
            values.append(estimate.value)
            covered += estimate.low <= 0 <= estimate.high
        error = float(np.std(values, ddof=1) / np.sqrt(repeats))
        mean = float(np.mean(values))
        found[name] = {"mean": mean, "mean_in_standard_errors": mean / error, "coverage": covered / repeats}
    return found


def _clustered(rng: np.random.Generator, subjects: int, images: int, d: int) -> np.ndarray:
    """Images of one subject share half of their variance."""
    own = rng.normal(size=(subjects, 1, d)) * np.sqrt(0.5 if images > 1 else 0)
    return (own + rng.normal(size=(subjects, images, d)) * np.sqrt(0.5 if images > 1 else 1)).reshape(-1, d)


def gaps(repeats: int) -> Rates:
    """How often a quality gap is flagged where there is none: groups of one law, of laws of their own, and of ten images a subject."""
    sizes = {"a": 2000, "b": 600, "c": 200}
    labels = np.repeat(list(sizes), list(sizes.values()))
    place, found = np.repeat(np.arange(3), list(sizes.values()))[:, None], {}
    for world, images, apart in (("one law", 1, 0.0), ("laws of their own", 1, 1.0), ("laws of their own, ten images a subject", 10, 1.0)):
        p_values = []
        for repeat in range(repeats):
            rng = generator(repeat, "gaps", world)
            sides = [_clustered(rng, len(labels) // images, images, 64) for _ in range(2)]
            real, synthetic = (apart * 0.6 * place + (1 + apart * 0.3 * place) * side for side in sides)
            subjects = np.arange(len(labels)) // images
            p_values.append(quality_gap(real, synthetic, labels, labels, subjects=(subjects, subjects), seed=repeat).p_value)
        found[world] = {
            "flagged": float(np.mean(np.array(p_values) < 0.05)),
            "p_value_quantiles": np.quantile(p_values, [0.05, 0.5]).tolist(),
        }
    return found


def power(repeats: int) -> Rates:
    """How often harm to one group of 300 is flagged, and the right group named, by how much its 64 px images are blurred or noisy.

    Features are those of the default encoder: a classifier trained on other phantoms. Groups of 600, 300 (harmed) and 400 images a side.
    """
    sizes, pool = {"a": 600, "b": 300, "c": 400}, 4000
    labels = np.repeat(list(sizes), list(sizes.values()))
    with tempfile.TemporaryDirectory() as work:
        write_phantoms("chest", Path(work) / "cohort", n=600, size=64, seed=7)
        train_classifier(ClassifierSettings(cohort=Path(work) / "cohort", target="effusion", out=Path(work) / "encoder", epochs=5))
        encoder = Encoder.load(Path(work) / "encoder")
        images = MODALITIES["chest"].generate(pool, size=64, seed=11).images
        levels = {"none": images}
        levels |= {f"blur {sd} px": gaussian_filter(images, (0, sd, sd)) for sd in (0.4, 0.5, 0.6, 0.8, 1.0, 1.5)}
        noise = generator(0, "power").standard_normal(images.shape, dtype=np.float32)
        levels |= {f"noise {sd}": np.clip(images + np.float32(sd) * noise, 0, 1) for sd in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)}
        features = {
            name: np.concatenate([encoder.features(part[i : i + 100]) for i in range(0, pool, 100)]) for name, part in levels.items()
        }
    found = {}
    for name, harmed in features.items():
        flagged, named = 0, 0
        for repeat in range(repeats):
            rows = generator(repeat, "power").permutation(pool)[: 2 * len(labels)]
            real, synthetic = features["none"][rows[: len(labels)]], features["none"][rows[len(labels) :]].copy()
            synthetic[labels == "b"] = harmed[rows[len(labels) :]][labels == "b"]
            tested = quality_gap(real, synthetic, labels, labels, seed=repeat)
            flagged += tested.p_value < 0.05
            named += tested.worst == "b"
        found[name] = {"flagged": flagged / repeats, "right_group_named": named / repeats}
    return found


def copies(repeats: int) -> Rates:
    """Copy rate where 0, 10 and 50 % are planted: exact, mirrored, compressed (JPEG 95) and both; each repeat other phantoms."""
    found = {}
    for modality in ("brain", "chest", "dermoscopy"):
        for share in (0.0, 0.1, 0.5):
            errors, covered, ranked = [], 0, 0
            for repeat in range(repeats):
                images = MODALITIES[modality].generate(700, size=32, seed=100 + repeat).images
                train, heldout, made = images[:300], images[300:500], images[500:].copy()
                planted = round(share * len(made))
                for place, image in enumerate(train[:planted]):
                    made[place] = _edited(image, place)
                scores = score_copies(train, heldout, made)
                errors.append(scores.estimate.value - share)
                covered += scores.estimate.low <= share <= scores.estimate.high
                exact = np.flatnonzero(np.arange(planted) % 4 == 0)
                ranked += set(exact) <= set(scores.worst(max(planted, 1))) if planted else 1
            found[f"{modality}, {share:.0%} planted"] = {
                "mean_error": float(np.mean(errors)), "largest_error": float(np.max(np.abs(errors))), "coverage": covered / repeats,
                "exact_copies_among_the_worst": ranked / repeats,
            }  # fmt: skip
    return found


def _edited(image: np.ndarray, place: int) -> np.ndarray:
    """In turn: as it is, mirrored, compressed, both."""
    picture = image[:, ::-1] if place % 2 else image
    if place % 4 < 2:
        return picture
    buffer = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as again:
        return np.asarray(again, dtype=np.float32) / 255


def pairs(repeats: int) -> Rates:
    """Two models of equal AUC: how often the paired test rejects, by number of draws; and 40 true nulls after Holm."""
    rejected = dict.fromkeys((200, 2000), 0)
    for repeat in range(repeats):
        before, after, label = _equal_models(generator(repeat, "pairs"), 300)
        for draws in rejected:
            rejected[draws] += _paired_p(before, after, label, draws, repeat) < 0.05
    families = max(20, repeats // 4)
    wrong = 0
    for family in range(families):
        rng = generator(family, "family")
        p = [_paired_p(*_equal_models(rng, 150), 500, 40 * family + test) for test in range(40)]
        wrong += bool((holm(p) < 0.05).any())
    return {
        "false_positive_rate": {str(draws): count / repeats for draws, count in rejected.items()},
        "family_wise_rate_of_40": wrong / families,
        "families": families,
    }


def _equal_models(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label = rng.integers(2, size=n)
    shared = label + rng.normal(size=n)
    return shared + 0.7 * rng.normal(size=n), shared + 0.7 * rng.normal(size=n), label


def _paired_p(before: np.ndarray, after: np.ndarray, label: np.ndarray, draws: int, seed: int) -> float:
    sides = ({"score": score, "label": label} for score in (before, after))
    return paired_bootstrap("auc", *sides, n_boot=draws, seed=seed).p_value


def spreads(repeats: int) -> Rates:
    """How often intervals hold the true gap, ES-AUC, DPD and EOD of ``evenhand semantic``: of either classifier, and of their difference.

    Three groups; the real-trained classifier serves them alike, the generated-trained one too, or one group worse. Truth is the figure of
    a sample large enough.
    """
    found: Rates = {}
    for size, apart in itertools.product((60, 300), (0.0, 0.6)):
        truth = _spread_figures(generator(0, "spreads", "truth"), 60_000, apart, 1)
        held: dict[str, list[bool]] = {}
        for repeat in range(repeats):
            figures = _spread_figures(generator(repeat, "spreads", f"{size}", f"{apart}"), size, apart, 300)
            for name, figure in figures.items():
                for side in ("real_trained", "synthetic_trained", "difference"):
                    estimate, true = getattr(figure, side), getattr(truth[name], side).value
                    held.setdefault(f"{name}, {side}", []).append(bool(estimate.low <= true <= estimate.high))
        found[f"{size} a group, one group {apart:g} worse"] = {name: float(np.mean(inside)) for name, inside in held.items()}
    return found


def _spread_figures(rng: np.random.Generator, size: int, apart: float, n_boot: int) -> dict[str, Any]:
    groups, labels = np.repeat(list("abc"), size), rng.integers(2, size=3 * size)
    before, after = (1.5 * labels + rng.normal(size=3 * size) for _ in range(2))
    after -= apart * labels * (groups == "c")
    auc = paired_auc(labels, before, after, groups, n_boot=n_boot)
    rates = paired_rates(labels, (before > 0.75).astype(int), (after > 0.75).astype(int), groups, n_boot=n_boot)
    return {"gap": auc.gap, "ES-AUC": auc.equity_scaled, "DPD": rates.parity, "EOD": rates.odds}


SECTIONS: dict[str, Callable[[int], Rates]] = {
    "presence": presence,
    "groups": groups,
    "bounds": bounds,
    "distances": distances,
    "gaps": gaps,
    "power": power,
    "pairs": pairs,
    "spreads": spreads,
    "copies": copies,
    "fidelity": fidelity,
    "utility": utility,
    "shares": shares,
    "reached": reached,
}


def main() -> None:
    """Run one section and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=[*SECTIONS, "refusals"])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--work", type=Path, help="of section refusals: the work folder of alignment.py, whose worlds it shares")
    options = parser.parse_args()
    if options.section == "refusals" and options.work is None:
        parser.error("section refusals needs --work")
    start = time.monotonic()
    found = refusals(options.repeats, options.work) if options.section == "refusals" else SECTIONS[options.section](options.repeats)
    payload = {"section": options.section, "repeats": options.repeats, "found": found, "seconds": round(time.monotonic() - start, 1)}
    path = write_result(f"audit_calibration_{options.section}", payload, seeds=[0])
    print(path.read_text())


if __name__ == "__main__":
    main()
