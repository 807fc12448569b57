"""Settings: command line over YAML over default, and one line for every mistake."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from evenhand.core.config import WORD, Settings
from evenhand.core.errors import UserError


class Trial(Settings):
    cohort: str
    steps: int = Field(default=10, ge=1)
    learning_rate: float = 1e-3
    sampling: Literal["natural", "balanced"] = "natural"
    names: list[str] | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_command_line_over_yaml_over_default(tmp_path) -> None:
    config = write(tmp_path, "cohort: a\nsteps: 20\nlearning-rate: 0.5\n")
    settings = Trial.resolve(config, steps=30, sampling=None)
    assert settings == Trial(cohort="a", steps=30, learning_rate=0.5, sampling="natural")


def test_saved_settings_resolve_to_themselves(tmp_path) -> None:
    settings = Trial(cohort="a", steps=7, names=["sex"])
    settings.save(tmp_path / "saved.yaml")
    assert Trial.resolve(tmp_path / "saved.yaml") == settings


NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("cohort: a\nstep: 3\n", {}, "{file}: unknown setting 'step'; did you mean 'steps'? There is: {fields}"),
        ("cohort: a\n", {"stepps": 3}, "--stepps: unknown setting 'stepps'; did you mean 'steps'? There is: {fields}"),
        ("steps: 3\n", {}, "setting 'cohort' is missing; give --cohort or put it into --config"),
        ("cohort: a\nsteps: many\n", {}, f"{{file}}: steps: {NO_INTEGER} (got 'many')"),
        ("cohort: a\n", {"steps": 0}, "--steps: Input should be greater than or equal to 1 (got 0)"),
        ("cohort: a\n", {"sampling": "even"}, "--sampling: Input should be 'natural' or 'balanced' (got 'even')"),
        ("- a\n- b\n", {}, "{file}: a list or a single value; --config wants lines of the form 'key: value'"),
        ("a", {}, "{file}: a list or a single value; --config wants lines of the form 'key: value'"),
    ],
)
def test_mistakes(tmp_path, text, given, message) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        Trial.resolve(file, **given)
    assert str(error.value) == message.format(file=file, fields="cohort, steps, learning_rate, sampling, names")


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        Trial.resolve(tmp_path / "no.yaml")
    assert str(error.value) == f"{tmp_path / 'no.yaml'}: no such file; --config wants a YAML file"
    with pytest.raises(UserError, match=r"config.yaml: not valid YAML \(.*\); mend the file"):
        Trial.resolve(write(tmp_path, "a: [1\n"))
    with pytest.raises(UserError, match="setting 'cohort' is missing"):
        Trial.resolve(write(tmp_path, ""))


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_windows_editors(tmp_path, codec) -> None:
    (tmp_path / "config.yaml").write_bytes("cohort: Röntgen\r\nsteps: 3\r\n".encode(codec))
    assert Trial.resolve(tmp_path / "config.yaml") == Trial(cohort="Röntgen", steps=3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("cohort: Röntgen\n".encode("cp1252"), "not readable text (invalid start byte at position 9); save it as UTF-8"),
        (b"cohort: a\nsteps: 3\nsteps: 4\n", "not valid YAML (key 'steps' stands twice, line 3); mend the file"),
        (b"cohort: a\n\tsteps: 3\n", "not valid YAML (found character '\\t' that cannot start any token, line 2); mend the file"),
        (b"cohort: 2020-13-01\n", "not valid YAML (month must be in 1..12); mend the file"),
        (b"\x00\x01", "not readable text (special characters are not allowed at position 0); save it as UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(tmp_path, data, said) -> None:
    (tmp_path / "config.yaml").write_bytes(data)
    with pytest.raises(UserError) as error:
        Trial.resolve(tmp_path / "config.yaml")
    assert str(error.value) == f"{tmp_path / 'config.yaml'}: {said}"
    with pytest.raises(UserError, match="cannot be read"):
        Trial.resolve(tmp_path)


def test_yaml_makes_no_objects(tmp_path) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        Trial.resolve(write(tmp_path, f"cohort: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("word", ["no", "No", "NO", "false", "'no'", "off", "OFF"])
def test_precision_no_is_a_word(tmp_path, word) -> None:
    class Computing(Settings):
        """A choice by words, a switch, and a name."""

        precision: Annotated[Literal["auto", "no", "bf16"], WORD] = "auto"
        switch: bool = True
        name: str = ""

    found = Computing.resolve(write(tmp_path, f"precision: {word}\nswitch: off\nname: yes\n"))
    assert (found.precision, found.switch, found.name) == ("no", False, "yes")
    found.save(tmp_path / "again.yaml")
    assert Computing.resolve(tmp_path / "again.yaml") == found
    assert Computing(precision=False).precision == "no"  # type: ignore[arg-type]
