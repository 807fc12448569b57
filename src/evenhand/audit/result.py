"""The audit's result: typed, written as JSON, read back by the report and by users' scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from evenhand.audit.frame import Estimate
from evenhand.core.artifacts import read_json, write_json
from evenhand.core.errors import UserError

FORMAT = 5
Basis = Literal["requested", "judge", "mixed", "none"]


class Part(BaseModel):
    """Base of every part of a result: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Cell(Part):
    """One estimate; ``value`` is None where it is undefined, and ``reason`` says why."""

    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @classmethod
    def of(cls, estimate: Estimate, reason: str = "") -> Self:
        """A cell from an estimate, NaN as None."""
        return cls(n=estimate.n, value=number(estimate.value), low=number(estimate.low), high=number(estimate.high), reason=reason)


class PresenceRow(Part):
    """Share of one group: ``value`` as requested or corrected for the judge's errors, ``raw`` as counted, ``target`` as wanted."""

    group: str
    n: int
    value: float | None
    low: float | None
    high: float | None
    raw: float | None
    raw_low: float | None
    raw_high: float | None
    target: float | None
    reason: str = ""


class PresenceTable(Part):
    """Shares by subgroup against the target mix; ``gap`` is the total variation distance, 0 to 1, undefined where refused.

    ``identifiable`` is false where the judge's reading fits no mixture of its calibration classes, or cannot see the attribute;
    ``refusal`` says which. Then ``value`` is what the correction would say, and not to be reported.
    """

    question: str
    by: list[str]
    basis: Basis
    direction: Literal["match"] = "match"
    method: str
    shown: bool = False  # by the judge alone, though prompts stated it
    identifiable: bool | None
    refusal: str = ""
    condition_number: float | None = None
    sensitivity: float | None = None  # how far the share moves if generated images moved the judge's score by a tenth of its spread
    n: int
    n_real: int
    n_target: float = 0  # independent real images that the target is worth; 0 where it was stated
    stated: list[str] = []  # columns whose shares were stated; the target's other ones are the real images'
    n_calibration: int | None = None
    gap: float | None
    gap_low: float | None = None
    gap_high: float | None = None
    gap_at_parity: float | None = None  # what sampling alone makes of a gap of 0, on average: a distance is never below 0
    raw_gap: float | None
    p_value: float | None = None  # of shares that are the target's
    rows: list[PresenceRow]


class GroupRow(Cell):
    """One subgroup's cell, with what stands beside it: the real-against-real floor, or the value on real images."""

    group: str
    n_real: int
    n_synthetic: int
    reference: Cell | None = None


class _GroupTable(Part):
    """What every table of values by subgroup has; ``overall_reference`` stands beside ``overall`` as ``reference`` beside a row.

    ``gap`` is the largest less the smallest value, with 95 % bounds; ``p_value`` is that of equal groups, None where it is not tested.
    """

    question: str
    by: list[str]
    basis: Basis
    overall: Cell
    overall_reference: Cell | None = None
    rows: Sequence[GroupRow]
    gap: float | None
    gap_low: float | None = None
    gap_high: float | None = None
    p_value: float | None = None
    worst: str | None


QUALITY = Literal["kid", "fid", "precision", "recall", "density", "coverage", "log-is", "cmmd"]


class QualityTable(_GroupTable):
    """A distance, or another view of quality, by subgroup at one common n; only the kernel distance is tested.

    ``reference`` is for the kernel distance the same between two halves of the real images, for log-IS that of the real images.
    """

    metric: QUALITY
    primary: bool
    encoder: str
    direction: Literal["lower", "higher"] = "lower"
    n: int
    effect: float | None = None  # largest difference of the tested distances
    monte_carlo: float = 0.0  # largest standard error that the draws leave in a value, in half widths of its interval
    untested: str = ""  # why there is no p-value
    view: str = ""  # of what features: "relative" as they are, "whitened"
    tested: dict[str, float | None] = {}  # each group's distance in that view, over the kernel variance of its own real images


class SemanticRow(GroupRow):
    """AUC of the judge on generated images, and ``difference``: that less its AUC on real images of the group (``reference``)."""

    difference: Cell


class SemanticTable(_GroupTable):
    """AUC of a judge's scores against the condition that was requested, by subgroup; ``reference`` is the judge on real images.

    ``gap`` and ``worst`` are of the differences between both: a judge that reads a group badly on real images too is no fault of the
    generator.
    """

    condition: str
    value: str
    metric: Literal["auc"] = "auc"
    direction: Literal["higher"] = "higher"
    rows: Sequence[SemanticRow]
    es_reference: float | None = None  # equity-scaled AUC as published; see the report's warnings
    es_macro: float | None = None


class FairnessRow(Part):
    """How far a judge's probabilities can be taken at their word in one group, on generated images and on real ones.

    ``ece`` is corrected for the number of images.
    """

    group: str
    ece: Cell
    ece_real: Cell
    brier: Cell
    brier_real: Cell


class FairnessTable(Part):
    """The judge's answers on a condition, by subgroup: calibration, and how far groups differ in what is predicted.

    ``parity``: largest difference of predicted shares; ``odds``: of true or false positive rates. None where a group has no rate.
    """

    question: str
    condition: str
    by: list[str]
    basis: Basis
    parity: float | None
    odds: float | None
    parity_real: float | None
    odds_real: float | None
    rows: list[FairnessRow]


