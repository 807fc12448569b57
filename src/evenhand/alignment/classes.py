"""Classes of prompts that each have a target mix of their own: half women among images with a tumour, and among those without.

A prompt alone tells its class. A joint group is then a class and what guides read, classes running slowest; without ``--within`` all
prompts are of one class.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from evenhand.alignment.guides import Guides
from evenhand.alignment.targets import joint_probabilities
from evenhand.cohorts.cohort import Cohort, is_cohort
from evenhand.cohorts.meeting import Names, require_alike
from evenhand.core.errors import UserError
from evenhand.core.groups import Factor, Mix, known, observed_mix, parse_mix
from evenhand.core.names import joint_label


@dataclass(frozen=True)
class PromptClasses:
    """C classes, which prompt is of which, and the share (C,) of each among the prompts."""

    column: str | None
    names: list[str]
    codes: Mapping[str, int]
    shares: np.ndarray

    @classmethod
    def one(cls, prompts: Sequence[str]) -> PromptClasses:
        """All prompts alike."""
        return cls(None, [""], dict.fromkeys(prompts, 0), np.ones(1))

    @classmethod
    def by_column(cls, cohort: Cohort, column: str) -> PromptClasses:
        """By a column of the cohort whose prompts are used.

        Raises:
            UserError: no such column, nothing known in it, or a prompt that stands for two of its values.
        """
        cohort.require_column(column)
        table = cohort.table[known(cohort.table, [column])]
        if len(table) < len(cohort.table):
            row = cohort.table.index[~known(cohort.table, [column])][0]
            raise UserError(
                f"{cohort.root}: row {row}: its {column} is not known, so --within {column} has no target for it; leave that row out"
            )
        by_prompt = table.groupby("prompt")[column].unique()
        both = by_prompt[by_prompt.map(len) > 1]
        if len(both):
            raise UserError(
                f"{cohort.root}: prompt {both.index[0]!r} stands for {column} {' and '.join(map(repr, both.iloc[0][:2]))}: "
                f"an image drawn from it is of neither; state {column} in prompts, or leave --within out"
            )
        names = sorted(table[column].unique())
        shares = table[column].value_counts(normalize=True).reindex(names).to_numpy()
        return cls(column, names, {str(prompt): names.index(values[0]) for prompt, values in by_prompt.items()}, shares)

    def joint(self, probabilities: torch.Tensor, codes: np.ndarray) -> torch.Tensor:
        """Probabilities (B, C K) of class and group, from those of groups (B, K) and the images' classes (B,)."""
        own = F.one_hot(torch.from_numpy(codes), len(self.names)).to(probabilities)
        return joint_probabilities([own, probabilities])

    def groups(self, guides: Guides) -> list[str]:
        """Names of the C K joint groups."""
        classes = [] if self.column is None else [self.names]
        return [joint_label(parts) for parts in itertools.product(*classes, *guides.groups.values())]

    def within(self, cohort: Cohort, groups: np.ndarray, k: int) -> np.ndarray:
        """Joint code (n,) of every image of a cohort that shows one of ``k`` groups; -1 where its class is none of the prompts'."""
        if self.column is None:
            return groups
        self._require_meeting(cohort, self.column)
        codes = cohort.table[self.column].map({name: code for code, name in enumerate(self.names)})
        return np.where(codes.notna(), codes.fillna(0).to_numpy(dtype=np.int64) * k + groups, -1)

    def settled(self, mean: np.ndarray, target: np.ndarray) -> np.ndarray:
        """A mean reading (C K,) as it would be had each class its share: which prompts were drawn is chance, and not the model's doing.

        A class that was not drawn counts as on target: it tells nothing.
        """
        read, wanted = mean.reshape(len(self.names), -1), target.reshape(len(self.names), -1)
        mass = read.sum(1, keepdims=True)
        within = np.divide(read * self.shares[:, None], mass, out=wanted.copy(), where=mass > 0)
        return np.asarray(within.reshape(-1))

    def target(self, text: str, guides: Guides) -> np.ndarray:
        """The target (C K,), each class with its share of the prompts, from a cohort's folder or a mix in words.

        Raises:
            UserError: neither of both, a mix that guides cannot read, or one that leaves a class out.
        """
        cohort = Cohort.load(text) if is_cohort(text) else None
        if cohort is None and "=" not in text:
            raise UserError(f"--target {text}: neither a cohort nor a mix; write for example 'sex=male:0.5,female:0.5'")
        mixes = self._observed(cohort, guides) if cohort is not None else self._stated(parse_mix(text))
        return np.concatenate([share * guides.shares(mix) for share, mix in zip(self.shares, mixes, strict=True)])

    def _require_meeting(self, cohort: Cohort, column: str) -> None:
        """Refuse a cohort that names the classes unlike the prompts' cohort does: its images would be of none."""
        cohort.require_column(column)
        require_alike(column, (str(cohort.root), Names.of(cohort, column)), ("the prompts", Names(self.names, self.names)))

    def _observed(self, cohort: Cohort, guides: Guides) -> list[Mix]:
        """The mix in each class of a target cohort."""
        for name in (*guides.groups, *([self.column] if self.column else [])):
            cohort.require_column(name)
        if self.column:
            self._require_meeting(cohort, self.column)
        for name, groups in guides.groups.items():
            require_alike(name, (str(cohort.root), Names.of(cohort, name)), ("the guides", Names(groups, groups)))
        found = []
        for name in self.names:
            table = cohort.table if self.column is None else cohort.table[cohort.table[self.column] == name]
            try:
                found.append(observed_mix(table, list(guides.groups)))
            except UserError as error:
                raise UserError(f"{cohort.root}{f', {self.column} {name!r}' if self.column else ''}: {error}") from None
        return found

    def _stated(self, mix: Mix) -> list[Mix]:
        """A mix in each class: that of the rows that name it, or the same for all where the mix does not speak of classes."""
        if self.column not in mix.names:
            return [mix] * len(self.names)
        names = tuple(name for name in mix.names if name != self.column)
        found, joint = [], mix.joint([self.column, *names])
        for own in self.names:
            rows = {values[1:]: share for values, share in joint.items() if values[0] == own}
            if not (total := sum(rows.values())):
                raise UserError(
                    f"--target: says nothing of {self.column} {own!r}, which prompts have; state its mix, or leave it out of them"
                )
            found.append(Mix((Factor(names, {values: share / total for values, share in rows.items()}),)))
        return found
