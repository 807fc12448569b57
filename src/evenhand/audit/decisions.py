"""From many estimates to few statements: adjusted p-values, paired before/after tests, levelling down, and a rule's text."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import FeatureError, bootstrap_weights, drawing_order, image_ranks, subject_codes
from evenhand.audit.semantics import weighted_auc
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import Schema
from evenhand.core.names import condition_is, cut, cut_last, quoted, unquoted
from evenhand.core.randomness import generator

KINDS = ("presence", "quality", "semantics", "memorization", "utility")
POINT = "!point"  # behind a rule that goes by the estimate, whatever its interval
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
WEIGHTED = {"auc": ["score", "label"], "auc_gap": ["score", "label", "group"]}
_TAIL = 5  # so many replicates beyond 0 are counted; with fewer the tail is continued

Weigher = Callable[[np.ndarray], np.ndarray]


def holm(p_values: Any) -> np.ndarray:
    """Adjusted p-values (m,) that hold the family-wise error rate under any dependence (Holm 1979).

    NaN stays NaN and does not count as a test.

    Raises:
        FeatureError: not a list of numbers between 0 and 1.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    return _adjusted(p_values, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def benjamini_hochberg(p_values: Any) -> np.ndarray:
    """Adjusted p-values (m,) that hold the false discovery rate of independent tests (Benjamini and Hochberg 1995).

    NaN stays NaN and does not count as a test.

    Raises:
        FeatureError: not a list of numbers between 0 and 1.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.04, 0.04]
    """
    return _adjusted(p_values, lambda p: np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1])


