"""The audit of one generated cohort against a real one: wires encoders and judges to the pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenhand.audit.chapters import (
    Compared,
    copies_chapter,
    fairness_chapter,
    left_out,
    presence_chapter,
    quality_chapter,
    recipe,
    semantics_chapter,
    told_alike,
    utility_chapter,
)
from evenhand.audit.decisions import Question, Rule, parse_question, parse_rule
from evenhand.audit.findings import caveats, headline_findings
from evenhand.audit.gaps import P_VALUE_ERROR
from evenhand.audit.intervals import BETWEEN_SEEDS, bound_error
from evenhand.audit.judges import cohort_facts, gather_judges, kept_beside
from evenhand.audit.readings import Reading, per_image_table, read_column, stated
from evenhand.audit.result import AuditResult, MonteCarlo
from evenhand.audit.settings import AuditSettings
from evenhand.audit.verdicts import check_rules, decide
from evenhand.cohorts.cohort import Cohort, write_table
from evenhand.cohorts.meeting import notes_on_names, require_names_meet
from evenhand.core.artifacts import provenance
from evenhand.core.errors import UserError
from evenhand.engine.devices import processes
from evenhand.engine.features import cohort_predictions

__all__ = ["AuditSettings", "audit_cohorts", "audit_several"]


@dataclass(frozen=True)
class _Declared:
    """What was said before the first number was seen: the primary questions, and the rules that fail an audit."""

    primary: list[Question]
    rules: list[Rule]

    @classmethod
    def of(cls, settings: AuditSettings, real: Cohort) -> _Declared:
        schema = real.schema
        primary = [parse_question(text, attributes=schema.attributes, conditions=schema.conditions) for text in settings.primary]
        rules = [parse_rule(text, attributes=schema.attributes, conditions=schema.conditions) for text in settings.fail_on]
        return cls(primary, rules)


def audit_cohorts(settings: AuditSettings) -> AuditResult:
    """Compare a generated cohort with a real one by subgroup; write audit.json and, beside it, the per-image audit.parquet.

    Images are compared with the real validation and test images, or with all of them where those are too few; shares with those
    of the whole real cohort. Every image passes each network once.

    Raises:
        UserError: not a cohort, nothing to compare, a judge or encoder that cannot be loaded, or ``out`` in use by another run.
    """
    real, synthetic = Cohort.load(settings.real), Cohort.load(settings.synthetic)
    _check(settings, real, synthetic)
    declared = _Declared.of(settings, real)
    compared_real, real_rows = _held_out(real, settings.min_n)
    with kept_beside(settings.out, "judges") as folder:
        judges = gather_judges(
            real, synthetic, settings.judge or [], folder, recipe(settings), force=settings.force_judge, as_encoder=not settings.encoder
        )  # fmt: skip
        scores = {
            side: {name: cohort_predictions(judge, cohort, batch_size=settings.batch_size) for name, judge in judges.by_target.items()}
            for side, cohort in (("real", compared_real), ("synthetic", synthetic))
        }
        compared = Compared(compared_real, synthetic, scores, judges)
        readings = {name: read_column(compared_real, synthetic, name, compared.judgement(name)) for name in real.schema.attributes}
        alike, refused = told_alike(compared, readings)
        found = _chapters(settings, (real, real_rows), compared, (readings, alike), refused, folder)
        result = _result(settings, declared, (real, real_rows), compared, found)
        if processes().is_main_process:
            sides = {"real": compared_real, "synthetic": synthetic}
            groups = {name: judge.groups for name, judge in judges.by_target.items()}
            write_table(settings.out.with_suffix(".parquet"), per_image_table(sides, readings | alike, scores, groups))
            result.save(settings.out)
        processes().wait_for_everyone()
    return result


def audit_several(settings: AuditSettings, others: Sequence[Path]) -> list[tuple[Path, AuditResult]]:
    """Audit several generated cohorts, such as one at each guidance scale, by the same judges: audit.json, audit-2.json, ...

    Returns:
        Each audit's path and result; a report of all of them draws presence and quality along the guidance scale.
    """
    found = [(settings.out, audit_cohorts(settings))]
    judges = [Path(judge.path) for judge in found[0][1].judges]
    for place, synthetic in enumerate(others, start=2):
        out = settings.out.with_name(f"{settings.out.stem}-{place}.json")
        again = settings.model_copy(update={"synthetic": synthetic, "out": out, "judge": judges})
        found.append((out, audit_cohorts(again)))
    return found


def _check(settings: AuditSettings, real: Cohort, synthetic: Cohort) -> None:
    if settings.out.suffix != ".json":
        raise UserError(f"--out {settings.out}: name a .json file, such as audit.json")
    if settings.out.is_dir():
        raise UserError(f"--out {settings.out}: is a folder; name a .json file in it")
    for cohort in (real, synthetic):
        if len(cohort) < 2:
            raise UserError(f"{cohort.root}: {len(cohort)} images; an audit needs at least 2 a side")
    require_names_meet(synthetic, real, real.schema.columns)
    if not real.schema.attributes:
        raise UserError(f"{real.root}: no attributes, so there are no subgroups to compare; import it with --attributes")


def _held_out(real: Cohort, min_n: int) -> tuple[Cohort, Any]:
    held_out = real.split("val", "test")
    return (held_out, "val+test") if len(held_out) >= 2 * min_n else (real, "all")


@dataclass(frozen=True)
class _Chapters:
    """What was found, as fields of the result; and what was not looked at, and why."""

    parts: dict[str, Any]
    refused: list[str]

    @property
    def tables(self) -> list[Any]:
        """All tables that answer a question."""
        memorization = self.parts["memorization"]
        copies = memorization.tables if memorization else []
        return [*self.parts["presence"], *self.parts["quality"], *self.parts["semantics"], *self.parts["utility"], *copies]


def _chapters(
    settings: AuditSettings,
    real: tuple[Cohort, Any],
    compared: Compared,
    both: tuple[dict[str, Reading], dict[str, Reading]],
    refused: list[str],
    folder: Path,
) -> _Chapters:
    """Presence by the first of ``both`` readings, comparisons of images by the second."""
    readings, alike = both
    quality, encoders = quality_chapter(compared, alike, settings)
    utility, useless = utility_chapter(*real, compared, readings, settings, folder)
    memorization, uncopied = copies_chapter(*real, compared, alike, settings)
    unmet = notes_on_names(compared.synthetic, real[0], real[0].schema.columns)
    parts = {
        "presence": presence_chapter(real[0], compared, readings, settings),
        "quality": quality,
        "encoders": encoders,
        "semantics": semantics_chapter(compared, alike, settings),
        "fairness": fairness_chapter(compared, alike, settings),
        "utility": utility,
        "memorization": memorization,
    }
    return _Chapters(parts, [*refused, *unmet, *left_out(compared), *useless, *uncopied])


def _result(settings: AuditSettings, declared: _Declared, real: tuple[Cohort, Any], compared: Compared, found: _Chapters) -> AuditResult:
    facts = (cohort_facts(real[0]), cohort_facts(compared.synthetic))
    judges, parts = compared.judges.facts, found.parts
    unjudged = dict(compared.judges.unjudged)
    unjudged |= dict.fromkeys(_silent_conditions(compared), "its values are not stated in the generated cohort")
    limits = caveats(*facts, real[1], len(compared.real), judges, parts["encoders"], parts["presence"], unjudged, found.refused)
    decisions = decide(found.tables, declared.primary)
    return AuditResult(
        real=facts[0],
        synthetic=facts[1],
        real_rows=real[1],
        n={"real": len(real[0]), "real_compared": len(compared.real), "synthetic": len(compared.synthetic)},
        seeds={"audit": settings.seed},
        settings=settings.model_dump(mode="json"),
        judges=judges,
        **parts,
        decisions=decisions,
        rules=check_rules(declared.rules, found.tables),
        findings=[*headline_findings(found.tables, decisions, parts["memorization"]), *limits],
        monte_carlo=MonteCarlo(
            value=BETWEEN_SEEDS * max((table.monte_carlo for table in parts["quality"]), default=0.0),
            bound=BETWEEN_SEEDS * bound_error(settings.n_boot),
            p_value=BETWEEN_SEEDS * P_VALUE_ERROR,
        ),
        provenance=provenance(),
    )


def _silent_conditions(compared: Compared) -> list[str]:
    return [name for name in compared.real.schema.conditions if stated(compared.synthetic, name).isna().all()]
