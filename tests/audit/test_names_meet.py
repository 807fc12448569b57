"""Real and generated cohorts name groups alike, or are refused in one line; a group that one side lacks is fine."""

from pathlib import Path

import pytest

from evenhand.audit.correlation import SemanticSettings, semantic_correlation
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort, write_table
from evenhand.cohorts.meeting import Names, notes_on_names, require_names_meet, why_apart
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import write_json
from evenhand.core.errors import UserError


def cohort(path: Path, column: str, names: dict[str, str], groups: list[str] | None = None, *, synthetic: bool = False) -> Cohort:
    """Brain phantoms in which the groups of one column have other names."""
    made = write_phantoms("brain", path, n=12, size=24, seed=int(synthetic))
    table = made.table.assign(**{column: made.table[column].replace(names)})
    found = groups or sorted({*names.values()})
    schema = made.schema.model_copy(
        update={
            "attributes": {**made.schema.attributes, **({column: found} if column in made.schema.attributes else {})},
            "conditions": {**made.schema.conditions, **({column: found} if column in made.schema.conditions else {})},
            "synthetic": synthetic,
        }
    )
    write_table(made.root / TABLE_FILE, table)
    write_json(made.root / SCHEMA_FILE, schema.model_dump())
    return Cohort.load(path)


@pytest.mark.parametrize(
    ("column", "real", "made", "near"),
    [
        ("sex", ["male", "female"], ["Male", "FEMALE"], "'Male' beside 'male' and 'FEMALE' beside 'female'"),
        ("sex", ["1", "0"], ["1.0", "0.0"], "'1.0' beside '1' and '0.0' beside '0'"),
        ("sex", ["male", "female"], ["M", "F"], "'M' beside 'male' and 'F' beside 'female'"),
        ("sex", ["male", "female"], ["0", "1"], "no name in common"),
        ("tumour", ["none", "tumour"], ["none", "Tumour"], "'Tumour' beside 'tumour'"),
        ("tumour", ["non-tumour", "tumour"], ["non tumour", "tumour"], "'non tumour' beside 'non-tumour'"),
    ],
)
def test_names_that_do_not_meet_are_refused(tmp_path, column, real, made, near) -> None:
    own = ["male", "female"] if column == "sex" else ["none", "tumour"]
    truth = cohort(tmp_path / "real", column, dict(zip(own, real, strict=True)))
    drawn = cohort(tmp_path / "made", column, dict(zip(own, made, strict=True)), synthetic=True)
    lists = [", ".join(map(repr, sorted(names))) for names in (made, real)]
    words = set(near.split(" and "))
    with pytest.raises(UserError) as error:
        audit_cohorts(AuditSettings(real=truth.root, synthetic=drawn.root, out=tmp_path / "audit.json"))
    head, _, rest = str(error.value).partition(" (")
    assert head == f"{drawn.root}: its groups of {column} are {lists[0]}, those of {truth.root} are {lists[1]}"
    reason, _, remedy = rest.partition("); ")
    assert set(reason.split(" and ")) == words
    assert remedy == "name groups alike: rename them in one raw table and import it again, since nothing is renamed between the two"
    with pytest.raises(UserError) as error:
        semantic_correlation(SemanticSettings(real=truth.root, synthetic=drawn.root, label=["tumour"], out=tmp_path / "semantic.json"))
    assert str(error.value).startswith(head)
    assert not (tmp_path / "audit.json").exists() and not (tmp_path / "semantic.json").exists()


def test_an_absent_group_is_no_reason(tmp_path) -> None:
    truth = cohort(tmp_path / "real", "sex", {}, ["male", "female", "other"])
    drawn = cohort(tmp_path / "made", "sex", {"female": "male"}, ["male"], synthetic=True)
    require_names_meet(drawn, truth, truth.schema.columns)
    silent = cohort(tmp_path / "silent", "sex", {"male": "unspecified", "female": "unspecified"}, ["Male", "Female"], synthetic=True)
    require_names_meet(silent, truth, truth.schema.columns)  # nothing is stated, so nothing is compared by name
    assert notes_on_names(drawn, truth, truth.schema.columns) == []


def test_columns_of_another_spelling_are_refused(tmp_path) -> None:
    truth, drawn = cohort(tmp_path / "real", "sex", {}, ["male", "female"]), cohort(tmp_path / "made", "sex", {}, ["male", "female"])
    columns = {"Sex" if name == "sex" else name: groups for name, groups in drawn.schema.attributes.items()}
    other = Cohort(drawn.schema.model_copy(update={"attributes": columns}), drawn.table.rename(columns={"sex": "Sex"}), drawn.root)
    with pytest.raises(UserError) as error:
        require_names_meet(other, truth, truth.schema.columns)
    remedy = "name columns alike: rename one and import it again"
    assert str(error.value) == f"{drawn.root}: its column 'Sex' is 'sex' in {truth.root}; {remedy}"


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        (["a", "b"], ["a", "b"], False),
        (["a"], ["a", "b", "c"], False),
        (["a", "c"], ["a", "b"], False),  # a group that real images lack
        (["Male", "male"], ["Male", "male"], False),  # untidy, but the same
        (["Male", "male"], ["male"], True),
        (["grade 1"], ["grade 2", "grade 1"], False),
        (["grade 3", "grade 1"], ["grade 2", "grade 1"], False),
        ([">=60", "<60"], ["> 60", "<60"], False),
        ([">=60"], ["<60"], True),
        (["01", "2"], ["1", "2"], True),
        (["African-American", "White"], ["African American", "White"], True),
        ([], ["a"], False),
        (["a"], [], False),
    ],
)
def test_which_names_are_apart(ours, theirs, apart) -> None:
    assert (why_apart(Names(ours, ours), Names(theirs, theirs)) is not None) == apart


def test_a_group_of_either_side_alone_is_noted(tmp_path) -> None:
    truth = cohort(tmp_path / "real", "sex", {}, ["male", "female"])
    drawn = cohort(tmp_path / "made", "sex", {"male": "man"}, ["man", "female"], synthetic=True)
    require_names_meet(drawn, truth, truth.schema.columns)
    assert notes_on_names(drawn, truth, truth.schema.columns) == [
        "sex: 'man' occurs among generated images only, 'male' among real ones only; where both mean one group, rename it in one raw table"
    ]