class UtilityRow(GroupRow):
    """AUC trained on generated images less AUC trained on real ones, and both of these."""

    real_trained: float | None
    synthetic_trained: float | None


class UtilityTable(_GroupTable):
    """Train on generated images, test on real ones, against train on real: the difference of AUC by subgroup of the real test images."""

    condition: str
    value: str
    metric: Literal["auc difference"] = "auc difference"
    direction: Literal["higher"] = "higher"
    n_train_real: int
    n_train_synthetic: int
    rows: Sequence[UtilityRow]
    worst: str | None


class CopyTable(_GroupTable):
    """Share of generated images that are copies or near copies of training images, by subgroup, less what passes by chance.

    Or beside it: the distance to the nearest training image over that to the nearest held-out one, and the share of authentic images.
    """

    metric: Literal["copy rate", "nearest ratio", "authenticity"] = "copy rate"
    direction: Literal["lower", "higher"] = "lower"
    worst: str | None


class CopyPair(Part):
    """A generated image and the training image that it is nearest to; ``score`` below 1 is a copy, 0 an exact one."""

    image: str
    train_image: str
    score: float
    transform: str


class Memorization(Part):
    """Copies of training images: by subgroup, and the worst ones; ``sensitivity`` is the share of planted edits that is found."""

    n_train: int
    n_heldout: int
    leaked: int
    sensitivity: float
    authenticity: Cell
    tables: list[CopyTable]
    beside: list[CopyTable]  # nearest ratio and authenticity by single attributes
    worst: list[CopyPair]


class Decision(Part):
    """Whether a question's gap stands once all that were asked are counted."""

    question: str
    primary: bool
    gap: float | None
    effect: float | None
    p_value: float | None  # None where it cannot be tested
    p_adjusted: float | None
    adjustment: Literal["holm", "benjamini-hochberg"]
    flagged: bool


class RuleOutcome(Part):
    """A bound set beforehand (``--fail-on``) and whether the audit fails it; the gap with its 95 % bounds."""

    rule: str
    gap: float | None
    gap_low: float | None = None
    gap_high: float | None = None
    failed: bool
    text: str


class Finding(Part):
    """One headline: which question, a plain sentence, and what kind of statement it is."""

    question: str
    text: str
    kind: Literal["presence", "quality", "semantics", "utility", "memorization", "caveat"]


class CohortFacts(Part):
    """Which cohort was read."""

    path: str
    name: str
    modality: str
    n: int
    subjects: int
    sha256: str
    synthetic: bool
    source: str
    licence: str
    model_sha256: str | None
    image_size: int
    made_at: str | None
    guidance_scale: float | None = None


class JudgeFacts(Part):
    """Which classifier read which column."""

    path: str
    target: str
    groups: list[str]
    auc: float | None
    sha256: str
    subjects_sha256: str
    trained_here: bool
    guided: bool = False


class EncoderFacts(Part):
    """Which network made the features, and for how many images."""

    path: str
    name: str
    dim: int
    sha256: str
    features_real: int
    features_synthetic: int


class MonteCarlo(Part):
    """How far another seed would move this audit's figures in 95 % of repeats, with the same judges.

    ``value`` is the largest of all size-matched values and ``bound`` that of a bootstrap interval's bounds, in half widths of the figure's
    own interval; ``p_value`` is that of a p-value near .05 of the quality test, which has the most draws to make.
    """

    value: float
    bound: float
    p_value: float


class Document(Part):
    """A result that is written as JSON and read back; ``what`` it is, and the command that makes it."""

    what: ClassVar[tuple[str, str]]
    format: int

    def save(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read the JSON.

        Raises:
            UserError: no such file, not JSON, or not such a result of this format.
        """
        values, (name, command), current = read_json(Path(path)), cls.what, cls.model_fields["format"].default
        if not isinstance(values, dict) or values.get("format") != current:
            raise UserError(f"{path}: not {name} of format {current}; make it anew with '{command}'")
        try:
            return cls(**values)
        except (ValidationError, TypeError) as error:
            fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            raise UserError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; make it anew with '{command}'") from None


class AuditResult(Document):
    """Everything one audit found, and everything needed to make it again."""

    what: ClassVar[tuple[str, str]] = ("an audit", "evenhand audit")
    format: int = FORMAT
    real: CohortFacts
    synthetic: CohortFacts
    real_rows: Literal["val+test", "all"]
    n: dict[str, int]
    seeds: dict[str, int]
    settings: dict[str, Any]
    judges: list[JudgeFacts]
    encoders: list[EncoderFacts]
    presence: list[PresenceTable]
    quality: list[QualityTable]
    semantics: list[SemanticTable]
    fairness: list[FairnessTable] = []
    utility: list[UtilityTable] = []
    memorization: Memorization | None = None
    decisions: list[Decision] = []
    rules: list[RuleOutcome] = []
    findings: list[Finding]
    monte_carlo: MonteCarlo
    provenance: dict[str, Any]


def number(value: float) -> float | None:
    """A finite float, or None: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
