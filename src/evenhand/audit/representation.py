"""Presence: which share of images shows each subgroup, and how far that is from a target mix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evenhand.audit.frame import as_labels
from evenhand.audit.identifiability import (
    FEATURE_LEVEL,
    MIN_AUC,
    SCORE_LEVEL,
    SENSITIVITY_SHIFT,
    SHARE_EFFECT,
    SHARE_PART,
    Mixture,
    allowed_misfits,
    feature_statistics,
    one_against_rest_auc,
    residuals,
    separation,
    share_change,
    shift_statistics,
)
from evenhand.audit.intervals import (
    Z95,
    FeatureError,
    as_feature_pair,
    bootstrap_weights,
    drawing_order,
    effective_subjects,
    subject_codes,
    subject_weights,
    t_multiplier,
    two_sided_ranks,
    two_sided_subjects,
)
from evenhand.audit.mixes import RawPresence, mix_gap, raw_presence
from evenhand.audit.mixing import (
    confusion,
    density_ratios,
    expectation_maximisation,
    log_probabilities,
    prevalence,
    recalibrate,
    solve_shares,
)
from evenhand.core.errors import did_you_mean
from evenhand.core.randomness import generator

__all__ = ["MixEstimate", "RawPresence", "estimate_mix", "mix_gap", "prediction_powered_mix", "raw_presence"]


@dataclass(frozen=True)
class MixEstimate:
    """Estimated shares of the groups, (K,) in the order of the probabilities' columns, with 95 % bounds.

    Where ``identifiable`` is false the numbers are what the estimator would say were its assumptions met; ``reason`` names the one
    that is not, and the shares are not to be reported. A group without calibration images leaves them all NaN.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    identifiable: bool
    reason: str
    n: int = 0
    method: str = "emq"
    raw: np.ndarray | None = None  # (K,) share of images whose likeliest group it is
    auc: np.ndarray | None = None  # (K,) each group against the rest, on the calibration images
    condition_number: float = math.nan  # of the matrix of mean probabilities by true group
    effects: Mapping[str, float] = field(default_factory=dict)  # how far scores may move a share; how many sd features are off
    errors: np.ndarray | None = None  # (B, K) draws of the shares' joint error


METHODS = ("raw", "acc", "pacc", "emq")
_MIN_CALIBRATION = 10  # images of a group, below which its scores are not known
_CELLS_AT_ONCE = 4_000_000
_ERRORS_DRAWN = 2000


def estimate_mix(
    probs: Any,
    calibration_probs: Any,
    calibration_labels: Any,
    *,
    features: Any = None,
    calibration_features: Any = None,
    method: str = "emq",
    n_boot: int = 500,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
) -> MixEstimate:
    """Share of each group among images that a fallible classifier reads, corrected for its errors, or refused.

    The correction assumes label shift: images of one group look alike in the calibration set and here. ``raw`` counts; ``acc`` and
    ``pacc`` invert the confusion matrix (Forman 2008; Bella et al. 2010); ``emq`` maximises the likelihood (Saerens et al. 2002)
    after bias-corrected temperature scaling (Alexandari et al. 2020, arXiv 1901.06852). Both sets are bootstrapped together, by
    subject. It refuses (``identifiable`` false) where the classifier cannot see a group (AUC below 0.7), where a group has fewer
    than 10 calibration images, and where scores or features fit no mixture of the calibration classes.

    Args:
        probs: (n, K) probabilities of the images in question; (n,) means the second of two groups.
        calibration_probs: (N, K) of held-out real images; calibration_labels (N,): codes 0..K-1, or names, whose order is that of
            the columns: sorted, or that of a pandas categorical. -1, NaN, unknown are left out.
        features, calibration_features: (n, d) and (N, d) of any network, such as the classifier's own penultimate layer.
        subjects: one id for each of the n images, or of the N, or of all n + N, or a pair of both; None = every image its own. A
            calibration subject counts for at most thrice the images of the median one.
        ids: what identifies each image, such as the hash of its file, in the same forms; draws are keyed on it. None = its row.

    Raises:
        FeatureError: wrong shapes, values that are no probabilities, unknown labels or method.
    """
    data = _MixData.of(probs, calibration_probs, calibration_labels, subjects, ids)
    if method not in METHODS:
        raise FeatureError(f"method {method!r} is not known; {did_you_mean(method, METHODS)}")
    one = np.ones((1, len(data.probs))), data.counted[None]
    pair = data.feature_pair(features, calibration_features)
    value = data.shares(method, *one)[0] if min(data.counts) else np.full(data.k, math.nan)
    errors = data.errors(method, value, n_boot, seed)
    low, high = data.interval(value, errors)
    fault, effects = data.fault(pair, seed)
    return MixEstimate(
        values=value, low=np.minimum(low, value), high=np.maximum(high, value), identifiable=not fault, reason=fault,
        n=len(data.probs), method=method, raw=data.shares("raw", *one)[0], auc=one_against_rest_auc(data.calibration, data.labels),
        condition_number=float(np.linalg.cond(confusion(data.calibration, data.labels, one[1], data.k)[0])), effects=effects,
        errors=errors,
    )  # fmt: skip


