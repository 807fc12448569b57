"""Estimators of class shares under label shift, many bootstrap samples at a time: counts, ACC, PACC and EM.

Every function takes image weights (b, n): how often each image stands in each of b bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

_FLOOR = 1e-6  # a probability of 0 has no logarithm
_MOST_ROUNDS = 300
_NEWTON_ROUNDS, _HALVINGS = 50, 30


def log_probabilities(probs: np.ndarray) -> np.ndarray:
    """Logarithms (n, K) of probabilities that are kept off 0."""
    clipped = np.clip(probs, _FLOOR, None)
    return np.log(clipped / clipped.sum(axis=1, keepdims=True))


def prevalence(labels: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Weighted share of each class, (b, K)."""
    shares = np.stack([weights[:, labels == j].sum(axis=1) for j in range(k)], axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


def recalibrate(logs: np.ndarray, labels: np.ndarray, weights: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Bias-corrected temperature scaling (Alexandari et al. 2020, arXiv 1901.06852): softmax(t log p + b), b_K = 0.

    Args:
        logs: (N, K) log-probabilities; labels (N,) codes; weights (b, N).
        start: parameters to start from, (K,).

    Returns:
        Parameters (b, K): the slope t, then the K - 1 biases. A prior worth one image keeps separable classes finite.
    """
    n, k = logs.shape
    design = np.zeros((n, k, k))  # image, class, parameter
    design[:, :, 0] = logs
    design[:, np.arange(k - 1), np.arange(1, k)] = 1
    chosen = design[np.arange(n), labels]  # (N, parameters)
    prior = np.r_[1.0, np.zeros(k - 1)]
    found = np.tile(prior if start is None else start, (len(weights), 1))
    for _ in range(_NEWTON_ROUNDS):
        p = _softmax(np.einsum("nkq,bq->bnk", design, found))
        mean = np.einsum("bnk,nkq->bnq", p, design)
        gradient = np.einsum("bn,bnq->bq", weights, chosen - mean) - (found - prior)
        spread = np.einsum("bn,bnk,nkq,nkr->bqr", weights, p, design, design, optimize=True)
        spread -= np.einsum("bn,bnq,bnr->bqr", weights, mean, mean, optimize=True)
        step = np.linalg.solve(spread + np.eye(k), gradient[..., None])[..., 0]
        found, moved = _descended(found, step, lambda point: _misfit(point, design, chosen, weights, prior))
        if moved < 1e-8:
            break
    return found


def _misfit(point: np.ndarray, design: np.ndarray, chosen: np.ndarray, weights: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Log-loss with the prior's penalty, (b,)."""
    values = np.einsum("nkq,bq->bnk", design, point)
    largest = values.max(axis=2)
    loss = largest + np.log(np.exp(values - largest[..., None]).sum(axis=2)) - point @ chosen.T
    return np.asarray((weights * loss).sum(axis=1) + 0.5 * ((point - prior) ** 2).sum(axis=1))


def _descended(found: np.ndarray, step: np.ndarray, misfit: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
    """Newton's step, halved where it overshoots: with a judge that is far too sure of itself the full one leads away."""
    before, share = misfit(found), np.ones((len(found), 1))
    for _ in range(_HALVINGS):
        worse = misfit(found + share * step) > before + 1e-12 * np.abs(before)
        if not worse.any():
            break
        share[worse] /= 2
    else:
        share[worse] = 0  # it cannot be improved upon
    return found + share * step, float(np.abs(share * step).max())


def density_ratios(logs: np.ndarray, parameters: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Each class's density over the calibration mixture's, up to a factor an image: (b, n, K)."""
    bias = np.concatenate([parameters[:, 1:], np.zeros((len(parameters), 1))], axis=1) - np.log(np.clip(shares, 1e-12, None))
    values = parameters[:, [0]][:, :, None] * logs[None] + bias[:, None, :]
    return np.exp(values - values.max(axis=2, keepdims=True))


def _softmax(values: np.ndarray) -> np.ndarray:
    exponent = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def expectation_maximisation(ratios: np.ndarray, weights: np.ndarray, start: np.ndarray, tolerance: float = 1e-8) -> np.ndarray:
    """Maximum-likelihood shares (b, K) of a mixture whose densities are known up to a factor (Saerens et al. 2002, eq. 2.6).

    Steps are stretched as SQUAREM does (Varadhan and Roland 2008): where classes overlap, plain EM needs hundreds.

    Args:
        ratios: (b, n, K) densities; weights (b, n); start (b, K).
    """
    total = weights.sum(axis=1, keepdims=True)

    def update(shares: np.ndarray) -> np.ndarray:
        mixture = (ratios @ shares[:, :, None])[..., 0]
        updated = shares * ((weights / np.clip(mixture, 1e-300, None))[:, None] @ ratios)[:, 0] / total
        return updated / updated.sum(axis=1, keepdims=True)

    found = start
    for _ in range(_MOST_ROUNDS):
        first = update(found)
        second = update(first)
        if float(np.abs(second - first).max()) < tolerance:
            return second
        moved = first - found
        bend = second - first - moved
        stretch = np.sqrt((moved**2).sum(axis=1) / np.clip((bend**2).sum(axis=1), 1e-300, None)).clip(1, 50)[:, None]
        leap = np.clip(found + 2 * stretch * moved + stretch**2 * bend, 1e-3 * second, None)
        found = update(leap / leap.sum(axis=1, keepdims=True))
    return found


def confusion(votes: np.ndarray, labels: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Mean vote (columns: true class) of each class, (b, K, K): votes are one-hot (ACC) or probabilities (PACC)."""
    columns = []
    for j in range(k):
        rows = labels == j
        share = weights[:, rows]
        columns.append(share @ votes[rows] / np.clip(share.sum(axis=1, keepdims=True), 1e-12, None))
    return np.stack(columns, axis=2)


def solve_shares(matrices: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Shares (b, K) on the simplex whose expected votes are nearest to the observed ones (b, K), by least squares."""
    found = []
    for matrix, seen in zip(matrices, observed, strict=True):
        stiff = 1e3  # the row that makes the shares sum to one
        shares, _ = nnls(np.vstack([matrix, np.full(len(seen), stiff)]), np.r_[seen, stiff])
        found.append(shares / shares.sum())
    return np.array(found)
