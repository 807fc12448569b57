"""Classifiers that say which groups an image shows, as joint groups of one or several attributes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evenhand.alignment.targets import joint_probabilities
from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import Mix, known
from evenhand.core.names import joint_label
from evenhand.engine.features import cohort_predictions
from evenhand.models.classifiers import Classifier

LEAST_AUC = 0.7  # below, what a guide reads is too far from what an image shows


@dataclass(frozen=True)
class Guides:
    """Classifiers by attribute. Several of one attribute are averaged: what fools one seldom fools the next."""

    by_attribute: Mapping[str, Sequence[Classifier]]
    temperatures: Mapping[str, float] = field(default_factory=dict)  # attribute -> what its logits are divided by; 1 where none is told
    order: Mapping[str, list[str]] = field(default_factory=dict)  # attribute -> its groups; its first classifier's where none is told

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Guides:
        """Read classifier folders.

        Raises:
            UserError: not a classifier, one that cannot tell its groups apart, or two of one attribute that disagree on its groups.
        """
        by_attribute: dict[str, list[Classifier]] = {}
        for path in paths:
            guide = Classifier.load(path)
            if guide.auc is None:
                raise UserError(f"{path}: no AUC on held-out subjects; train it on a cohort with a test split")
            if guide.auc < LEAST_AUC:
                raise UserError(
                    f"{path}: AUC {guide.auc:.2f} on held-out subjects, below {LEAST_AUC}: it cannot tell {guide.target}; "
                    "train a better one, or align by another attribute"
                )
            others = by_attribute.setdefault(guide.target, [])
            if others and set(others[0].groups) != set(guide.groups):
                raise UserError(
                    f"{path}: its groups of {guide.target} are {', '.join(guide.groups)}, those of {others[0].path} "
                    f"{', '.join(others[0].groups)}; train both on cohorts of one schema"
                )
            others.append(guide)
        return cls(by_attribute)

    def having(self, attribute: str, guides: Sequence[Classifier]) -> Guides:
        """The same, with these classifiers of an attribute."""
        return replace(self, by_attribute={**self.by_attribute, attribute: guides})

    @property
    def groups(self) -> dict[str, list[str]]:
        """Attributes and their groups, in the order of the joint code."""
        return {attribute: self.order.get(attribute, guides[0].groups) for attribute, guides in self.by_attribute.items()}

    @property
    def joint(self) -> list[str]:
        """Names of the K joint groups; the last attribute runs fastest."""
        return [joint_label(values) for values in itertools.product(*self.groups.values())]

    @property
    def all(self) -> list[Classifier]:
        """Every classifier."""
        return [guide for guides in self.by_attribute.values() for guide in guides]

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Joint probabilities (B, K) of images (B, channels, H, W) in [0, 1]; differentiable."""
        return joint_probabilities([self._mean(attribute, in_colour(images)) for attribute in self.by_attribute])

    def log_probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Logarithms (B, K) of the same, with a gradient also where a guide is so certain that a probability is 0 to float32."""
        joint = torch.zeros(len(images), 1, device=images.device)
        for attribute, guides in self.by_attribute.items():
            each = (self.logits(attribute, in_colour(images)) / self.temperatures.get(attribute, 1.0)).log_softmax(-1)
            mean = each.logsumexp(0) - math.log(len(guides))
            joint = (joint[:, :, None] + mean[:, None, :]).flatten(1)
        return joint

    def votes(self, images: torch.Tensor) -> torch.Tensor:
        """Joint votes (B, K) of images (B, channels, H, W) in [0, 1]: the guides of an attribute have equal parts of one vote."""
        colour = in_colour(images)
        likeliest = {attribute: self.logits(attribute, colour).argmax(-1) for attribute in self.by_attribute}
        return joint_probabilities([F.one_hot(likeliest[name], len(groups)).float().mean(0) for name, groups in self.groups.items()])

    def _mean(self, attribute: str, images: torch.Tensor) -> torch.Tensor:
        return (self.logits(attribute, images) / self.temperatures.get(attribute, 1.0)).softmax(-1).mean(0)

    def logits(self, attribute: str, images: torch.Tensor) -> torch.Tensor:
        """Calibrated logits (guides, B, G) of every guide of one attribute, for images (B, 3, H, W)."""
        order = self.groups[attribute]
        found = [guide.logits(images)[:, [guide.groups.index(group) for group in order]] for guide in self.by_attribute[attribute]]
        return torch.stack(found)

    def read(self, cohort: Cohort) -> np.ndarray:
        """Joint code (n,) of every image of a cohort: of each attribute what its column knows, else as guides read it.

        Raises:
            UserError: a column names a group that guides do not know.
        """
        by_attribute = [torch.from_numpy(self._told_or_read(attribute, cohort)) for attribute in self.groups]
        return joint_probabilities(by_attribute).argmax(1).numpy()

    def _told_or_read(self, attribute: str, cohort: Cohort) -> np.ndarray:
        """Probabilities (n, G) of the groups of one attribute, certain where the cohort's column names one of them."""
        groups = self.groups[attribute]
        told = np.zeros((len(cohort), len(groups)))
        if attribute in cohort.schema.columns:
            column = cohort.table[attribute]
            other = cohort.table[known(cohort.table, [attribute]) & ~column.isin(groups)]
            if len(other):
                raise UserError(
                    f"{cohort.root}: {other['image'].iloc[0]}: its {attribute} is {other[attribute].iloc[0]!r}, and guides know "
                    f"{', '.join(groups)}; name groups alike, or leave such images ({len(other)}) out"
                )
            told = np.stack([(column == group).to_numpy(dtype=float) for group in groups], axis=1)
        silent = told.max(axis=1) == 0
        if silent.any():
            guides, unseen = self.by_attribute[attribute], cohort.subset(silent)
            read = [cohort_predictions(guide, unseen)[:, [guide.groups.index(group) for group in groups]] for guide in guides]
            told[silent] = np.mean(read, axis=0)
        return told

    def shares(self, mix: Mix) -> np.ndarray:
        """A mix as shares (K,) of the joint groups.

        Raises:
            UserError: it speaks of an attribute that no guide reads, leaves one out, or names a group that its guide does not know.
        """
        for name in mix.names:
            if name not in self.by_attribute:
                raise UserError(f"--target: no guide reads {name!r}; {did_you_mean(name, self.by_attribute)}")
        left_out = [attribute for attribute in self.by_attribute if attribute not in mix.names]
        if left_out:
            raise UserError(f"--target: says nothing of {left_out[0]}, which --guide {self.by_attribute[left_out[0]][0].path} reads")
        mix.check(self.groups)
        joint = mix.joint(list(self.groups))
        return np.array([joint.get(values, 0.0) for values in itertools.product(*self.groups.values())])

    def to(self, device: torch.device) -> Guides:
        """The same guides on another device, frozen."""
        for guide in self.all:
            guide.to(device).model.requires_grad_(False)
        return self


def in_colour(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 1 or 3, H, W) as (B, 3, H, W)."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
