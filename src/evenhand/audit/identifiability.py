"""Can the mix be known? Tests whether what a judge sees in unlabelled images fits some mixture of its calibration classes.

Label shift says: images of a group look the same on both sides, only the shares differ. Then every statistic of the unlabelled
images is the same mixture of that statistic's class means. Each test here is a residual of that equation, in standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from evenhand.audit.intervals import Z95, effective_subjects
from evenhand.core.randomness import generator

MIN_AUC = 0.7
SCORE_LEVEL, FEATURE_LEVEL = 0.035, 0.01  # together they keep refusals of a true label shift within 5 %
SHARE_EFFECT = 0.03  # a change of the scores that moves no share by so much does not matter
SHARE_PART = 0.2  # unless it is this part of a group's share
FEATURE_EFFECT = 0.2  # within-class standard deviations; smaller misfits of a feature do not matter
FEATURE_SEPARATION = 0.25  # nor do misfits below this part of the distance between the classes along the feature
FEATURE_CAP = 1.25  # within-class standard deviations; larger misfits matter however far apart the classes are
SENSITIVITY_SHIFT = 0.1  # within-class standard deviations of the score
_SHIFTS = (-1.0, -0.5, 0.5, 1.0)  # within-class standard deviations of the score
_SCALES = (0.6, 1.6)
_GRID = 512
_LEAST_DENSITY = 1e-7
_ROUNDING = 1e-6  # within-class deviations
_MOST_LOG_RATIO = 3.0
_SCREENING, _MULTIPLIERS = 2000, 20_000  # draws; the many only where a p-value is
_DOUBTFUL = 0.002, 0.1
_DRAWN_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class Residuals:
    """Misfits of several statistics: z-scores (q,), effects in within-class deviations (q,), and influences of each subject."""

    z: np.ndarray
    effect: np.ndarray
    sure: np.ndarray  # (q,) what of each effect lies beyond 1.96 standard errors
    influence: np.ndarray  # (subjects of both sides, q), already divided by the standard error
    freedom: float  # degrees of freedom of the standard errors: effective subjects of the poorer side, less one

    def p_value(self, seed: int, purpose: str) -> float:
        """Probability of a larger greatest |z|, by a Gaussian multiplier bootstrap (Chernozhukov et al. 2013, Ann. Stat. 41)."""
        found = 1.0
        for number in (_SCREENING, _MULTIPLIERS):
            largest = self._largest(number, generator(seed, "identifiability", purpose))
            found = float((1 + (largest >= np.abs(self.z).max()).sum()) / (1 + number))
            if not _DOUBTFUL[0] <= found <= _DOUBTFUL[1]:
                break
        return found

    def _largest(self, number: int, draws: np.random.Generator) -> np.ndarray:
        """The greatest |z| (number,) under the null."""
        block = max(1, _DRAWN_AT_ONCE // max(len(self.influence), 1))
        largest = []
        for start in range(0, number, block):
            rows = min(block, number - start)
            multipliers = draws.standard_normal((rows, len(self.influence)))
            doubt = np.sqrt(draws.chisquare(self.freedom, rows) / self.freedom)  # of standard errors from few subjects, as Student's t
            largest.append(np.abs(multipliers @ self.influence).max(axis=1) / doubt)
        return np.concatenate(largest)


@dataclass(frozen=True)
class Mixture:
    """The fitted label shift: what the tests need of it.

    ``responsibility_*`` are the density ratios f_k / f of the fitted mixture at each image, (n, K).
    """

    weights: np.ndarray
    labels: np.ndarray
    responsibility: np.ndarray
    calibration_responsibility: np.ndarray
    codes: np.ndarray
    calibration_codes: np.ndarray


def residuals(statistics: np.ndarray, calibration_statistics: np.ndarray, mixture: Mixture) -> Residuals:
    """Mean over the images minus the mixture of class means, for q statistics (n, q) and (N, q).

    The weights were fitted on the same images. Their likelihood equations E[(f_k - f_K) / f] = 0 are projected out of every
    statistic, so that an error of the weights does not enter to first order. Groups at the edge of the simplex stay as fixed.
    """
    k = len(mixture.weights)
    scale = within_class_sd(calibration_statistics, mixture.labels, k)
    own, theirs = statistics / scale, calibration_statistics / scale
    own, theirs = _project(own, theirs, mixture)
    means = np.stack([theirs[mixture.labels == j].mean(axis=0) for j in range(k)])
    influence = [_sums((own - own.mean(axis=0)) / len(own), mixture.codes)]
    for j in range(k):
        rows = mixture.labels == j
        part = np.zeros_like(theirs)
        part[rows] = mixture.weights[j] * (theirs[rows] - means[j]) / rows.sum()
        influence.append(_sums(part, mixture.calibration_codes))
    theirs_by_subject = _jackknifed(np.sum(influence[1:], axis=0), mixture.calibration_codes)
    both = np.concatenate([_jackknifed(influence[0], mixture.codes), -theirs_by_subject])
    residual = own.mean(axis=0) - mixture.weights @ means
    freedom = max(min(effective_subjects(np.bincount(codes)) for codes in (mixture.codes, mixture.calibration_codes)) - 1, 1.0)
    error = np.sqrt((both**2).sum(axis=0))
    # What the weights explain in full leaves rounding only: of a score of two values, say, all of it.
    told = error > _ROUNDING
    error = np.where(told, error, 1.0)
    z, sure = np.where(told, residual / error, 0.0), np.clip(np.abs(residual) - Z95 * error, 0, None)
    return Residuals(z, residual, np.where(told, sure, 0.0), both / error, freedom)


def _project(own: np.ndarray, theirs: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Take off each statistic the multiple of the weights' score that makes its expectation flat in the weights."""
    free = np.flatnonzero(mixture.weights > 1e-6)
    if len(free) < 2:
        return own, theirs
    base, others = free[-1], free[:-1]
    score = mixture.responsibility[:, others] - mixture.responsibility[:, [base]]
    score_there = mixture.calibration_responsibility[:, others] - mixture.calibration_responsibility[:, [base]]

    def slope(values: np.ndarray) -> np.ndarray:
        means = [values[mixture.labels == j].mean(axis=0) for j in free]
        return np.stack([mean - means[-1] for mean in means[:-1]])  # (free - 1, q)

    coefficients = np.linalg.lstsq(slope(score_there), slope(theirs), rcond=None)[0]
    return own - score @ coefficients, theirs - score_there @ coefficients


