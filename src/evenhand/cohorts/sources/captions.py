"""Sex and age of the one patient whom a caption describes, where it says so; docs/cohorts.md has the pattern and its measured precision.

Only what is written of the patient counts: "45-year-old woman", "male infant", "M/45". Organs, pregnancy and pronouns are not taken as a
sex. Where it is not plain whom the words mean (animals, relatives, a fetus, two patients), nothing is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evenhand.cohorts.ages import age_group
from evenhand.core.groups import UNKNOWN

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = {
    **{word: number for number, word in enumerate([*_ONES, *_TEENS], start=1)},
    **{ten: 10 * number for number, ten in enumerate(_TENS, start=2)},
    **{f"{ten} {one}": 10 * number + rest for number, ten in enumerate(_TENS, start=2) for rest, one in enumerate(_ONES, start=1)},
}
_WORDS = f"(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES)}))?|{'|'.join([*_TEENS, *_ONES])}"
# neither the end of a range, nor of a longer number, in figures or in words
_NUMBER = rf"(?:(?<!\d)(?<!\d[.,/–-])(?<!\bto )(?=\d)|(?<![A-Za-z]-)\b(?=[A-Za-z]))(\d{{1,3}}(?:\.\d)?|{_WORDS})"
_UNIT = r"(years?|yrs?|y|months?|mos?|weeks?|wks?|days?|hours?)"
# what may be some years old besides a patient
_THINGS = (
    "fractures?|injur|lesions?|scars?|infarct|h[a]?ematoma|thromb|grafts?|stents?|implants?|prosthes|defects?|dislocations?|wounds?|burns?|"
    "ruptures?|tears?|bleed|strokes?|operations?|surger|shunts?|pregnan|gestation|specimens?|radiographs?|images?|scans?|history|tumou?rs?"
)
_MALE, _FEMALE = r"(?:man|boy|gentleman|male)", r"(?:woman|girl|lady|female)"
_SEX = rf"(?:{_FEMALE}|{_MALE})"
_PERSON = (
    "patient|child|infant|neonate|newborn|baby|toddler|adolescent|teenager|adult|subject|volunteer|individual|person|victim|cadaver|"
    "smoker|nonsmoker|non-smoker|recipient"
)

# without one of these nothing is found: most captions name nobody, and this is quick to see
_HINT = re.compile(r"m[ae]n\b|boy|girl|\blad|gentlem|male|old\b|\baged?\b|y[./ -]?o\b|\bo\b|[MF] ?/ ?\d|\d ?/ ?[MF]", re.IGNORECASE)
_OLD = re.compile(rf"{_NUMBER}[\s-]*{_UNIT}(?:[\s.-]*old\b|[\s-]+of age\b|[\s./-]?o\b\.?)(?!\s+(?:{_THINGS}))", re.IGNORECASE)
_YEAR_SEX = re.compile(rf"{_NUMBER}[\s-]*(year|yr|month|week|day)s?[\s-]+(?:adult\s+)?(?={_SEX}\b)", re.IGNORECASE)
_SEX_YEARS = re.compile(
    rf"\b{_SEX}(?:\s+(?:{_PERSON}))?\s*[,(]\s*{_NUMBER}[\s-]*{_UNIT}\b(?!\s+(?:after|before|later|post|follow|of\s+follow|history))",
    re.IGNORECASE,
)
_CODE_AGE = re.compile(r"(?<![\w/.-])(?<!\d )[MF] ?/ ?(\d{1,3})(?![\w/.%-])|(?<![\w/.-])(\d{1,3}) ?/ ?[MF](?![\w/-])")
_AT_AGE = re.compile(
    rf"(?:\b(\w+)\s+)?\bage[d]?(?:\s+of|\s*[:=])?\s*{_NUMBER}(?!\s*(?:[-–±]|to\b|and\b)\s*\d)(?![\d%]|\.\d)\s*{_UNIT}?\b", re.IGNORECASE
)
_OTHER_AGE = {
    *("bone", "dental", "skeletal", "gestational", "fetal", "foetal", "mental", "mean", "median", "average", "menstrual", "brain"),
    *("under", "over", "below", "above", "maternal"),
}

_NOUN = {
    "female": re.compile(r"\b(?:[Ww]oman|[Gg]irl|[Ll]ady(?! [Ww]indermere))\b"),
    "male": re.compile(
        r"(?<!Michelin )(?<!michelin )(?<!stick )(?<!Vitruvian )\b(?:[Mm]an(?!-made| made|ifold)|[Bb]oy|[Gg]entleman)\b",
    ),
}
_BETWEEN = r"(?:[\s,-]+(?!and\b|or\b|to\b|with\b|from\b)[A-Za-z+'-]+){0,3}"  # up to three words of one phrase


def _described(word: str) -> re.Pattern[str]:
    """``female`` or ``male`` where it is said of a person: after an age, before one, or with a person's noun."""
    after_age = rf"(?:[\s.-]old|of age|[\s\d-]y[./ ]?o\.?|year|yr|month){_BETWEEN}[\s,(-]+{word}\b"
    before_noun = rf"\b{word}(?:\s+(?!and\b|or\b|to\b|with\b)[\w-]+){{0,2}}[\s,]+(?:{_PERSON})\b"
    before_age = rf"\b{word}\s*(?:,|\(|aged?\b|of age\b)\s*(?:aged?\s+)?(?:\d{{1,3}}|{_WORDS})[\s-]*(?:{_UNIT}\b|$|[,;:.)])"
    adult = rf"\b(?:adult|young|elderly|middle[- ]aged)\s+{word}\b"
    noun_first = rf"\b(?:{_PERSON})\s*[,(]\s*{word}\b"
    return re.compile("|".join((after_age, before_noun, before_age, adult, noun_first)), re.IGNORECASE)


