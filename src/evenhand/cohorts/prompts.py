"""Prompts: one template per modality, and which attributes it names.

The wording for fundus, dermoscopy and chest is FairDiffusion's (arXiv 2412.20374, section 4.1), so that its models understand it.
Unknown groups are left out, as is every attribute that the caller does not ask for; conditions are named where known.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS

Phrase = Callable[[str], str]
_NO = ("none", "no", "n", "false", "f", "-", "absent", "negative", "neg", "normal", "healthy", "nofinding", "nofindings")
_YES = ("yes", "y", "true", "t", "+", "present", "positive", "pos")
_GRADE = ("trace", "minimal", "mild", "small", "moderate", "large", "severe", "marked")


def _finding(negative: str, positive: str, *names: str, graded: str = "", plain: str = "{}") -> Phrase:
    """One phrase for a value that is known to mean absence, another for one that is known to mean presence.

    Any other word is written as it is: a template must not turn ``glioma``, ``control`` or a word in another language into a finding.

    Args:
        names: what the finding is called; ``no tumour``, ``non-tumour`` and ``tumour-free`` mean absence, ``tumour`` presence.
        graded: the phrase for ``mild``, ``severe`` and so on, with ``{}`` for the value.
        plain: the phrase for any other word.

    The phrase raises ``UserError`` for a number other than 0 and 1, of which nobody knows what it means.
    """
    name, names = names[0], tuple(map(_letters, names))
    absent = {*_NO, _letters(negative), *(lead + name for lead in ("no", "non", "not", "without") for name in names)}
    absent |= {name + end for name in names for end in ("free", "absent", "negative", "no", "none", "false")}
    present = {*_YES, _letters(positive), *names, *("with" + name for name in names)}
    present |= {name + end for name in names for end in ("present", "positive", "yes", "true")}

    def phrase(value: str) -> str:
        number, word = _number(value), _letters(value)
        if number == 0 or word in absent:
            return negative
        if number == 1 or word in present:
            return positive
        if number is not None:
            raise UserError(
                f"{name} {value!r}: of numbers only 0 (absent) and 1 (present) are known; "
                f"write 0 and 1, or words such as 'none' and {name!r}"
            )
        return graded.format(value) if graded and word in _GRADE else plain.format(value)

    return phrase


def _letters(text: str) -> str:
    """``Non-Glaucoma`` and ``non_glaucoma`` as one word."""
    return re.sub(r"[\s_-]+", "", text).casefold() or text.strip()


def _number(value: str) -> float | None:
    return float(value.replace(",", ".")) if re.fullmatch(r"\s*[+-]?\d+(?:[.,]\d*)?\s*", value, re.ASCII) else None


def _with_noun(noun: str) -> Phrase:
    return lambda value: f"{value} {noun}"


@dataclass(frozen=True)
class Template:
    """``{head} of a {attributes} patient{joint}{conditions}``."""

    head: str
    joint: str  # between the patient and the conditions
    attributes: tuple[str, ...] = ()  # the order in which they are named; others follow
    conditions: dict[str, Phrase] = field(default_factory=dict)
    phrases: dict[str, Phrase] = field(default_factory=dict)  # other columns that need more than their value


_FUNDUS_CONDITIONS: dict[str, Phrase] = {
    "glaucoma": _finding("non-glaucoma", "glaucoma", "glaucoma", graded="{} glaucoma"),
    "md_severity": _finding("normal vision", "vision loss", "vision loss", graded="{} vision loss"),
    "cup_disc_ratio": _with_noun("cup-disc ratio"),
    "refraction": str,  # hyperopia, emmetropia, myopia
}

# the findings of CheXpert, column -> the data set's own words; effusion and finding have phrases of their own
CHEST_FINDINGS = {
    name.lower().replace(" ", "_"): name
    for name in (
        *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia"),
        *("Atelectasis", "Pneumothorax", "Pleural Other", "Fracture", "Support Devices"),
    )
}
_CHEST_CONDITIONS: dict[str, Phrase] = {
    "effusion": _finding("non Pleural Effusion", "Pleural Effusion", "effusion", "pleural effusion", graded="{} Pleural Effusion"),
    "finding": _finding("No Finding", "abnormal findings", "finding", "findings", "any", "any finding", "abnormal"),
    **{column: _finding(f"non {name}", name, column, graded=f"{{}} {name}") for column, name in CHEST_FINDINGS.items()},
}

_GRADES = {"HGG": "high-grade glioma", "LGG": "low-grade glioma"}  # of the patient, whatever the slice shows

TEMPLATES: dict[str, Template] = {
    "brain": Template(
        "Brain MR slice",
        "",  # its phrases begin with a blank or a comma of their own
        ("sex", "age_group"),
        {"tumour": _finding(" without tumour", " with tumour", "tumour", "tumor", graded=" with {} tumour", plain=", {}")},
        {"grade": lambda value: _GRADES.get(value, f"grade {value}")},
    ),
    "fundus": Template(
        "SLO fundus image",
        " with the following conditions: ",
        ("race", "sex", "gender", "ethnicity"),
        _FUNDUS_CONDITIONS,
    ),
    "dermoscopy": Template(
        "Dermoscopic image",
        " with the following diagnostic category: ",
        ("skin_tone", "sex", "age_group"),
        {"malignancy": str},
        {"skin_tone": _with_noun("skin tone")},
    ),
    "chest": Template(
        "Chest Radiography image",
        " diagnosed with ",
        ("sex", "race", "age_group"),
        _CHEST_CONDITIONS,
        {"view": _with_noun("view"), "race": lambda value: "other race" if value == "other" else value},
    ),
}


def write_prompt(modality: str, attributes: Mapping[str, str], conditions: Mapping[str, str], state: Sequence[str] | None = None) -> str:
    """The prompt of one image.

    Args:
        modality: a key of ``TEMPLATES``; any other modality gets a plain sentence that names each condition.
        attributes: column -> group of this row; unknown and unspecified groups are left out.
        conditions: column -> value of this row; always stated where known.
        state: the attributes that the prompt names; None names all of them.

    Raises:
        UserError: a number other than 0 and 1 for a finding that is absent or present.

    Example:
        >>> write_prompt("brain", {"sex": "male", "age_group": "old"}, {"tumour": "none"}, state=["sex"])
        'Brain MR slice of a male patient without tumour'
    """
    template = TEMPLATES.get(modality) or _plain(modality)
    named = {name: str(value) for name, value in attributes.items() if _is_known(value) and (state is None or name in state)}
    words = [template.phrases.get(name, _group(name))(named[name]) for name in _ordered(named, template.attributes)]
    findings = {name: str(value) for name, value in conditions.items() if _is_known(value)}
    joint = template.joint if any(name in template.conditions for name in findings) else ", "
    written = {**template.phrases, **template.conditions}
    phrases = [written.get(name, _named(name))(findings[name]) for name in _ordered(findings, template.conditions)]
    prompt = " ".join([template.head, "of a", *words, "patient"]) + (joint + ", ".join(phrases) if phrases else "")
    return " ".join(prompt.split())


def template_pattern(modality: str, attributes: Mapping[str, Sequence[str]], conditions: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    """Matches every prompt that the template writes of a cohort's groups, whichever it names; captions do not match.

    Args:
        attributes, conditions: column -> groups, as in the cohort's schema.
    """
    template = TEMPLATES.get(modality) or _plain(modality)
    words = [(template.phrases.get(name, _group(name)), groups) for name, groups in attributes.items()]
    written = {**template.phrases, **template.conditions}
    findings = [(written.get(name, _named(name)), groups) for name, groups in conditions.items()]
    found = _alternatives(findings)
    return re.compile(
        rf"{re.escape(template.head)} of a(?: (?:{_alternatives(words)}))* patient"
        rf"(?:(?:{re.escape(template.joint)}|, )(?:{found})(?:, (?:{found}))*)?"
    )


def _alternatives(phrases: Sequence[tuple[Phrase, Sequence[str]]]) -> str:
    """A pattern of what any of the phrases says of any of its values; ``(?!)``, which matches nothing, where there are none."""
    texts = set()
    for phrase, values in phrases:
        for value in values:
            with contextlib.suppress(UserError):
                texts.add(re.escape(phrase(value)))
    return "|".join(sorted(texts, key=len, reverse=True)) or "(?!)"


def check_state(state: Sequence[str] | None, attributes: Mapping[str, object] | Sequence[str]) -> list[str] | None:
    """Which attributes prompts state, once every name is known to exist; None means all, ``["none"]`` and ``[]`` mean none.

    Raises:
        UserError: a name that ``attributes`` lacks.
    """
    if state is None:
        return None
    names = list(attributes)
    if list(state) == ["none"] and "none" not in names:
        return []
    for name in state:
        if name not in names:
            raise UserError(f"--prompt-attributes: no attribute {name!r}; {did_you_mean(name, names)}; or 'none' to state none")
    return list(state)


def _plain(modality: str) -> Template:
    words = modality.replace("_", " ").replace("-", " ").strip()
    head = "Medical image" if words.lower() in ("", "mixed", "unknown", "image") else f"{words[0].upper()}{words[1:]} image"
    return Template(head, ", ")


def _group(column: str) -> Phrase:
    """The group's name; a number or a truth value, which alone says nothing, with its column's name before it."""
    return lambda value: value if _number(value) is None and value.lower() not in ("true", "false") else _named(column)(value)


def _named(column: str) -> Phrase:
    label = column.replace("_", " ")
    return lambda value: f"{label} {value}"


def _ordered(present: Mapping[str, str], order: Mapping[str, object] | Sequence[str]) -> list[str]:
    return [name for name in order if name in present] + [name for name in present if name not in order]


def _is_known(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value not in NOT_GROUPS
