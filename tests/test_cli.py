"""The command line: exit codes, one-line errors, options over YAML over defaults, help without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evenhand import cli
from evenhand.training.weighting import METHODS

HELP = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from evenhand.cli import app

def leaves(command, path=()):
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    yield path, command

for path, command in leaves(get_command(app)):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "500"})
    assert result.exit_code == 0, (path, result.output)
    for option in command.params:  # square brackets are markup to some: what stands in them must be seen
        words = getattr(option, "help", None) or ""
        assert "[default" not in words or words in result.output, (path, words)
    print(" ".join(path))
loaded = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "diffusers", "transformers", "accelerate", "sklearn"})
assert not loaded, loaded
"""


def test_help_of_every_command_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    promised = {"train", "generate", "audit", "semantic", "report", "doctor", "quickstart", "model init", "classifier train"}
    assert promised | {f"cohort {verb}" for verb in ("import", "phantom", "check", "merge")} <= set(done.stdout.splitlines())


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVENHAND_DEBUG", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(name, "")  # so that what the command line sets is undone
        monkeypatch.delenv(name)


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["evenhand", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    code = end.value.code
    assert code is None or isinstance(code, int)
    return code or 0, captured.out, captured.err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    code, _, error = _run(monkeypatch, capsys, "cohort", "phantom", "brain", tmp_path / "a", "--n", 8)
    assert code == 0 and "female" in error
    code, out, error = _run(monkeypatch, capsys, "cohort", "phantom", "brian", tmp_path / "b", "--n", 8)
    assert (code, out) == (1, "")
    assert error == "error: phantom: unknown modality 'brian'; did you mean 'brain'? There is: brain, chest, dermoscopy, fundus\n"
    code, _, error = _run(monkeypatch, capsys, "cohort", "phantom", "brain", tmp_path / "c", "--n", "many")
    assert code == 2 and "Usage" in error
    code, _, error = _run(monkeypatch, capsys, "train", "--no-such-option")
    assert code == 2 and "No such option" in error
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    from evenhand.core.errors import UserError

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENHAND_DEBUG", "")
        patch.setattr(sys, "argv", ["evenhand", "--debug", "cohort", "check", str(tmp_path)])
        with pytest.raises(UserError, match="1 faults"):
            cli.main()
        assert os.environ["EVENHAND_DEBUG"] == "1"


def test_misspelt_names_are_answered_with_near_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, brain: Path, tmp_path: Path
) -> None:
    common = ["--model", "m", "--cohort", brain, "--out", tmp_path / "out"]
    for arguments, message in (
        (
            ["train", *common, "--method", "unifrom"],
            f"--method: unknown method; did you mean 'uniform'? There is: {', '.join(['auto', *METHODS])} (got 'unifrom')",
        ),
        (
            ["model", "init", "tiny-latnet", tmp_path / "out", "--cohort", brain],
            "model init: unknown family 'tiny-latnet'; did you mean 'tiny-latent' or 'tiny-imagen'? There is: tiny-latent, tiny-imagen",
        ),
        (
            ["classifier", "train", "--cohort", brain, "--target", "sex", "--out", tmp_path / "out", "--arch", "vitt"],
            "--arch: unknown architecture 'vitt'; did you mean 'vit'? There is: resnet, vit, efficientnet",
        ),
        (
            ["classifier", "train", "--cohort", brain, "--target", "tumor", "--out", tmp_path / "out"],
            f"{brain}: no attribute or condition 'tumor'; did you mean 'tumour'? There is: sex, age_group, tumour",
        ),
        (
            ["generate", "--model", "m", "--out", tmp_path / "out", "--like", brain, "--prompt-attributes", "agegroup"],
            "--prompt-attributes: no attribute 'agegroup'; did you mean 'age_group'? There is: sex, age_group; or 'none' to state none",
        ),
    ):
        code, out, error = _run(monkeypatch, capsys, *arguments)
        assert (code, out, error) == (1, "", f"error: {message}\n")
        assert not (tmp_path / "out").exists()


def test_an_option_comes_before_yaml_and_yaml_before_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny: Path, brain: Path, tmp_path: Path
) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(f"model: {tiny}\ncohort: {brain}\nsteps: 9\nbatch-size: 4\nlog_every: 1\nattributes: [sex]\n")
    code, out, error = _run(monkeypatch, capsys, "train", "--config", config, "--out", tmp_path / "run", "--steps", 1)
    assert code == 0, error
    assert out == f"{tmp_path / 'run' / 'model'}\n"
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (resolved["steps"], resolved["batch_size"], resolved["learning_rate"]) == (1, 4, 1e-3)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1
    assert set(json.loads((tmp_path / "run" / "log.jsonl").read_text())["loss_by_group"]) == {"sex"}