def prediction_powered_mix(probs: Any, labels: Any, *, subjects: Any = None) -> MixEstimate:
    """Share of each group where some of the images were labelled by hand: PPI++ (Angelopoulos et al. 2023, arXiv 2311.01453, eq. 2).

    The classifier's mean over all images, corrected by its mean error on the labelled ones, which must have been drawn at random.
    It holds whatever the classifier is worth and however the images differ from those that it was trained on: a poor one only
    widens the interval, down to plain counting of the labelled images.

    Args:
        probs: (n, K), or (n,) for the second of two groups.
        labels: (n,) codes 0..K-1 or names, as in ``estimate_mix``; -1, NaN, unknown where no hand looked.

    Raises:
        FeatureError: wrong shapes, or fewer than two labelled subjects.
    """
    votes = _probabilities(probs, "probs")
    codes, _ = _label_codes(labels, len(votes), votes.shape[1], "labels")
    ids = subject_codes(subjects, len(votes))
    seen = codes >= 0
    if len(np.unique(ids[seen])) < 2:
        raise FeatureError(f"labels: {int(seen.sum())} images are labelled; label at least 2, of different subjects, drawn at random")
    truth = np.eye(votes.shape[1])[codes[seen]]
    parts = [_rectified_mean(votes[:, j], truth[:, j], seen, ids) for j in range(votes.shape[1])]
    value, error = np.array([part[0] for part in parts]), np.array([part[1] for part in parts])
    multiplier = t_multiplier(len(np.unique(ids[seen])))
    half = multiplier * error
    influence = np.stack([part[2] for part in parts], axis=1)  # (subjects, K)
    size = np.sqrt((influence**2).sum(axis=0))
    directions = np.where(size > 0, influence / np.where(size > 0, size, 1), 1 / math.sqrt(len(influence)))
    draws = generator(0, "prediction_powered_mix").standard_normal((_ERRORS_DRAWN, len(influence)))
    errors = draws @ directions * error * multiplier / Z95
    value = value.clip(0, 1)
    value = value / value.sum()
    return MixEstimate(
        values=value, low=(value - half).clip(0, 1), high=(value + half).clip(0, 1), identifiable=True, reason="", n=len(votes),
        method="labelled", raw=np.eye(votes.shape[1])[votes.argmax(axis=1)].mean(axis=0), errors=errors,
    )  # fmt: skip


