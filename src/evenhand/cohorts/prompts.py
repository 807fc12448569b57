"""Prompts: one template a modality, and which attributes it states.

The wording for fundus, dermoscopy and chest is FairDiffusion's (arXiv 2412.20374, section 4.1), so that its models understand it.
Groups that nobody knows are left out, as is every attribute that the caller wants silent; conditions are stated where known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS

Phrase = Callable[[str], str]
_NEGATIVE = ("none", "no", "false", "absent", "negative", "0")


def _either(negative: str, positive: str) -> Phrase:
    """One phrase for ``none`` and its like, another for everything else."""
    return lambda value: negative if value.lower() in (*_NEGATIVE, negative.lower()) else positive


def _with_noun(noun: str) -> Phrase:
    return lambda value: f"{value} {noun}"


@dataclass(frozen=True)
class Template:
    """``{head} of a {attributes} patient{joint}{conditions}``."""

    head: str
    joint: str  # what leads from the patient to the conditions
    attributes: tuple[str, ...] = ()  # the order in which they are named; others follow
    conditions: dict[str, Phrase] = field(default_factory=dict)
    phrases: dict[str, Phrase] = field(default_factory=dict)  # other columns that need more than their value


_FUNDUS_CONDITIONS: dict[str, Phrase] = {
    "glaucoma": _either("non-glaucoma", "glaucoma"),
    "md_severity": lambda value: "normal vision" if value.lower() == "normal" else f"{value} vision loss",
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
    "effusion": _either("non Pleural Effusion", "Pleural Effusion"),
    "finding": _either("No Finding", "abnormal findings"),
    **{column: _either(f"non {name}", name) for column, name in CHEST_FINDINGS.items()},
}

_GRADES = {"HGG": "high-grade glioma", "LGG": "low-grade glioma"}  # of the patient, whatever the slice shows

TEMPLATES: dict[str, Template] = {
    "brain": Template(
        "Brain MR slice",
        " ",
        ("sex", "age_group"),
        {"tumour": _either("without tumour", "with tumour")},
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
        state: the attributes that the prompt states; None states all of them.

    Example:
        >>> write_prompt("brain", {"sex": "male", "age_group": "old"}, {"tumour": "none"}, state=["sex"])
        'Brain MR slice of a male patient without tumour'
    """
    template = TEMPLATES.get(modality) or _plain(modality)
    stated = {name: str(value) for name, value in attributes.items() if _is_known(value) and (state is None or name in state)}
    words = [template.phrases.get(name, str)(stated[name]) for name in _ordered(stated, template.attributes)]
    found = {name: str(value) for name, value in conditions.items() if _is_known(value)}
    joint = template.joint if any(name in template.conditions for name in found) else ", "
    spoken = {**template.phrases, **template.conditions}
    phrases = [spoken.get(name, _named(name))(found[name]) for name in _ordered(found, template.conditions)]
    prompt = " ".join([template.head, "of a", *words, "patient"]) + (joint + ", ".join(phrases) if phrases else "")
    return " ".join(prompt.split())


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


def _named(column: str) -> Phrase:
    label = column.replace("_", " ")
    return lambda value: f"{label} {value}"


def _ordered(present: Mapping[str, str], order: Mapping[str, object] | Sequence[str]) -> list[str]:
    return [name for name in order if name in present] + [name for name in present if name not in order]


def _is_known(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value not in NOT_GROUPS
