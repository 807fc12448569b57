"""Gaussian processes over sigma: botorch's, in double precision, with a seed of their own. botorch is imported only here, when needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RESTARTS, RAW_SAMPLES = 5, 20  # as published


def propose_ucb(x: np.ndarray, y: np.ndarray, *, beta: float = 0.1, seed: int = 0) -> np.ndarray | None:
    """The point of [0, 1]^G with the largest upper confidence bound, (G,): FairDiffusion's step (arXiv 2412.20374).

    None where the marginal likelihood could not be maximised.

    Args:
        x: (n, G) tried settings.
        y: (n,) what each gave; larger is better.
        beta: weight of the posterior's variance; the bound is mean + sqrt(beta * variance).
        seed: of the optimiser's starting points.
    """
    with _quiet(seed):
        from botorch.models import SingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        model = SingleTaskGP(torch.tensor(x, dtype=torch.double), torch.tensor(y, dtype=torch.double)[:, None])
        if not _fitted(ExactMarginalLogLikelihood(model.likelihood, model)):
            return None
        return _largest_bound(model, beta, x.shape[1], {})


def propose_by_contrasts(
    tried: np.ndarray, against: np.ndarray, gains: np.ndarray, now: np.ndarray, *, beta: float = 4.0, seed: int = 0
) -> np.ndarray | None:
    """The setting whose gain over ``now`` has the largest upper confidence bound, (G,); None where no process could be fitted.

    The process is over contrasts f(tried) - f(against): its kernel is that of the difference of two values of one process f.

    Args:
        tried, against: (n, G) the two settings of each contrast.
        gains: (n,) contrasts in standard deviations of their noise; larger is better.
        now: (G,) the setting that the next contrast will be held against.
    """
    with _quiet(seed):
        from botorch.models import SingleTaskGP
        from gpytorch.means import ZeroMean
        from gpytorch.mlls import ExactMarginalLogLikelihood

        pairs = torch.tensor(np.hstack([tried, against]), dtype=torch.double)
        values = torch.tensor(gains, dtype=torch.double)[:, None]
        noise = torch.ones_like(values)
        model = SingleTaskGP(pairs, values, noise, covar_module=_contrast_kernel(len(now)), mean_module=ZeroMean(), outcome_transform=None)
        if not _fitted(ExactMarginalLogLikelihood(model.likelihood, model)):
            return None
        fixed = {len(now) + place: float(value) for place, value in enumerate(now)}
        return _largest_bound(model, beta, len(now), fixed)


def _fitted(likelihood: Any) -> bool:
    from botorch.exceptions import ModelFittingError
    from botorch.fit import fit_gpytorch_mll

    try:
        fit_gpytorch_mll(likelihood)
    except ModelFittingError:
        return False
    return True


def _contrast_kernel(dims: int) -> Any:
    """k((a, b), (c, d)) = k(a, c) - k(a, d) - k(b, c) + k(b, d), with botorch's priors for lengths and one for the scale."""
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from gpytorch.kernels import Kernel, ScaleKernel
    from gpytorch.priors import GammaPrior

    class ContrastKernel(Kernel):
        def __init__(self, base: Kernel) -> None:
            super().__init__()
            self.base = base

        def forward(self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **params: Any) -> torch.Tensor:
            halves = [(x[..., :dims], x[..., dims:]) for x in (x1, x2)]
            signs = [(i, j, 1 if i == j else -1) for i in (0, 1) for j in (0, 1)]
            parts = [sign * self.base(halves[0][i], halves[1][j], diag=diag, **params) for i, j, sign in signs]
            return sum(part if diag else part.to_dense() for part in parts)  # type: ignore[return-value]

    base = get_covar_module_with_dim_scaled_prior(ard_num_dims=dims)
    return ContrastKernel(ScaleKernel(base, outputscale_prior=GammaPrior(2.0, 0.15)))


def _largest_bound(model: Any, beta: float, dims: int, fixed: dict[int, float]) -> np.ndarray:
    from botorch.acquisition import UpperConfidenceBound
    from botorch.optim import optimize_acqf

    bounds = torch.tensor([[0.0], [1.0]], dtype=torch.double).expand(2, dims + len(fixed))
    best, _ = optimize_acqf(
        UpperConfidenceBound(model, beta=beta), bounds=bounds, q=1, num_restarts=RESTARTS, raw_samples=RAW_SAMPLES,
        fixed_features=fixed or None,
    )  # fmt: skip
    return best[0, :dims].detach().numpy()


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """botorch draws from the global generator and takes no other: lend it one of this seed, and give the global state back.

    Its advice on how data should be scaled is left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed % 2**31)  # not torch.manual_seed, which seeds GPUs too
            yield