def _adjusted(p_values: Any, adjust: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``adjust`` applied to the defined p-values in rising order, capped at 1, put back in their places."""
    try:
        values = np.array([math.nan if p is None else p for p in p_values], dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError("p-values are not a list of numbers; give one a test, NaN where it is undefined") from None
    if values.ndim != 1:
        raise FeatureError(f"p-values have shape {values.shape}; give one row")
    defined = np.flatnonzero(~np.isnan(values))
    wrong = values[defined][(values[defined] < 0) | (values[defined] > 1)]
    if len(wrong):
        raise FeatureError(f"p-value {wrong[0]:g} is not between 0 and 1")
    order = defined[np.argsort(values[defined], kind="stable")]
    values[order] = np.minimum(adjust(values[order]), 1.0)
    return values


@dataclass(frozen=True)
class PairedDifference:
    """After minus before on the same samples: the difference with its 95 % interval, and a two-sided p-value of no difference.

    ``p_value`` is NaN where no interval can be given.
    """

    estimate: Estimate
    p_value: float
    before: float = math.nan
    after: float = math.nan


def paired_bootstrap(
    statistic: Callable[[pd.DataFrame], float] | str,
    data_before: Any,
    data_after: Any,
    *,
    subjects: Any = None,
    ids: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of a statistic between two models on the same samples: subjects are drawn, and both models get the same draw.

    The interval is the expanded percentile interval (Hesterberg 2015, "What teachers should know about the bootstrap"),
    which for few subjects (of an AUC: of its rarer class) is as wide as a t interval; the p-value is the level at which it
    reaches 0. More draws only make both steadier. To draw the two apart, and to test replicates as if they were samples, calls
    equal models different in 72 to 95 % of cases.

    Args:
        statistic: a function of the records, such as ``lambda table: roc_auc_score(table["label"], table["score"])``, or the name
            of one that is computed for all draws at once: ``auc`` (columns score and label, 0 or 1) or ``auc_gap`` (and group): the
            largest minus the smallest AUC over the groups that have one in the whole sample. No gap is below 0, so where groups are
            alike at first the test is cautious, and the interval of a gap that opens then covers some 90 %, not 95.
        data_before, data_after: one record an image, row i of both the same image: a DataFrame or a mapping of columns.
        subjects: one id per image; None = every image its own subject.
        ids: what identifies each image, such as the hash of its file; draws are keyed on it. None = its row.

    Returns:
        The difference, its interval and p-value. The value is NaN where the statistic is undefined on a side; interval and p-value
        also are where there is one subject only (of an AUC: in a class) or more than half of the draws are undefined.

    Raises:
        FeatureError: records that do not pair, a column that is missing or not usable, or an unknown name.

    >>> found = paired_bootstrap(lambda table: table["hit"].mean(), {"hit": [1, 0, 1, 1]}, {"hit": [0, 1, 1, 1]}, n_boot=100)
    >>> found.estimate.value, found.p_value
    (0.0, 1.0)
    """
    before, after = _table(data_before), _table(data_after)
    _check_pairs(before, after)
    order, codes = drawing_order(image_ranks(ids, len(before)), subject_codes(subjects, len(before)))
    weigh_before, _ = _weigher(statistic, before.iloc[order].reset_index(drop=True), codes)
    weigh_after, units = _weigher(statistic, after.iloc[order].reset_index(drop=True), codes)
    first, second = (float(weigh(np.ones((1, len(codes))))[0]) for weigh in (weigh_before, weigh_after))
    value = second - first
    replicates = np.empty(0)
    if math.isfinite(value) and units > 1:
        rng = generator(seed, "paired_bootstrap")
        replicates = np.concatenate([weigh_after(w) - weigh_before(w) for w in bootstrap_weights(codes, n_boot, rng)])
    low, high = expanded_interval(replicates, units)
    estimate = Estimate(value, float(np.minimum(value, low)), float(np.maximum(value, high)), len(codes))
    return PairedDifference(estimate, bootstrap_p_value(replicates, units), first, second)


def expanded_interval(replicates: np.ndarray, units: int) -> tuple[float, float]:
    """95 % percentile interval at the level that a t interval of ``units`` independent subjects needs (Hesterberg 2015)."""
    defined = _defined(replicates)
    if len(defined) == 0 or units < 2:
        return math.nan, math.nan
    level = float(ndtr(student.ppf(0.025, units - 1) * math.sqrt(units / (units - 1))))
    low, high = np.quantile(defined, [level, 1 - level])
    return float(low), float(high)


def bootstrap_p_value(replicates: np.ndarray, units: int) -> float:
    """Two-sided p-value of a difference of 0: the level at which the expanded percentile interval reaches it.

    The share of replicates on the far side of 0 counts one more than there are, so noise of the draws does not favour a finding.
    Fewer than five cannot tell small levels apart, yet many adjusted tests need them: there a normal tail is continued from the
    median through the fifth replicate, or through the standard deviation of all, whichever gives the larger p-value.
    """
    defined = np.sort(_defined(replicates))
    n = len(defined)
    if n == 0 or units < 2:
        return math.nan
    beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    z = float(ndtri(min((beyond + 1) / (n + 1), 0.5)))
    middle, spread = abs(float(np.median(defined))), float(defined.std(ddof=1))
    if beyond < _TAIL < n / 4 and spread > 0:
        fifth = defined[_TAIL - 1] if defined[n // 2] > 0 else -defined[-_TAIL]  # not 0, and on the median's side of it
        z_fifth = float(ndtri(_TAIL / (n + 1)))
        continued = z_fifth * middle / (middle - fifth) if middle > fifth else -math.inf
        z = min(z_fifth, max(continued, -middle / spread))
    return min(1.0, 2 * float(student.cdf(z * math.sqrt((units - 1) / units), units - 1)))


def _defined(replicates: np.ndarray) -> np.ndarray:
    """The finite replicates; none of them where fewer than half are finite."""
    defined = replicates[np.isfinite(replicates)]
    return defined if len(defined) >= max(2, len(replicates) / 2) else defined[:0]


def _table(data: Any) -> pd.DataFrame:
    try:
        return data if isinstance(data, pd.DataFrame) else pd.DataFrame({name: np.asarray(column) for name, column in data.items()})
    except (AttributeError, ValueError):
        raise FeatureError("records are not a table; give a DataFrame, or a mapping of columns of one length, one value an image") from None


def _check_pairs(before: pd.DataFrame, after: pd.DataFrame) -> None:
    if len(before) != len(after) or len(before) == 0:
        raise FeatureError(f"before has {len(before)} records, after {len(after)}; give the same samples on both sides, one per image")
    if not before.index.equals(after.index):
        raise FeatureError("before and after: the tables' indexes differ; index both by image, or sort both and reset the index")
    for column in [name for name in ("label", "group") if name in before and name in after]:
        sides = [as_labels(table[column]) for table in (before, after)]
        texts = [np.array([*map(str, names), ""])[codes] for codes, names in sides]
        if (apart := np.flatnonzero(texts[0] != texts[1])).size:
            raise FeatureError(f"before and after: {column} differs in row {apart[0]}; give the same samples in the same order")


def _weigher(statistic: Callable[[pd.DataFrame], float] | str, table: pd.DataFrame, codes: np.ndarray) -> tuple[Weigher, int]:
    """A statistic as a function of image weights (b, n), and how many independent subjects stand behind it."""
    if not isinstance(statistic, str):
        places = np.arange(len(table))
        value = lambda row: float(statistic(table.iloc[np.repeat(places, row.astype(int))]))  # noqa: E731
        return lambda weights: np.array([value(row) for row in weights]), len(np.unique(codes))
    score, label = _scored(statistic, table)
    if statistic == "auc":
        return _auc(score, label, codes)
    group, names = as_labels(table["group"])
    parts = [(rows, *_auc(score[rows], label[rows], codes[rows])) for rows in (group == place for place in range(len(names)))]
    parts = [part for part in parts if part[2] > 0]
    if len(parts) < 2:
        return lambda weights: np.full(len(weights), np.nan), 0
    # a draw that loses a group is undefined, not a smaller gap: ptp hands NaN on
    return lambda weights: np.ptp([weigh(weights[:, rows]) for rows, weigh, _ in parts], axis=0), min(units for *_, units in parts)


def _scored(statistic: str, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels: 1, 0, or -1 where unknown."""
    if statistic not in WEIGHTED:
        raise FeatureError(f"unknown statistic {statistic!r}; {did_you_mean(statistic, WEIGHTED)}; or give a function of the records")
    for column in WEIGHTED[statistic]:
        if column not in table:
            raise FeatureError(f"statistic {statistic!r}: no column {column!r}; {did_you_mean(column, map(str, table))}")
    score = pd.to_numeric(table["score"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(score).all():
        raise FeatureError("scores hold NaN, Inf or text; give each image a number, or leave it out on both sides")
    label, names = as_labels(table["label"])
    if len(names) > 2:
        raise FeatureError(f"labels have {len(names)} values ({', '.join(map(str, names[:5]))}); compare one class with the rest")
    return score, label


def _auc(score: np.ndarray, label: np.ndarray, codes: np.ndarray) -> tuple[Weigher, int]:
    by_score = np.argsort(score, kind="stable")
    by_score = by_score[label[by_score] >= 0]
    positive = label[by_score] == 1
    starts = np.flatnonzero(np.diff(score[by_score], prepend=-np.inf) > 0)
    rarer = min(len(np.unique(codes[label == side])) for side in (0, 1))
    return lambda weights: weighted_auc(weights[:, by_score], positive, starts), rarer


@dataclass(frozen=True)
class LevellingDown:
    """Whether a gap shrank because the best-served group is served worse, in a sentence too.

    ``flagged`` is None where it cannot be told; ``clear`` says that the fall is beyond what the intervals allow.
    """

    flagged: bool | None
    clear: bool
    text: str
    gap_before: float
    gap_after: float


def levelling_down(before: SubgroupFrame, after: SubgroupFrame, *, higher_is_better: bool) -> LevellingDown:
    """Flag a gap that shrank because the best level fell, while the worst did not rise (Mittelstadt, Wachter, Russell 2023).

    Over the groups defined in both frames. Levels are compared, not names: the worst-off group of before may be another than that
    of after. A rise counts where it is as large as the fall, or larger than 1.96 of its standard errors, read off the 95 %
    intervals as if the samples were apart. Where only the sample changed, a quarter is flagged, 3 % is ``clear``.

    Raises:
        ValueError: a frame of the other direction.
    """
    if {before.higher_is_better, after.higher_is_better} != {higher_is_better}:
        raise ValueError(f"higher_is_better={higher_is_better}, but the frames say otherwise; pass the frames' own direction")
    common = [name for name in before.defined.index if name in after.defined.index]
    if len(common) < 2:
        text = "Levelling down cannot be told: fewer than two groups are defined both before and after."
        return LevellingDown(None, False, text, math.nan, math.nan)
    sign = 1.0 if higher_is_better else -1.0
    frames = [side.by_group.loc[common] for side in (before, after)]
    levels = [(sign * frame["value"]).sort_values(kind="stable") for frame in frames]
    gaps = [float(level.iloc[-1] - level.iloc[0]) for level in levels]
    (worst, rise, rise_noise), (best, rise_of_best, fall_noise) = (_level_change(frames, levels, sign, place) for place in (0, -1))
    shrank, fall, change = gaps[1] < gaps[0] - 1e-12, -rise_of_best, f"from {gaps[0]:.3g} to {gaps[1]:.3g}"
    flagged = shrank and fall > 0 and (rise <= 1e-12 or (rise <= rise_noise and rise < fall - 1e-12))
    clear = flagged and fall > fall_noise
    text = f"The gap shrank {change}, and the worst group gained ({worst})." if shrank else f"The gap did not shrink ({change})."
    if flagged:
        gain = "did not gain" if rise <= 1e-12 else "gained less, within its noise"
        text = f"Levelling down: the gap shrank {change} because the best group got worse ({best}) and the worst {gain} ({worst})."
        text += "" if clear else " Noise could do this: the fall is within the intervals."
    if left_out := [str(name) for name in before.by_group.index.union(after.by_group.index, sort=False) if name not in common]:
        text += f" Left out, as not defined in both: {', '.join(left_out)}."
    return LevellingDown(flagged, clear, text, *gaps)


def _level_change(frames: list[pd.DataFrame], levels: list[pd.Series], sign: float, place: int) -> tuple[str, float, float]:
    """The worst (0) or best (-1) level before and after in words, its rise, and how much of one the intervals allow by chance."""
    names = [level.index[place] for level in levels]
    rise = float(levels[1].iloc[place] - levels[0].iloc[place])
    widths = [float(frame.loc[name, "high"] - frame.loc[name, "low"]) for frame, name in zip(frames, names, strict=True)]
    words = ", now ".join(f"{name} {sign * level.iloc[place]:.3g}" for name, level in zip(names, levels, strict=True))
    return words, rise, math.hypot(*widths) / 2


@dataclass(frozen=True)
class Question:
    """What is asked of an audit: ``kind``, the columns that make the groups, and for an AUC the condition and its value."""

    kind: str
    by: tuple[str, ...]
    condition: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        """The text that ``parse_question`` reads, and that the audit's tables bear."""
        middle = [] if self.condition is None else [condition_is(self.condition, str(self.value))]
        return ":".join([self.kind, *middle, "*".join(quoted(name, column=True) for name in self.by)])

    def matches(self, other: Question) -> bool:
        """Whether both ask the same; ``sex*age_group`` is ``age_group*sex``, and without a condition any is meant."""
        if (self.kind, set(self.by)) != (other.kind, set(other.by)):
            return False
        return self.condition is None or other.condition is None or (self.condition, self.value) == (other.condition, other.value)


def parse_question(text: str, *, attributes: Collection[str] | None = None, conditions: Schema | None = None) -> Question:
    """Read ``quality:race``, ``presence:sex*age_group`` or ``semantics:tumour=yes:sex``; utility takes both forms.

    Args:
        attributes, conditions: what the cohort has; None = not checked.

    Raises:
        UserError: malformed, or a name that there is not; it names what there is.
    """
    kind, colon, rest = (part.strip() for part in text.partition(":"))
    middle, _, columns = cut_last(rest, ":")
    form = "semantics:tumour=yes:sex" if kind in ("semantics", "utility") else f"{kind if kind in KINDS else 'quality'}:sex"
    if kind not in KINDS:
        raise UserError(f"question {text!r}: unknown kind {kind!r}; {did_you_mean(kind, KINDS)}; write for example {form!r}")
    by = tuple(_unquoted(name, text) for name in cut(columns, "*"))
    if not colon or not all(by) or len(cut(columns, "=")) > 1:
        raise UserError(f"question {text!r}: no attribute at its end; write for example {form!r}, or 'sex*age_group' for both at once")
    if len(set(by)) < len(by):
        raise UserError(f"question {text!r}: an attribute stands twice; name each once")
    for name in by:
        if attributes is not None and name not in attributes:
            raise UserError(f"question {text!r}: unknown attribute {name!r}; {did_you_mean(name, attributes)}")
    condition, value = (_unquoted(part, text) for part in (*cut(middle, "=", 1), "")[:2])
    if not middle and kind != "semantics":
        return Question(kind, by)
    if kind not in ("semantics", "utility"):
        raise UserError(f"question {text!r}: {kind} has no condition {middle!r}; write for example {form!r}")
    if not (condition and value):
        raise UserError(f"question {text!r}: {kind} needs CONDITION=VALUE in its middle; write for example {form!r}")
    if conditions is not None and condition not in conditions:
        raise UserError(f"question {text!r}: unknown condition {condition!r}; {did_you_mean(condition, conditions)}")
    if conditions is not None and value not in conditions[condition]:
        raise UserError(f"question {text!r}: {condition} has no value {value!r}; {did_you_mean(value, conditions[condition])}")
    if conditions is not None and len(conditions[condition]) == 2:
        value = conditions[condition][1]  # the AUC of one of two values is that of the other
    return Question(kind, by, condition, value)


def _unquoted(name: str, question: str) -> str:
    try:
        return unquoted(name)
    except ValueError as fault:
        raise UserError(f"question {question!r}: {fault}; write for example semantics:tumour=\"a: b\":sex") from None


@dataclass(frozen=True)
class Rule:
    """A bound on a question's gap.

    ``>`` and ``>=`` say when an audit fails: where the gap is shown to be so large. ``<=`` and ``<`` say when it passes: where the gap
    is shown to be so small, so that an audit of few images cannot pass. With ``point`` both go by the estimate alone.
    """

    question: Question
    operator: Literal[">", ">=", "<", "<="]
    threshold: float
    point: bool = False

    def __str__(self) -> str:
        """The text that ``parse_rule`` reads."""
        return f"{self.question}{self.operator}{self.threshold}{POINT if self.point else ''}"

    @property
    def passes_if_small(self) -> bool:
        """Whether the rule demands evidence of a small gap."""
        return self.operator in ("<", "<=")

    def fails(self, gap: float | None, low: float | None, high: float | None) -> bool | None:
        """Whether a gap with these 95 % bounds breaks the rule; None where what it goes by is undefined."""
        found = gap if self.point else high if self.passes_if_small else low
        if found is None or not math.isfinite(found):
            return None
        return OPERATORS[self.operator](found, self.threshold) != self.passes_if_small


def parse_rule(text: str, *, attributes: Collection[str] | None = None, conditions: Schema | None = None) -> Rule:
    """Read ``presence:sex>0.05``, ``presence:sex<=0.05`` or ``presence:sex>0.05!point``: a question, an operator and a finite number.

    Raises:
        UserError: malformed; the message says what is possible.
    """
    body, mark, rest = text.strip().rpartition(POINT)
    point = bool(mark) and not rest
    found = re.fullmatch(r"(.+?)(>=|<=|>|<)([^<>]*)", body if point else text.strip(), re.DOTALL)
    if found is None:
        raise UserError(f"rule {text!r}: no {', '.join(OPERATORS)}; write for example 'presence:sex>0.05', in quotes (a shell reads >)")
    question, operator, bound = found.groups()
    try:
        threshold = float(bound)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise UserError(f"rule {text!r}: {bound.strip()!r} is not a number; write for example 'presence:sex>0.05'")
    return Rule(parse_question(question, attributes=attributes, conditions=conditions), operator, threshold, point)  # type: ignore[arg-type]