def _rectified_mean(votes: np.ndarray, truth: np.ndarray, seen: np.ndarray, ids: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Mean of one group's votes over all images plus their mean error where seen, each weighted by the power that they have.

    Returns:
        It, its standard error, and the influences of subjects.
    """
    labelled, rest = votes[seen], votes[~seen]
    power = 0.0
    if len(rest) and votes.std() > 0:
        covariance = float(np.cov(truth, labelled)[0, 1]) if len(truth) > 1 else 0.0
        power = min(1.0, max(0.0, covariance / (float(votes.var()) * (1 + len(labelled) / len(rest)))))
    influence = np.zeros(len(votes))
    influence[seen] = (truth - power * labelled - (truth - power * labelled).mean()) / len(labelled)
    if len(rest):
        influence[~seen] = power * (rest - rest.mean()) / len(rest)
    value = float((truth - power * labelled).mean() + (power * rest.mean() if len(rest) else 0.0))
    sums = np.bincount(ids, weights=influence)
    # a share of 0 or 1 among the labelled has no spread: what Wilson's interval would make of it stands in
    least = 1 / (len(labelled) + 4)
    return value, max(math.sqrt(float((sums**2).sum())), least if truth.min() == truth.max() else 0.0), sums


@dataclass(frozen=True)
class _MixData:
    """The checked inputs of ``estimate_mix`` in drawing order: probabilities of both sides, labels, subject codes.

    ``rows`` and ``calibration_rows`` say where each stood; calibration images without a known label are left out.
    """

    probs: np.ndarray
    calibration: np.ndarray
    labels: np.ndarray
    names: list[Any]
    codes: np.ndarray
    calibration_codes: np.ndarray
    rows: np.ndarray
    calibration_rows: np.ndarray
    given: tuple[int, int]  # images on either side
    logs: np.ndarray
    calibration_logs: np.ndarray

    @property
    def k(self) -> int:
        return self.probs.shape[1]

    @classmethod
    def of(cls, probs: Any, calibration_probs: Any, calibration_labels: Any, subjects: Any, ids: Any) -> _MixData:
        own, theirs = _probabilities(probs, "probs"), _probabilities(calibration_probs, "calibration_probs")
        if own.shape[1] != theirs.shape[1]:
            raise FeatureError(f"probs have {own.shape[1]} columns, calibration_probs {theirs.shape[1]}; use one classifier for both")
        labels, names = _label_codes(calibration_labels, len(theirs), own.shape[1])
        given = len(own), len(theirs)
        subject = two_sided_subjects(_of_both(subjects, *given), *given)
        ranks = two_sided_ranks(_of_both(ids, *given), *given)
        kept = np.flatnonzero(labels >= 0)
        if not len(kept):
            raise FeatureError("calibration_labels: no image has a known group; calibrate on labelled held-out images")
        (rows, codes), (there, calibration_codes) = drawing_order(ranks[0], subject[0]), drawing_order(ranks[1][kept], subject[1][kept])
        own, theirs, labels = own[rows], theirs[kept[there]], labels[kept[there]]
        return cls(
            own, theirs, labels, names, codes, calibration_codes, rows, kept[there], given,
            log_probabilities(own), log_probabilities(theirs),
        )  # fmt: skip

    def shares(
        self,
        method: str,
        weights: np.ndarray,
        calibration_weights: np.ndarray,
        fit: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> np.ndarray:
        """Shares (b, K) under image weights (b, n) and (b, N)."""
        if method in ("raw", "acc", "pacc"):
            hard = method != "pacc"
            votes = np.eye(self.k)[self.probs.argmax(axis=1)] if hard else self.probs
            observed = weights @ votes / weights.sum(axis=1, keepdims=True)
            if method == "raw":
                return observed
            votes = np.eye(self.k)[self.calibration.argmax(axis=1)] if hard else self.calibration
            return solve_shares(confusion(votes, self.labels, calibration_weights, self.k), observed)
        parameters = recalibrate(self.calibration_logs, self.labels, calibration_weights, fit)
        prior = prevalence(self.labels, calibration_weights, self.k)
        ratios = density_ratios(self.logs, parameters, prior)
        return expectation_maximisation(ratios, weights, prior if start is None else np.tile(start, (len(prior), 1)))

    def errors(self, method: str, value: np.ndarray, n_boot: int, seed: int) -> np.ndarray | None:
        """Errors (B, K) of the shares where subjects of both sides are drawn again, widened for few subjects; None without draws."""
        if n_boot < 2 or not np.isfinite(value).all():
            return None
        fit = recalibrate(self.calibration_logs, self.labels, self.counted[None])[0] if method == "emq" else None
        block = max(1, _CELLS_AT_ONCE // ((len(self.probs) + len(self.labels)) * self.k**2))
        draws = [generator(seed, "estimate_mix", side) for side in ("images", "calibration")]
        found = []
        for start in range(0, n_boot, block):
            size = min(block, n_boot - start)
            weights = np.concatenate(list(bootstrap_weights(self.codes, size, draws[0])))
            weights_there = np.concatenate(list(bootstrap_weights(self.calibration_codes, size, draws[1]))) * self.counted
            found.append(self.shares(method, weights, weights_there, fit, value))
        sizes = np.bincount(self.codes), np.bincount(self.calibration_codes, weights=self.counted)
        return np.asarray(t_multiplier(min(map(effective_subjects, sizes))) / Z95 * (np.concatenate(found) - value))

    def interval(self, value: np.ndarray, errors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Percentile bounds (K,); NaN without draws."""
        if errors is None:
            return np.full(self.k, math.nan), np.full(self.k, math.nan)
        low, high = (value + np.quantile(errors, [0.025, 0.975], axis=0)).clip(0, 1)
        subjects = effective_subjects(np.bincount(self.codes))
        most = 1 - 0.025 ** (1 / subjects)  # of a group that so many subjects do not show: no draw moves a share of 0
        return np.where(value >= 1 - 1e-6, np.minimum(low, 1 - most), low), np.where(value <= 1e-6, np.maximum(high, most), high)

    def fault(self, features: tuple[np.ndarray, np.ndarray] | None, seed: int) -> tuple[str, dict[str, float]]:
        """Why the mix cannot be known, or nothing; and the greatest misfits that were found."""
        auc = one_against_rest_auc(self.calibration, self.labels)
        blind = int(np.argmin(np.nan_to_num(auc, nan=1.0)))
        reason = self._too_few() or self._unseen(self.names[blind], auc[blind])
        return (reason, {}) if reason else self._misfit(features, blind, seed)

    def _too_few(self) -> str:
        wanted = f"at least {_MIN_CALIBRATION} wanted"
        few = [(name, n) for name, n in zip(self.names, self.counts, strict=True) if n < _MIN_CALIBRATION]
        if few:
            return f"group {few[0][0]} has {few[0][1]} calibration images, {wanted}"
        return f"{len(self.probs)} image(s) only, {wanted} to test whether they fit a mixture" if len(self.probs) < _MIN_CALIBRATION else ""

    @staticmethod
    def _unseen(name: Any, auc: float) -> str:
        if auc <= 1 - MIN_AUC:
            return f"the classifier tells {name} from the others the wrong way round (AUC {auc:.2f}); check the order of its columns"
        return f"the classifier cannot see the attribute: AUC {auc:.2f} for {name}, at least {MIN_AUC} wanted" if auc < MIN_AUC else ""

    def _misfit(self, features: tuple[np.ndarray, np.ndarray] | None, blind: int, seed: int) -> tuple[str, dict[str, float]]:
        """Whether scores and features fit some mixture of the calibration classes."""
        mixture = self._mixture()
        own, theirs = zip(*(shift_statistics(*scores, mixture) for scores in self._scores()), strict=True)
        found = residuals(np.hstack(own), np.hstack(theirs), mixture)
        apart = separation(_log_odds(self.calibration_logs[:, blind]), self.labels, blind, self.k)
        changes = np.max([share_change(*scores, mixture) for scores in self._scores()], axis=0)
        effects = {"scores": float(changes[0]), "sensitivity": SENSITIVITY_SHIFT / max(apart, SENSITIVITY_SHIFT)}
        if (changes >= (SHARE_EFFECT, SHARE_PART)).any() and found.p_value(seed, "scores") < SCORE_LEVEL:
            return "the scores fit no mixture of the calibration classes: the images differ in more than their mix", effects
        if features is not None:
            own, theirs = feature_statistics(*features, self.labels, self.k)
            found = residuals(own, theirs, mixture)
            excess = found.sure / allowed_misfits(theirs, self.labels, self.k)  # sure: of hundreds one lies far off by chance
            effects["features"] = float(found.sure.max())
            if excess.max() >= 1 and found.p_value(seed, "features") < FEATURE_LEVEL:
                off = abs(float(found.effect[int(excess.argmax())]))
                return f"features fit no mixture of the calibration classes: one lies {off:.1f} sd off", effects
        return "", effects

    def feature_pair(self, features: Any, calibration_features: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Features of both sides, checked, of the images that are used."""
        if features is None or calibration_features is None:
            if features is not None or calibration_features is not None:
                raise FeatureError("features and calibration_features belong together; give both or neither")
            return None
        if len(self.probs) < 2:
            return None  # nothing to test
        own, theirs = as_feature_pair(calibration_features, features)[::-1]
        if (len(own), len(theirs)) != self.given:
            raise FeatureError(f"{len(own)}, {len(theirs)} rows of features for {self.given[0]}, {self.given[1]} images; one each")
        return own[self.rows], theirs[self.calibration_rows]

    @property
    def counted(self) -> np.ndarray:
        """What each calibration image counts (N,): no subject decides alone."""
        return subject_weights(np.bincount(self.calibration_codes))[self.calibration_codes]

    @property
    def counts(self) -> list[int]:
        """Calibration images of each group."""
        return np.bincount(self.labels, minlength=self.k).tolist()

    def _mixture(self) -> Mixture:
        one = np.ones((1, len(self.labels)))
        parameters = recalibrate(self.calibration_logs, self.labels, one)
        prior = prevalence(self.labels, one, self.k)
        ratios, ratios_there = (density_ratios(logs, parameters, prior)[0] for logs in (self.logs, self.calibration_logs))
        weights = expectation_maximisation(ratios[None], np.ones((1, len(ratios))), prior)[0]
        responsibility, there = (values / (values @ weights)[:, None].clip(1e-12) for values in (ratios, ratios_there))
        return Mixture(weights, self.labels, responsibility, there, self.codes, self.calibration_codes)

    def _scores(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Every group's log-odds on both sides; of two groups one says it all."""
        return [(_log_odds(self.logs[:, j]), _log_odds(self.calibration_logs[:, j])) for j in range(1 if self.k == 2 else 0, self.k)]


def _log_odds(logs: np.ndarray) -> np.ndarray:
    return logs - np.log1p(-np.exp(logs).clip(None, 1 - 1e-9))


def _probabilities(values: Any, name: str) -> np.ndarray:
    """Probabilities as (n, K), K >= 2; one column is that of the second of two groups."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError(f"{name} are not numbers; give an array (n, K)") from None
    if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1):
        array = np.column_stack([1 - array.ravel(), array.ravel()])
    if array.ndim != 2 or len(array) == 0:
        raise FeatureError(f"{name} have shape {array.shape}; give an array (n, K) with one row per image")
    fault = ~np.isfinite(array).all(axis=1)
    if not fault.any():
        fault = (array < -1e-6).any(axis=1) | (np.abs(array.sum(axis=1) - 1) > 1e-3)
    if fault.any():
        row = int(np.flatnonzero(fault)[0])
        raise FeatureError(f"{name}: row {row} is {np.round(array[row], 4).tolist()}, no probabilities that sum to 1; apply softmax first")
    return array


def _label_codes(labels: Any, n: int, k: int, what: str = "calibration_labels") -> tuple[np.ndarray, list[Any]]:
    """Columns 0..K-1 that calibration labels mean, -1 for unknown, and the groups' names."""
    codes, names = as_labels(labels)  # a categorical keeps groups that nobody has
    if len(codes) != n:
        raise FeatureError(f"{len(codes)} {what} for {n} images; give one per image")
    if all(isinstance(name, int) and 0 <= name < k for name in names):
        place = np.array([*names, -1], dtype=int)
        return place[codes], list(range(k))
    if len(names) != k:
        shown = ", ".join(map(str, names[:6]))
        raise FeatureError(f"{what} name {len(names)} groups ({shown}) for {k} columns; give codes 0..{k - 1} or a categorical")
    return codes, names


def _of_both(ids: Any, n: int, m: int) -> Any:
    """Ids of n images and of m calibration images; one array alone belongs to the side of its length."""
    alone = ids is not None and not isinstance(ids, tuple) and len(ids) == m != n
    return (None, ids) if alone else ids
