"""Age groups: years, units, limits, ranges, codes of data sets that hide high ages; what is no age is named."""

import pytest
from cohorts.raw_data import write_nih

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError


@pytest.mark.parametrize(
    ("group", "written"),
    [
        ("<60", ("57", "57.0", "57.", "0", "057Y", "2,5", "59.99", "58 years")),
        ("<60", ("58y", "58 yrs", "58 yo", "58 y/o", "58-year-old", "58 Years Old")),
        (">=60", ("60", "060Y", "60.0", "91.4", "120", "60 years", "78-year-old", " 61 ")),
        ("<60", ("011M", "11 months", "5 weeks", "3000W", "12 hours", "1D")),
        ("<60", ("1 year 6 months", "1 year, 6 months", "59y 11m", "2-3 months")),
        (">=60", ("720 months", "730M", "22000 days", "60Y0M", "60y 1m")),
        (">=60", ("> 89", ">89", "90+", "90 +", ">=90", "≥ 60", ">=60", ">59", ">89 years")),
        (">=60", ("60 and over", "over 89", "89 or older", "60+ years")),
        ("<60", ("<60", "<1", "< 18", "<=59", "under 18", "younger than 40", "up to 59", "<5 weeks", "18 or younger")),
        ("<60", ("50-59", "[50-60)", "50–59", "0-1", "50 - 59 years", "(18, 40]", "[40, 60)", "18 to 39")),
        (">=60", ("60-69", "(60, 70]", "(59, 64]", "[60.0, 70.0)", "60 to 69", "60-69y")),
        ("unknown", ("50-60", "(50, 60]", "55-65", "[0, 100)", "<=60", "<70", ">50", ">=18", "18+", "0+")),
        (">=60", ("300", "300.0", "305", "311")),  # MIMIC-III's code for more than 89
        ("unknown", ("121", "148", "155Y", "299", "312", "411", "412Y", "999", "> 400", "", "nan", "-1", "unknown")),
    ],
)
def test_groups(group, written) -> None:
    assert {value: age_group(value) for value in written} == dict.fromkeys(written, group)


@pytest.mark.parametrize("value", ["adult", "fifty", "58 60", "58/60", "1e2", "-5", "Y", "<", "+", "59-50", "70-", "1950-03-12", "x" * 999])
def test_what_is_no_age(value) -> None:
    with pytest.raises(BadRow, match="is not a number of years") as error:
        age_group(value)
    assert len(str(error.value)) < 120


def test_ages_of_an_import(tmp_path) -> None:
    ages = ("90+", ">89", "50-59", "[60, 70)", "300", "411Y", "7 weeks", "64,5")
    rows = [f'{i:08d}_000.png,No Finding,0,{i},"{age}",M,PA,1,1,1,1,' for i, age in enumerate(ages)]
    raw = write_nih(tmp_path / "raw", rows)
    groups = [">=60", ">=60", "<60", ">=60", ">=60", "unknown", "<60", ">=60"]
    assert list(import_cohort("nih-cxr", raw, tmp_path / "out").table["age_group"]) == groups
    raw = write_nih(tmp_path / "bad", [*rows, "00000099_000.png,No Finding,0,99,adult,M,PA,1,1,1,1,"])
    with pytest.raises(UserError, match=r"Data_Entry_2017.csv row 10: age 'adult' is not a number of years"):
        import_cohort("nih-cxr", raw, tmp_path / "refused")
