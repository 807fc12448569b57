"""A synthetic cohort: resumed after a kill it is the one that was not, and what it is made of stands in it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pytest
from full_disk import fail_at_every_write

from evenhand.cohorts.checking import check_cohort
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import claim, sha256_file
from evenhand.core.errors import UserError
from evenhand.generation import generate as module
from evenhand.generation.generate import GenerateSettings, generate


def settings_for(model: Path, like: Path, out: Path, **changes: Any) -> GenerateSettings:
    """Ten images in batches of four."""
    return GenerateSettings(**{"model": str(model), "like": like, "out": out, "n": 10, "steps": 2, "batch_size": 4, **changes})


@pytest.fixture(scope="module")
def reference(tiny: Path, brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return generate(settings_for(tiny, brain, tmp_path_factory.mktemp("generated") / "reference"))


def _hashes(cohort: Cohort) -> dict[str, str]:
    return {name: sha256_file(cohort.image_path(name)) for name in cohort.table["image"]}


def test_it_is_a_cohort_and_says_how_it_was_made(reference: Cohort, tiny: Path, brain: Path) -> None:
    table, schema = reference.table, reference.schema
    assert check_cohort(reference.root).faults == []
    assert schema.synthetic and (schema.image_size, schema.image_mode, schema.modality) == (32, "L", "brain")
    assert schema.attributes == Cohort.load(brain).schema.attributes
    assert table["image"].tolist() == [f"images/{i:07d}.png" for i in range(10)]
    assert table["subject_id"].is_unique and set(table["split"]) == {"test"}
    assert table["sha256"].to_dict() == dict(enumerate(_hashes(reference).values()))
    assert set(table["guidance_scale"]) == {3.0} and set(table["steps"]) == {2}
    assert set(table["model"]) == {schema.made["model_sha256"]}
    assert schema.made["settings"]["seed"] == 0 and "torch" in schema.made["versions"]
    assert schema.made["model_provenance"]["settings"]["cohort"] == str(brain)
    images = reference.pixels()
    assert images.shape == (10, 32, 32) and len(np.unique(images.reshape(10, -1), axis=0)) == 10


def test_an_image_depends_on_its_seed_and_prompt_alone(reference: Cohort, tiny: Path, brain: Path, tmp_path: Path) -> None:
    other = generate(settings_for(tiny, brain, tmp_path / "other", seed=1, n=4))
    assert not set(_hashes(other).values()) & set(_hashes(reference).values())
    one_by_one = generate(settings_for(tiny, brain, tmp_path / "single", n=10, batch_size=1))
    assert np.abs(one_by_one.pixels() - reference.pixels()).max() <= 2 / 255  # sums in another order


def _generate_until_killed(settings: dict[str, Any], images: int) -> None:
    """Generate and die by SIGKILL in the middle of writing, when ``images`` are written and half of another."""
    write, written = module.write_bytes, []

    def counted(path: Path, data: bytes) -> None:
        if len(written) == images:
            path.with_name(f".{path.name}.0.tmp").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write(path, data)

    module.write_bytes = counted
    generate(GenerateSettings(**settings))


def test_kill_9_then_resume_equals_the_uninterrupted_generation(
    reference: Cohort, tiny: Path, brain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tiny, brain, tmp_path / "out")
    ended = processes.run(_generate_until_killed, settings.model_dump(), 6, log=tmp_path / "log")
    assert ended.code == -signal.SIGKILL
    assert not (settings.out / "cohort.json").exists()
    assert len(list((settings.out / "images").glob("*.png"))) == 6
    drawn = []
    draw = module._draw
    monkeypatch.setattr(module, "_draw", lambda sampling, plan, rows: drawn.append(rows.tolist()) or draw(sampling, plan, rows))
    resumed = generate(settings.model_copy(update={"resume": True}))
    assert drawn == [[4, 5, 6, 7], [8, 9]]  # the first batch was whole
    assert _hashes(resumed) == _hashes(reference)
    pd.testing.assert_frame_equal(resumed.table, reference.table)
    files = sorted(path.name for path in (settings.out / "images").iterdir())
    assert files == [Path(name).name for name in reference.table["image"]]  # no duplicate, no gap, nothing half
    drawn.clear()
    generate(settings.model_copy(update={"resume": True}))
    assert drawn == []


def _message(settings: GenerateSettings) -> str:
    with pytest.raises(UserError) as error:
        generate(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_generation_in_the_same_folder_is_refused(reference: Cohort, tiny: Path, brain: Path) -> None:
    out = reference.root
    settings = settings_for(tiny, brain, out, resume=True)
    assert _message(settings_for(tiny, brain, out)) == f"{out}: holds a generation already; go on with --resume, or choose another --out"
    for key, value, before in (("n", 11, 10), ("steps", 3, 2), ("seed", 1, 0), ("batch_size", 5, 4), ("guidance_scale", 1.5, 3.0)):
        assert _message(settings.model_copy(update={key: value})) == (
            f"{out}: --resume with {key} = {value!r}, but it began with {before!r}; choose another --out"
        )


def test_another_model_or_cohort_is_refused(reference: Cohort, tiny: Path, brain: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny, tmp_path / "model")
    same = settings_for(tmp_path / "model", brain, reference.root, resume=True)
    generate(same)  # under another path it is still the same model
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert _message(same) == f"{reference.root}: the model has changed since this generation began; choose another --out"
    cohort = Cohort.load(brain)
    cohort.subset(cohort.table["sex"] == "male").save(tmp_path / "men")
    assert _message(settings_for(tiny, tmp_path / "men", reference.root, resume=True)) == (
        f"{reference.root}: the plan has changed since this generation began; choose another --out"
    )


def test_a_folder_in_use_or_not_ours_is_refused(tiny: Path, brain: Path, tmp_path: Path) -> None:
    with claim(tmp_path / "held"):
        assert _message(settings_for(tiny, brain, tmp_path / "held")) == (
            f"{tmp_path / 'held'}: in use by process {os.getpid()}; wait for it or choose another output folder"
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert _message(settings_for(tiny, brain, tmp_path / "mine")) == f"{tmp_path / 'mine'}: not empty; choose another --out"
    assert _message(GenerateSettings(model=str(tiny), out=tmp_path / "out")) == (
        "nothing says what to generate; give --like COHORT or --plan FILE"
    )


def test_prompts_over_the_limit_are_counted(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plan = tmp_path / "plan.csv"
    plan.write_text("n,prompt\n2,Brain MR slice of a patient\n3," + "Brain MR slice of a patient " * 20 + "\n")
    cohort = generate(GenerateSettings(model=str(tiny), plan=plan, out=tmp_path / "out", steps=1, sampler="model", guidance_scale=1))
    assert len(cohort) == 5
    error = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 prompts (3 images) exceed the tokenizer's 16 tokens; their end is cut" in error


def test_on_a_full_disk_nothing_half_is_left_and_it_goes_on(reference: Cohort, tiny: Path, brain: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny, brain, tmp_path / "out", resume=True)
    whole = _hashes(reference)

    def look() -> None:
        for file in (settings.out / "images").glob("*.png") if settings.out.exists() else []:
            assert sha256_file(file) == whole[f"images/{file.name}"]
        for name in ("cohort.parquet", "cohort.json", ".generation.json"):
            if (settings.out / name).exists() and name.endswith("json"):
                json.loads((settings.out / name).read_text())
        assert not (settings.out / "cohort.json").exists()

    writes = fail_at_every_write(settings.out, lambda: generate(settings), look)
    assert writes >= 3  # the last try found its images there, and wrote the table and the schema
    assert _hashes(Cohort.load(settings.out)) == whole