def _jackknifed(influence: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Influences of subjects by leaving each out: one with a large part of the images pulls the mean towards itself (CR3)."""
    return influence / (1 - np.bincount(codes) / (len(codes) + 1))[:, None]


def _sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    total = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(total, codes, values)
    return total


def within_class_sd(values: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Pooled standard deviation within classes (q,); constant columns get 1."""
    squares = sum(((values[labels == j] - values[labels == j].mean(axis=0)) ** 2).sum(axis=0) for j in range(k) if (labels == j).any())
    sd = np.sqrt(squares / max(len(values) - k, 1))
    return np.where(sd > 1e-12, sd, 1.0)


def shift_statistics(score: np.ndarray, calibration_score: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Statistics (n, q) and (N, q) that answer to a score moved or stretched alike in all classes.

    For each such change: the log-density ratio between the best changed mixture and the fitted one, which is the most powerful
    statistic against just that change (Neyman and Pearson). Class densities are taken as normal. Where they are not, the test is no
    less valid, only less powerful; smoothed histograms in their place cost more power by their noise.
    """
    scores = _Scores.of(score, calibration_score, mixture)
    fitted = mixture.weights @ scores.densities
    own, theirs = [], []
    for shift, stretch in [*((shift, 1.0) for shift in _SHIFTS), *((0.0, scale) for scale in _SCALES)]:
        moved = scores.moved(shift, stretch)
        ratio = np.log((_fit(moved, fitted)[0] @ moved) / (fitted + _LEAST_DENSITY)).clip(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
        own.append(np.interp(score, scores.grid, ratio))
        theirs.append(np.interp(calibration_score, scores.grid, ratio))
    return np.stack(own, axis=1), np.stack(theirs, axis=1)


@dataclass(frozen=True)
class _Scores:
    """Normal densities (K, m) of the classes' scores on a grid (m,), each summing to one; their common deviation and centre."""

    grid: np.ndarray
    densities: np.ndarray
    sd: float
    centre: float

    @classmethod
    def of(cls, score: np.ndarray, calibration_score: np.ndarray, mixture: Mixture) -> _Scores:
        k = len(mixture.weights)
        sd = float(within_class_sd(calibration_score[:, None], mixture.labels, k)[0])
        low, high = min(score.min(), calibration_score.min()) - 3 * sd, max(score.max(), calibration_score.max()) + 3 * sd
        grid = np.linspace(low, high, _GRID)
        classes = [calibration_score[mixture.labels == j] for j in range(k)]
        densities = np.stack([norm.pdf(grid, values.mean(), max(values.std(), 0.1 * sd)) for values in classes]) + 1e-12
        centre = float(np.mean([values.mean() for values in classes]))
        return cls(grid, densities / densities.sum(axis=1, keepdims=True), sd, centre)

    def moved(self, shift: float, stretch: float) -> np.ndarray:
        """The densities moved by so many deviations and stretched about the centre."""
        back = (self.grid - shift * self.sd - self.centre) / stretch + self.centre
        return np.stack([np.interp(back, self.grid, density) / stretch for density in self.densities]) + _LEAST_DENSITY


def share_change(score: np.ndarray, calibration_score: np.ndarray, mixture: Mixture) -> tuple[float, float]:
    """How far shares move if the scores were shifted or stretched alike in all classes, by the likeliest such change.

    Returns:
        The largest change of a share, and the largest as a part of the larger of the group's two shares.

    Where classes lie far apart a shift of the scores changes no count, however clearly it is seen.
    """
    scores = _Scores.of(score, calibration_score, mixture)
    counts = np.bincount(np.rint((score - scores.grid[0]) / (scores.grid[1] - scores.grid[0])).astype(int), minlength=_GRID) / len(score)
    changes = [(0.0, 1.0), *((shift, stretch) for shift in np.linspace(-2, 2, 17) for stretch in (0.6, 1.0, 1.6))]
    fits = [_fit(scores.moved(shift, stretch), counts) for shift, stretch in changes]
    likeliest = max(range(len(fits)), key=lambda place: fits[place][1])
    change = np.abs(fits[likeliest][0] - fits[0][0])
    return float(change.max()), float((change / np.maximum(fits[likeliest][0], fits[0][0]).clip(1e-12)).max())


def _fit(components: np.ndarray, target: np.ndarray, rounds: int = 200) -> tuple[np.ndarray, float]:
    """Shares (K,) of component densities (K, m) nearest to the target (m,) in divergence, by EM; and the mean log-likelihood."""
    weights = np.full(len(components), 1 / len(components))
    for _ in range(rounds):
        weights = weights * (components @ (target / (weights @ components)))
        weights /= weights.sum()
    return weights, float((target * np.log(weights @ components)).sum())


def allowed_misfits(calibration_features: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Largest misfit of each feature (q,), in within-class standard deviations, that does not matter."""
    scaled = calibration_features / within_class_sd(calibration_features, labels, k)
    means = np.stack([scaled[labels == j].mean(axis=0) for j in range(k)])
    return np.asarray(np.clip(FEATURE_SEPARATION * np.ptp(means, axis=0), FEATURE_EFFECT, FEATURE_CAP))


def separation(calibration_score: np.ndarray, labels: np.ndarray, group: int, k: int) -> float:
    """Distance of one group's mean score from the others', in standard deviations within classes."""
    sd = float(within_class_sd(calibration_score[:, None], labels, k)[0])
    return abs(float(calibration_score[labels == group].mean() - calibration_score[labels != group].mean())) / sd


def feature_statistics(features: np.ndarray, calibration_features: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every feature, and what lies along the differences of the class means: (n, d + K) and (N, d + K).

    A small step of many features towards another class adds up along that difference, though no feature shows it alone.
    """
    sd = within_class_sd(calibration_features, labels, k)
    own, theirs = features / sd, calibration_features / sd
    centre = theirs.mean(axis=0)
    towards = np.stack([theirs[labels == j].mean(axis=0) - centre for j in range(k)], axis=1)  # (d, K)
    return np.hstack([own, own @ towards]), np.hstack([theirs, theirs @ towards])


def one_against_rest_auc(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the others (K,); NaN where a class is absent."""
    found = np.full(probs.shape[1], math.nan)
    for j in range(probs.shape[1]):
        positive = labels == j
        up, down = int(positive.sum()), int((~positive).sum())
        if up and down:
            found[j] = (rankdata(probs[:, j])[positive].sum() - up * (up + 1) / 2) / (up * down)
    return found