_ADJECTIVE = {"female": _described("female"), "male": _described("male")}
_CODE_SEX = {
    sex: re.compile(
        rf"(?<![\w/.-])(?<!\d ){code} ?/ ?\d{{1,3}}(?![\w/.%-])|(?<![\w/.-])\d{{1,3}} ?/ ?{code}(?![\w/-])"
        rf"|\b\d{{1,3}}[ -]?(?:y(?:ea)?rs?[ -]?old|y[./ ]?o\.?)[ ,/-]+{code}\b(?![/-])"
    )
    for sex, code in (("female", "F"), ("male", "M"))
}
_PRONOUN = {"female": re.compile(r"\b(?:[Ss]he|[Hh]er)\b(?!-)"), "male": re.compile(r"\b(?:[Hh]e|[Hh]im|[Hh]is)\b(?! bundle)(?!-)")}

_NO_PATIENT = {  # why -> the words for which nothing is taken
    "an animal or a phantom": re.compile(
        r"\b(?:rats?|mouse|mice|murine|dogs?|canine|cats?|feline|horses?|equine|mares?|foals?|stallions?|geldings?|rabbits?|bovine|cows?|"
        r"calf|calves|sheep|lambs?|ovine|goats?|pigs?|piglets?|porcine|swine|monkeys?|macaques?|primates?|hamsters?|guinea|ferrets?|"
        r"birds?|avian|chickens?|parrots?|turtles?|tortoises?|snakes?|lizards?|fish|zebrafish|larvae?|insects?|mites?|spiders?|beetles?|"
        r"sp\. n\.|sp\. nov\.|terriers?|retrievers?|spayed|neutered|phantoms?|man[n]?[ei]quins?|manikins?)\b",
        re.IGNORECASE,
    ),
    "a fetus": re.compile(r"\b(?:f[o]?et(?:us(?:es)?|al)|embryos?)\b", re.IGNORECASE),
    "a relative or a donor": re.compile(
        r"\b(?:mothers?|fathers?|maternal|paternal|parents?|brothers?|sisters?(?! mary| joseph)|wife|husband|sons?|"
        r"daughters?(?! cyst| nod| nucl| vesic)|aunts?|uncles?|cousins?|donors?)\b",
        re.IGNORECASE,
    ),
    "several patients": re.compile(
        r"\b(?:[Mm]en|[Ww]omen|[Mm]ales|[Ff]emales|[Bb]oys|[Gg]irls|[Ll]adies|[Gg]entlemen|[Tt]wins|[Tt]riplets)\b(?!['’])"
        r"|\b(?i:two|three|four|five|six|ten|both|different|several|these|all|other|\d+)\s+(?:\w+\s+)?(?i:patients|children|infants|"
        r"subjects|volunteers|cases|individuals|siblings)\b|\b(?i:patients|cases)\s+(?:[#\dA-D]+)\s*(?:and|,|&|-|–)"
        r"|\b(?i:another|second|other)\s+(?:\d+[- ]year[- ]old\s+)?(?:patient|man|woman|boy|girl|child)\b.*\b(?i:first|one|another)\b"
    ),
}
_NO_SEX = re.compile(
    r"male[- ]to[- ]female|female[- ]to[- ]male|\btrans(?:gender|sexual|[- ]?wom[ae]n|[- ]?m[ae]n)|\bintersex|hermaphrodit|"
    r"ambiguous genital|\b(?:gender|sex)[- ](?:re)?(?:assignment|affirm)|sex(?:ual)? (?:development|differentiation)|androgen insensitiv",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mined:
    """What one caption says of its patient; ``refused``: why it was passed over, where it names a sex or an age all the same."""

    sex: str = UNKNOWN  # female, male
    age_group: str = UNKNOWN  # <60, >=60
    age: str = ""  # as written, with its unit, such as 45Y or 9M; empty where ages differ
    refused: str = ""


def mine(caption: str) -> Mined:
    """Sex and age group of the patient of a caption.

    Example:
        >>> mine("Axial CT of a 45-year-old woman with a renal mass")
        Mined(sex='female', age_group='<60', age='45Y', refused='')
        >>> mine("Radiographs of a 4-year-old, spayed, female Boxer dog").refused
        'an animal or a phantom'
    """
    text = " ".join(caption.replace("’", "'").replace("‐", "-").replace("‑", "-").split())
    if not _HINT.search(text):
        return Mined()
    ages, several = _ages(text)
    sexes = _sexes(text)
    if not ages and not sexes:
        return Mined()
    for why, words in _NO_PATIENT.items():
        if words.search(text):
            return Mined(refused=why)
    groups = {age_group(age) for age in ages}
    age = groups.pop() if len(groups) == 1 else UNKNOWN
    written = ages[0] if len(set(ages)) == 1 else ""
    why = _doubt(text, sexes, several)
    sex = next(iter(sexes)) if sexes and not why else UNKNOWN
    if len(ages) > 1 and age == UNKNOWN:
        why = why or "ages on both sides of 60"
    return Mined(sex, age, written, why)


def _doubt(text: str, sexes: set[str], several: bool) -> str:
    """Why the sex of a caption is not taken; empty where it is."""
    if not sexes:
        return ""
    if _NO_SEX.search(text):
        return "sex or gender is itself the matter"
    spoken = {sex for sex, words in _PRONOUN.items() if words.search(text)}
    if len(sexes | spoken) > 1:
        return "both sexes are named"
    return "several patients" if several else ""


def _sexes(text: str) -> set[str]:
    return {sex for sex in ("female", "male") for words in (_NOUN, _ADJECTIVE, _CODE_SEX) if words[sex].search(text)}


def _ages(text: str) -> tuple[list[str], bool]:
    """Ages such as ``45Y`` in the order of how plainly they are the patient's now; and whether several patients have one.

    "45-year-old" counts before "at age 40", which may tell of an earlier time: the second is read where the first is absent.
    """
    found = [_age(match[1], match[2]) for words in (_OLD, _YEAR_SEX, _SEX_YEARS) for match in words.finditer(text)]
    found += [_age(match[1] or match[2], "y") for match in _CODE_AGE.finditer(text)]
    if not found:
        found = [_age(match[2], match[3] or "y") for match in _AT_AGE.finditer(text) if (match[1] or "").lower() not in _OTHER_AGE]
        return found, False
    return found, len(set(found)) > 1


def _age(number: str, unit: str) -> str:
    """``forty-five``, ``years`` -> ``45Y``; hours count as a day."""
    value = _NUMBERS.get(number.lower().replace("-", " "), number)
    return "1D" if unit[0].lower() == "h" else f"{value}{unit[0].upper()}"