def test_faults_of_the_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, brain: Path, tmp_path: Path
) -> None:
    config = tmp_path / "train.yaml"
    common = ["train", "--config", config, "--model", "m", "--cohort", brain, "--out", tmp_path / "run"]
    for text, expected in (
        ("stepz: 9\n", f"{config}: unknown setting 'stepz'; did you mean 'steps'"),
        ("steps: soon\n", f"{config}: steps: Input should be a valid integer, unable to parse string as an integer (got 'soon')"),
        ("steps: 0\n", f"{config}: steps: Input should be greater than or equal to 1 (got 0)"),
        ("- a\n", f"{config}: a list or a single value; --config wants lines of the form 'key: value'"),
        ("a: [\n", f"{config}: not valid YAML ("),
    ):
        config.write_text(text)
        code, out, error = _run(monkeypatch, capsys, *common)
        assert (code, out) == (1, "") and error.startswith(f"error: {expected}") and error.count("\n") == 1
    code, _, error = _run(monkeypatch, capsys, "train", "--model", "m", "--cohort", brain)
    assert (code, error) == (1, "error: setting 'out' is missing; give --out or put it into --config\n")
    code, _, error = _run(monkeypatch, capsys, "train", "--config", tmp_path / "absent.yaml")
    assert (code, error) == (1, f"error: {tmp_path}/absent.yaml: no such file; --config wants a YAML file\n")


def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny: Path, brain: Path, tmp_path: Path
) -> None:
    from full_disk import full_disk

    arguments = ["train", "--model", tiny, "--cohort", brain, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 4]
    with full_disk(tmp_path / "run" / "checkpoints", 1):  # the lock, then safetensors: its error is none of the system's
        code, _, error = _run(monkeypatch, capsys, *arguments)
    last = error.splitlines()[-1]
    assert code == 1 and last == (
        "error: no space left on the disk (while writing); free some, then run again (with --resume where there is one)"
    )
    with full_disk(tmp_path / "other", 0):
        code, _, error = _run(monkeypatch, capsys, *[tmp_path / "other" if part == tmp_path / "run" else part for part in arguments])
    assert code == 1 and error.splitlines()[-1].startswith(f"error: no space left on the disk ({tmp_path}/other/.lock); free some")


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("evenhand.cohorts.checking.check_cohort", broken)
    monkeypatch.setattr(sys, "argv", ["evenhand", "cohort", "check", str(tmp_path)])
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main()


def test_generate_and_classifier_speak_of_what_they_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny: Path, brain: Path, tmp_path: Path
) -> None:
    code, _, error = _run(
        monkeypatch, capsys, "generate", "--model", tiny, "--like", brain, "--n", 4, "--steps", 1, "--out", tmp_path / "g",
        "--prompt-attributes", "none",
    )  # fmt: skip
    assert code == 0 and "unspecified" in error
    monkeypatch.setenv("RANK", "1")  # one process speaks for all
    code, _, error = _run(
        monkeypatch, capsys, "generate", "--model", tiny, "--like", brain, "--n", 4, "--steps", 1, "--out", tmp_path / "g",
        "--prompt-attributes", "none", "--resume",
    )  # fmt: skip
    assert code == 0 and "unspecified" not in error
    monkeypatch.delenv("RANK")
    config = tmp_path / "classifier.yaml"
    config.write_text("steps: 1\nbatch_size: 4\n")
    code, out, _ = _run(
        monkeypatch, capsys, "classifier", "train", "--config", config, "--cohort", brain, "--target", "sex", "--out", tmp_path / "clf"
    )
    assert code == 0 and out.startswith(f"{tmp_path / 'clf'}: AUC ") and out.endswith(" held-out images\n")


def test_columns_with_signs_in_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    from cohorts.raw_data import write_table

    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "Race, detailed": race, "mass/size": "a"} for i, race in enumerate("xy")])
    common = ["cohort", "import", "table", raw]
    columns = ["--attributes", '"Race, detailed"', "--conditions", "mass/size"]
    code, _, _ = _run(monkeypatch, capsys, *common, tmp_path / "out", *columns)
    assert code == 0
    schema = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert (schema["attributes"], schema["conditions"]) == ({"Race, detailed": ["x", "y"]}, {"mass/size": ["a"]})
    code, _, error = _run(monkeypatch, capsys, *common, tmp_path / "again", "--attributes", '"Race')
    assert code == 1
    assert "error: '\"Race': no closing quote in \"Race; write for example 'sex,\"Race, detailed\"'" in error
