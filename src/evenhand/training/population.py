"""Who is in the training split: attributes, joint groups and their counts, and the sampling odds that the settings ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS, intersection
from evenhand.core.progress import warn
from evenhand.engine.batching import tempered_odds
from evenhand.engine.rates import Rate
from evenhand.engine.runs import began_with
from evenhand.training.settings import AUTO, TrainSettings
from evenhand.training.weighting import METHODS

AUTO_TAU = 0.5


def resolved(settings: TrainSettings) -> TrainSettings:
    """The same settings with ``auto`` as what it stands for: sampling balanced by square root, or plain where no attribute has two groups.

    Of all methods it serves the rarer groups best at the least cost to the largest one: docs/methods/fair-bayesian-perturbation.md.
    """
    if settings.method != AUTO:
        return settings
    present = _present(settings, Cohort.load(settings.cohort).split("train"))
    if any(len(groups) > 1 for groups in present.values()):
        return settings.model_copy(update={"method": "uniform", "sampling": "balanced", "tau": AUTO_TAU})
    warn(f"{settings.cohort}: no attribute has two groups in the training split; auto is plain training")
    return settings.model_copy(update={"method": "uniform"})


def with_rate(settings: TrainSettings) -> TrainSettings:
    """The same settings with learning rate and warm-up as what they stand for; a run that goes on keeps what it began with."""
    began = began_with(settings.out) if settings.resume else {}
    rate, warmup = settings.learning_rate or began.get("learning_rate"), settings.warmup
    warmup = began.get("warmup") if warmup is None else warmup
    found = Rate.of(settings.model, lora=settings.lora is not None)
    rate = rate or found.learning_rate
    if warmup is None:
        warmup = found.warmup if settings.learning_rate is None else 0
    return settings.model_copy(update={"learning_rate": rate, "warmup": warmup})


@dataclass(frozen=True)
class Population:
    """The training split by group; ``joint`` has one label per image, None where no attribute counts."""

    groups: dict[str, list[str]]
    joint: np.ndarray | None
    counts: dict[str, int]
    odds: dict[str, float] | None

    @classmethod
    def of(cls, settings: TrainSettings, cohort: Cohort) -> Population:
        """Read it from a cohort's training split.

        Raises:
            UserError: an attribute that the cohort lacks, or too few groups for the method or the sampling asked for.
        """
        train = cohort.split("train")
        if not len(train):
            raise UserError(f"{settings.cohort}: the training split is empty; import again, or give rows split=train")
        groups = _attributes(settings, train)
        if not groups:
            return cls({}, None, {}, None)
        joint = intersection(train.table, list(groups)).to_numpy().astype(str)
        names, counts = np.unique(joint, return_counts=True)
        if _needs_groups(settings) and np.isin(names, NOT_GROUPS).all():
            raise UserError(f"{settings.cohort}: no training image has a known group of {' and '.join(groups)}; choose other --attributes")
        odds = tempered_odds(joint, settings.tau) if settings.sampling == "balanced" else None
        return cls(groups, joint, dict(zip(names.tolist(), counts.tolist(), strict=True)), odds)


def _present(settings: TrainSettings, train: Cohort) -> dict[str, list[str]]:
    """The groups in the training split of every attribute asked for, or of all."""
    offered = train.schema.attributes
    for name in settings.attributes or []:
        if name not in offered:
            raise UserError(f"--attributes: {settings.cohort} has no attribute {name!r}; {did_you_mean(name, offered)}")
    names = settings.attributes if settings.attributes is not None else list(offered)
    return {name: [group for group in offered[name] if (train.table[name] == group).any()] for name in names}


def _attributes(settings: TrainSettings, train: Cohort) -> dict[str, list[str]]:
    """Attributes with all their groups; for what compares groups those in the training split alone, of attributes with two of them."""
    present = _present(settings, train)
    if not _needs_groups(settings):
        return {name: list(train.schema.attributes[name]) for name in present}
    single = [name for name, groups in present.items() if len(groups) < 2]
    what = settings.method if METHODS[settings.method].needs_groups else "balanced sampling"
    if settings.attributes is not None and single:
        there = ", ".join(present[single[0]]) or "none"
        raise UserError(
            f"--attributes: {single[0]!r} has fewer than two groups in the training split of {settings.cohort} ({there}); {what} needs two"
        )
    if len(single) == len(present):
        raise UserError(f"{settings.cohort}: no attribute has two groups in the training split; {what} needs one that does")
    return {name: groups for name, groups in present.items() if name not in single}


def _needs_groups(settings: TrainSettings) -> bool:
    return METHODS[settings.method].needs_groups or settings.sampling == "balanced"
