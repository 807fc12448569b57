"""Attributes, groups, intersections and mixes.

A *mix* says which share of a population each subgroup has. Factors are independent of each other, a factor over several names
is joint::

    sex=male:0.5,female:0.5                                       one attribute
    sex=male:0.8,female:0.2;age_group=young:0.5,old:0.5            two, independent
    sex*tumour=male/tumour:0.3,male/none:0.5,female/tumour:0.2    joint
    race="Black/African American":0.2,White:0.8                   a name with , ; : / or " in it stands in double quotes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.names import cut, cut_last, joint_label, quoted, unquoted

UNKNOWN = "unknown"  # nothing is known of the subject
UNSPECIFIED = "unspecified"  # the prompt was silent
NOT_GROUPS = (UNKNOWN, UNSPECIFIED)

Schema = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Factor:
    """Shares of the joint values of ``names``; they sum to 1."""

    names: tuple[str, ...]
    shares: dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Mix:
    """A target or observed population: independent factors, each over one or several columns."""

    factors: tuple[Factor, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that the mix speaks of."""
        return tuple(name for factor in self.factors for name in factor.names)

    def joint(self, names: Sequence[str] | None = None) -> dict[tuple[str, ...], float]:
        """Share of every joint value of some columns, in their order; of all, in the order of ``names``, where none are given."""
        wanted = self.names if names is None else names
        for name in wanted:
            if name not in self.names:
                raise UserError(f"the mix says nothing of {name!r}; {did_you_mean(name, self.names)}")
        places, joint = [self.names.index(name) for name in wanted], dict[tuple[str, ...], float]()
        for parts in itertools.product(*(factor.shares.items() for factor in self.factors)):
            whole = tuple(itertools.chain.from_iterable(values for values, _ in parts))
            values = tuple(whole[place] for place in places)
            joint[values] = joint.get(values, 0.0) + math.prod(share for _, share in parts)
        return joint

    def sample(self, n: int, generator: np.random.Generator) -> pd.DataFrame:
        """Draw ``n`` rows at random."""
        values = list(self.joint().items())
        drawn = generator.choice(len(values), size=n, p=np.array([share for _, share in values]))
        return pd.DataFrame([values[i][0] for i in drawn], columns=list(self.names), dtype="str")

    def counts(self, n: int) -> dict[tuple[str, ...], int]:
        """Split ``n`` as near to the mix as whole numbers allow (largest remainder)."""
        joint = self.joint()
        exact = {values: share * n for values, share in joint.items()}
        counts = {values: math.floor(x + 1e-9) for values, x in exact.items()}
        by_remainder = sorted(exact, key=lambda values: counts[values] - exact[values])
        for values in by_remainder[: n - sum(counts.values())]:
            counts[values] += 1
        return counts

    def check(self, schema: Schema) -> None:
        """Raise ``UserError`` where the mix names a column or a group that ``schema`` lacks."""
        for factor in self.factors:
            for place, name in enumerate(factor.names):
                if name not in schema:
                    raise UserError(f"mix: unknown attribute {name!r}; {did_you_mean(name, schema)}")
                for values in factor.shares:
                    if values[place] not in schema[name]:
                        raise UserError(f"mix: {name} has no group {values[place]!r}; {did_you_mean(values[place], schema[name], quoted)}")

    def __str__(self) -> str:
        """The text that ``parse_mix`` reads."""
        return ";".join(
            "*".join(quoted(name, column=True) for name in factor.names)
            + "="
            + ",".join("/".join(map(quoted, values)) + f":{_digits(share)}" for values, share in factor.shares.items())
            for factor in self.factors
        )


