"""Plans: the mix of a cohort, a file with its faults named, and what was not asked is unspecified."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed
from evenhand.generation.plan import Plan, plan_from_file, plan_like


@pytest.fixture(scope="module")
def cohort(brain: Path) -> Cohort:
    return Cohort.load(brain)


def test_a_plan_has_the_joint_mix_of_its_cohort(cohort: Cohort) -> None:
    names = ["sex", "age_group", "tumour"]
    plan = plan_like(cohort, 2 * len(cohort), prompt_attributes=None, seed=0)
    asked = Counter(plan.table[names].itertuples(index=False, name=None))
    there = Counter(cohort.table[names].itertuples(index=False, name=None))
    assert asked == {values: 2 * count for values, count in there.items()}
    assert plan.table["sample_id"].tolist() == list(range(240))
    assert plan.table["seed"].tolist() == [derive_seed(0, "image", i) for i in range(240)]
    row = plan.table.iloc[0]
    finding = "without tumour" if row["tumour"] == "none" else "with tumour"
    assert row["prompt"] == f"Brain MR slice of a {row['sex']} {row['age_group']} patient {finding}"


def test_what_the_prompts_do_not_state_is_unspecified(cohort: Cohort) -> None:
    plan = plan_like(cohort, 10, prompt_attributes=["age_group"], seed=0)
    assert set(plan.table["sex"]) == {"unspecified"}
    assert set(plan.table["age_group"]) == {"young", "old"} and "unspecified" not in set(plan.table["tumour"])
    assert not any("male" in prompt for prompt in plan.table["prompt"])
    silent = plan_like(cohort, 10, prompt_attributes=[], seed=0)
    assert set(silent.table["sex"]) == set(silent.table["age_group"]) == {"unspecified"}
    assert set(silent.table["prompt"]) == {"Brain MR slice of a patient with tumour", "Brain MR slice of a patient without tumour"}


def test_unknown_values_are_left_out_of_the_mix(cohort: Cohort) -> None:
    table = cohort.table.copy()
    table.loc[table["sex"] == "female", "sex"] = "unknown"
    plan = plan_like(Cohort(cohort.schema, table, cohort.root), 20, prompt_attributes=None, seed=0)
    assert set(plan.table["sex"]) == {"male"}
    males = int((table["sex"] == "male").sum())
    assert plan.notes == (f"the mix is that of {males} of 120 rows of {cohort.root}, which know all of sex, age_group, tumour",)


@pytest.mark.parametrize(("column", "value"), [("age_group", "unknown"), ("sex", "unspecified"), ("tumour", "unknown"), ("sex", None)])
def test_a_column_that_is_unknown_throughout_is_left_out_with_a_note(cohort: Cohort, column: str, value: str | None) -> None:
    plan = plan_like(Cohort(cohort.schema, cohort.table.assign(**{column: value}), cohort.root), 12, prompt_attributes=None, seed=0)
    assert set(plan.table[column]) == {"unspecified"} and len(plan.table) == 12
    assert plan.notes == (f"{column} is unknown in every row of {cohort.root}; prompts leave it out",)
    words = {"age_group": ("young", "old"), "sex": ("male",), "tumour": ("tumour",)}[column]
    assert not any(word in prompt for prompt in plan.table["prompt"] for word in words)


def test_no_row_that_knows_everything_is_an_error_with_a_remedy_of_this_command(cohort: Cohort) -> None:
    table = cohort.table.copy()
    table.loc[::2, "sex"], table.loc[1::2, "age_group"] = "unknown", "unknown"
    torn = Cohort(cohort.schema, table, cohort.root)
    with pytest.raises(UserError, match=r"no row knows all of sex, age_group, tumour; name fewer, for example --prompt-attributes \w+$"):
        plan_like(torn, 12, prompt_attributes=None, seed=0)
    assert set(plan_like(torn, 12, prompt_attributes=["sex"], seed=0).table["sex"]) == {"male", "female"}


CAPTIONS = [
    "CT of a 45-year-old woman with a renal mass",
    "Axial slice, no patient is named",
    "MRI of a 71-year-old man",
    "Lesion, male, left hand",
]


def _captioned(cohort: Cohort) -> Cohort:
    """Four rows with captions; the table knows more of each patient than its caption names."""
    ages = ["<60", "<60", ">=60", "unknown"]
    table = cohort.table.iloc[:4].assign(prompt=CAPTIONS, sex=["female"] * 2 + ["male"] * 2, age_group=ages, tumour=["tumour", "none"] * 2)
    groups = {"sex": ["female", "male", "other"], "age_group": ["<60", ">=60"]}
    return Cohort(cohort.schema.model_copy(update={"attributes": groups}), table, cohort.root)


def test_a_cohort_with_captions_is_drawn_from_with_its_captions(cohort: Cohort) -> None:
    plan = plan_like(_captioned(cohort), 4, prompt_attributes=None, seed=0)
    rows = plan.table.set_index("prompt")
    assert sorted(rows.index) == sorted(CAPTIONS)
    assert rows.loc[CAPTIONS, "sex"].tolist() == ["female", "unspecified", "male", "male"]  # nobody asked for a woman in the second
    assert rows.loc[CAPTIONS, "age_group"].tolist() == ["<60", "unspecified", ">=60", "unspecified"]
    assert rows.loc[CAPTIONS, "tumour"].tolist() == ["tumour", "none", "tumour", "none"]
    assert plan.table["seed"].tolist() == [derive_seed(0, "image", i) for i in range(4)]
    assert len(plan.notes) == 1 and "3 of 4 name their sex; 2 of 4 name their age_group" in plan.notes[0]
    few = plan_like(_captioned(cohort), 2, prompt_attributes=None, seed=0)
    assert few.table["prompt"].tolist() == plan.table["prompt"].tolist()[:2]
    many = Counter(plan_like(_captioned(cohort), 10, prompt_attributes=None, seed=0).table["prompt"])
    assert sorted(many.values()) == [2, 2, 3, 3]


def test_captions_drawn_do_not_depend_on_the_order_of_rows(cohort: Cohort) -> None:
    captioned = _captioned(cohort)
    turned = Cohort(captioned.schema, captioned.table.iloc[::-1].reset_index(drop=True), captioned.root)
    plans = [plan_like(one, 3, prompt_attributes=None, seed=5).table["prompt"].tolist() for one in (captioned, turned)]
    assert plans[0] == plans[1]


def test_template_prompts_of_a_cohort_with_captions_are_written_where_asked_for(cohort: Cohort) -> None:
    plan = plan_like(_captioned(cohort), 4, prompt_attributes=["sex"], seed=0)
    assert all(prompt.startswith("Brain MR slice of a ") for prompt in plan.table["prompt"])


def test_a_cohort_of_two_modalities_keeps_its_own_prompts(cohort: Cohort) -> None:
    schema = cohort.schema.model_copy(update={"modality": "mixed"})
    plan = plan_like(Cohort(schema, cohort.table.assign(modality="brain"), cohort.root), 120, prompt_attributes=None, seed=0)
    assert Counter(plan.table["prompt"]) == Counter(cohort.table["prompt"])
    assert Counter(plan.table["sex"]) == Counter(cohort.table["sex"])


def test_a_cohort_without_columns_is_asked_for_in_a_plain_prompt(cohort: Cohort) -> None:
    schema = cohort.schema.model_copy(update={"attributes": {}, "conditions": {}})
    table = cohort.table.assign(prompt="Brain MR slice of a patient")
    plan = plan_like(Cohort(schema, table, cohort.root), 3, prompt_attributes=None, seed=0)
    assert plan.table["prompt"].tolist() == ["Brain MR slice of a patient"] * 3 and not plan.notes


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.csv"
    path.write_text(text)
    return path


def _plan(path: Path, like: Cohort | None, attributes: list[str] | None = None) -> Plan:
    return plan_from_file(path, prompt_attributes=attributes, like=like, seed=0)


def test_a_file_of_groups(cohort: Cohort, tmp_path: Path) -> None:
    plan = _plan(_file(tmp_path, "n,sex,tumour\n2,female,tumour\n0,male,none\n 3 ,,none\n"), cohort)
    assert plan.table["sex"].tolist() == ["female"] * 2 + ["unspecified"] * 3
    assert plan.table["age_group"].tolist() == ["unspecified"] * 5
    head = "Brain MR slice of a"
    assert plan.table["prompt"].tolist() == [f"{head} female patient with tumour"] * 2 + [f"{head} patient without tumour"] * 3
    assert plan.modality == "brain" and plan.attributes == cohort.schema.attributes


def test_a_file_of_prompts_needs_no_cohort(cohort: Cohort, tmp_path: Path) -> None:
    path = _file(tmp_path, "n,prompt\n2,a scan\n1,another\n")
    plan = _plan(path, None)
    assert plan.table["prompt"].tolist() == ["a scan", "a scan", "another"] and plan.modality == "mixed"
    with_groups = _plan(_file(tmp_path, "n,prompt,sex\n1,a scan,male\n"), cohort, [])
    assert with_groups.table["sex"].tolist() == ["male"]  # the prompt is the user's own, and so is what it asks for


FAULTS = [
    ("sex\nmale\n", "{path}: no column 'n'; There is: sex"),
    ("n,sxe\n1,male\n", "{path}: unknown column 'sxe'; did you mean 'sex'? There is: n, prompt, sex, age_group, tumour"),
    ("n,sex\n1,male\n1,femal\n", "{path}: row 3: sex has no group 'femal'; did you mean 'female' or 'male'? There is: {sex}"),
    ("n,sex\nfew,male\n", "{path}: row 2: n is 'few'; write a whole number of images"),
    ("n,sex\n-1,male\n", "{path}: row 2: n is '-1'; write a whole number of images"),
    ("n,sex\n2.5,male\n", "{path}: row 2: n is '2.5'; write a whole number of images"),
    ("n,sex\n²,male\n", "{path}: row 2: n is '²'; write a whole number of images"),
    ("n,sex\n0,male\n", "the plan asks for no image; give --n, or counts above 0"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_are_named_with_their_row(text: str, message: str, cohort: Cohort, tmp_path: Path) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(UserError) as error:
        _plan(path, cohort)
    assert str(error.value) == message.format(path=path, sex=", ".join(cohort.schema.attributes["sex"]))


def test_files_that_are_none(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        _plan(tmp_path / "absent.csv", cohort)
    assert str(error.value) == f"{tmp_path}/absent.csv: no such file; --plan wants a table with a column n"
    for bad, why in ((_file(tmp_path, ""), "the file is empty; restore it"), (tmp_path, "not a file; name the table itself")):
        with pytest.raises(UserError, match=why):
            _plan(bad, cohort)
    with pytest.raises(UserError) as error:
        _plan(_file(tmp_path, "n,sex\n1,male\n"), None)
    assert str(error.value) == (
        f"{tmp_path}/plan.csv: no column 'prompt'; add it, or name the cohort whose templates write prompts with --like"
    )
    with pytest.raises(UserError, match="--prompt-attributes: no attribute 'sexe'; did you mean 'sex'"):
        _plan(_file(tmp_path, "n,sex\n1,male\n"), cohort, ["sexe"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bom.csv", "n,prompt\r\n2,skin lesion\r\n".encode("utf-8-sig")),
        ("utf16.csv", "n,prompt\n2,skin lesion\n".encode("utf-16")),
        ("semicolon.csv", b"n;prompt\n2;skin lesion\n"),
        ("blanks.csv", b"n, prompt\n 2, skin lesion \n"),
        ("tab.tsv", b"prompt\tn\nskin lesion\t2\n"),
        ("lines.jsonl", b'{"n": 2, "prompt": "skin lesion"}\n'),
    ],
)
def test_plans_that_people_write(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert _plan(tmp_path / name, None).table["prompt"].tolist() == ["skin lesion"] * 2


def test_a_row_of_a_plan_is_whole_or_refused(cohort: Cohort, tmp_path: Path) -> None:
    for text, fault in (
        ("prompt,n\nskin, female,2\nother,1\n", "row 2: 3 cells for 2 columns; quote cells that hold a comma"),
        ("n,prompt\n1,whole\n\n2\n", "row 4: 1 of 2 cells: no value in column 'prompt'; the row is cut short"),
        ('n,prompt\n1,"open\n2,other\n', "row 2: a quote is opened and not closed: '1,\"open'; close the quote, and double each quote "),
        ("n,prompt,prompt\n2,one,two\n", "column 'prompt' stands twice in the header (columns 2 and 3); rename or remove one of the two"),
    ):
        path = _file(tmp_path, text)
        with pytest.raises(UserError) as error:
            _plan(path, None)
        assert str(error.value).startswith(f"{path}: {fault}")


def test_a_blank_line_does_not_move_the_row_that_is_named(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 5: sex has no group 'femal'"):
        _plan(_file(tmp_path, "n,sex\n1,male\n\n,\n1,femal\n"), cohort)


def test_the_encoding_of_a_plan_is_said(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.csv").write_bytes("n,prompt\n1,Röntgenbild\n".encode("cp1252"))
    assert _plan(tmp_path / "plan.csv", None).table["prompt"].tolist() == ["Röntgenbild"]
    assert "plan.csv: not UTF-8, read as cp1252; where letters are wrong, save it as UTF-8" in " ".join(capsys.readouterr().err.split())


def test_cells_of_a_plan_mean_what_they_mean_in_any_table(cohort: Cohort, tmp_path: Path) -> None:
    table = _plan(_file(tmp_path, "n,sex\n1.0,MALE\n2,Female \n1,N/A\n1,unknown\n1,\n"), cohort).table
    assert table["sex"].tolist() == ["male", "female", "female", *["unspecified"] * 3]
    with pytest.raises(UserError) as error:
        _plan(_file(tmp_path, "n,prompt\n1,skin\n1,nan\n"), None)
    assert str(error.value) == (
        f"{tmp_path}/plan.csv: row 3: prompt 'nan' says that there is none; write the prompt, or empty the cell"
    )
