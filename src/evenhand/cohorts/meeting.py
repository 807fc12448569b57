"""Whether two sides name groups alike. Between two cohorts nothing is renamed, so names that do not meet are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.groups import known
from evenhand.core.names import look_alike, same_name


@dataclass(frozen=True)
class Names:
    """The groups that one side has in a column: those that occur, and all that it may have."""

    present: list[str]
    all: list[str]

    @classmethod
    def of(cls, cohort: Cohort, column: str) -> Names:
        """The known groups of a cohort's table, with those of its schema; none where it has no such column."""
        found: list[str] = []
        if column in cohort.table.columns:
            found = list(dict.fromkeys(cohort.table.loc[known(cohort.table, [column]), column].astype(str)))
        return cls(found, list(dict.fromkeys([*cohort.schema.columns.get(column, ()), *found])))


def why_apart(ours: Names, theirs: Names) -> str | None:
    """Why two sides name groups differently, in a few words; None where they do not. A group that one side lacks is no reason.

    Apart are names of which one is another spelling of the other side's, an abbreviation of it, or differs in what parts its words,
    and sides that have no name in common.
    """
    if not ours.present or not theirs.all:
        return None
    strange = [name for name in ours.present if name not in theirs.all]
    unmet = [name for name in theirs.present or theirs.all if name not in ours.all]
    pairs = [(name, other) for name in strange for other in same_name(name, theirs.all)]
    pairs += [(name, other) for other in unmet for name in same_name(other, ours.all)]
    pairs += [(name, other) for name in strange for other in unmet if look_alike(name, other)]
    near = " and ".join(f"{name!r} beside {other!r}" for name, other in dict.fromkeys(pairs))
    if pairs:
        return near
    return None if set(ours.all) & set(theirs.all) else "no name in common"


def require_names_meet(cohort: Cohort, other: Cohort, columns: Iterable[str]) -> None:
    """Raise ``UserError`` where ``cohort`` (the generated one, as a rule) names the groups of a column unlike ``other``.

    A column that occurs under a name of another spelling only is refused too. What one side does not know at all is no fault.
    """
    for column in columns:
        if column not in cohort.table.columns and (near := same_name(column, cohort.schema.columns)):
            raise UserError(
                f"{cohort.root}: its column {near[0]!r} is {column!r} in {other.root}; name columns alike: rename one and import it again"
            )
        require_alike(column, (str(cohort.root), Names.of(cohort, column)), (str(other.root), Names.of(other, column)))


def require_alike(column: str, ours: tuple[str, Names], theirs: tuple[str, Names]) -> None:
    """The same of two sides that are named: ``(where, names)``.

    Raises:
        UserError: names that do not meet.
    """
    if why := why_apart(ours[1], theirs[1]):
        raise UserError(
            f"{ours[0]}: its groups of {column} are {_listed(ours[1].all)}, those of {theirs[0]} are {_listed(theirs[1].all)} ({why}); "
            "name groups alike: rename them in one raw table and import it again, since nothing is renamed between the two"
        )


def notes_on_names(cohort: Cohort, other: Cohort, columns: Iterable[str]) -> list[str]:
    """Columns in which either side has a group that the other has never heard of: one group under two names, perhaps."""
    notes = []
    for column in columns:
        ours, theirs = Names.of(cohort, column), Names.of(other, column)
        strange = [name for name in ours.present if name not in theirs.all]
        unmet = [name for name in theirs.present if name not in ours.present]
        if strange and unmet:
            notes.append(
                f"{column}: {_listed(strange)} occurs among generated images only, {_listed(unmet)} among real ones only; "
                "where both mean one group, rename it in one raw table"
            )
    return notes


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