def parse_mix(text: str, schema: Schema | None = None) -> Mix:
    """Read a mix; see the module's head for the form.

    Raises:
        UserError: malformed, shares that are negative or do not sum to 1, a name or group that ``schema`` lacks.
    """
    factors = tuple(_parse_factor(part.strip()) for part in cut(text, ";") if part.strip())
    mix = Mix(factors)
    repeated = {name for name in mix.names if mix.names.count(name) > 1}
    if not factors or repeated:
        fault = f"{sorted(repeated)[0]!r} stands twice" if repeated else "nothing is stated"
        raise UserError(f"mix {text!r}: {fault}; write for example 'sex=male:0.5,female:0.5'")
    if schema is not None:
        mix.check(schema)
    return mix


def _parse_factor(text: str) -> Factor:
    head, *rest = cut(text, "=", 1)
    names = tuple(_name(name, text) for name in cut(head, "*"))
    if not rest or not all(names):
        raise UserError(f"mix {text!r}: no attribute before '='; write for example 'sex=male:0.5,female:0.5'")
    shares: dict[tuple[str, ...], float] = {}
    items = cut(rest[0], ",")
    for item in items:
        group, colon, share = cut_last(item, ":")
        parts = cut(group, "/") if len(names) > 1 else [group]
        if not colon or len(parts) != len(names) or not all(part.strip() for part in parts):
            if not colon:
                _name(item, text)  # a quote that is not closed
            form = "/".join(["GROUP"] * len(names))
            such = f"with a group each of {', '.join(names)}" if len(names) > 1 else "such as 'male:0.5'"
            maybe_cut = len(parts) > len(names) or (not colon and len(items) > 1)
            remedy = "; a name with , ; : or / stands in double quotes: \"Black/African American\":0.2" if maybe_cut else ""
            raise UserError(f"mix {text!r}: cannot read {item.strip()!r}; each item is {form}:SHARE, {such}{remedy}")
        values = tuple(_name(part, text) for part in parts)
        if not all(values):
            raise UserError(f"mix {text!r}: a group without a name; write for example 'sex=male:0.5,female:0.5'")
        if values in shares:
            raise UserError(f"mix {text!r}: {'/'.join(values)!r} stands twice; name each group once")
        shares[values] = _share(share, text)
    total = sum(shares.values())
    if abs(total - 1) > 1e-3:
        raise UserError(f"mix {text!r}: shares sum to {total:g}, not 1; change them so that they do")
    exact = abs(total - 1) < 1e-12  # as written: what a mix prints is read back to the bit
    return Factor(names, {values: share if exact else share / total for values, share in shares.items()})


def _name(text: str, mix: str) -> str:
    try:
        return unquoted(text)
    except ValueError as fault:
        raise UserError(f"mix {mix!r}: {fault}; write for example race=\"Black/African American\":0.2,White:0.8") from None


def _digits(share: float) -> str:
    """The shortest digits that are read back as the same number."""
    return repr(float(share)).removesuffix(".0")


def _share(share: str, text: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"mix {text!r}: share {share.strip()!r} is not a number between 0 and 1")
    return value


def observed_mix(table: pd.DataFrame, names: Sequence[str]) -> Mix:
    """The joint mix of ``names`` in a table; rows with an unknown or unspecified value are left out.

    Raises:
        UserError: no row knows all of ``names``.
    """
    rows = table.loc[known(table, names), list(names)]
    if rows.empty:
        raise UserError(f"no row has a known value of {', '.join(names)}; give a mix in words instead")
    counts = rows.value_counts(sort=False)
    shares = {tuple(map(str, values)): count / len(rows) for values, count in zip(counts.index.tolist(), counts, strict=True)}
    return Mix((Factor(tuple(names), shares),))


def known(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Which rows have a real group in every column of ``names``."""
    mask = pd.Series(True, index=table.index)
    for name in names:
        mask &= table[name].notna() & ~table[name].isin(NOT_GROUPS)
    return mask


def intersection(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """One label per row, ``male x old``; ``unknown`` where any part is not a group."""
    rows = table[list(names)].to_numpy().tolist()
    labels = pd.Series([joint_label([str(part) for part in row]) for row in rows], index=table.index, dtype=object)
    return labels.where(known(table, names), UNKNOWN)
