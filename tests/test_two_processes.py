"""Two gloo processes on the CPU do what one does: the same images, features and batches, and equal weights on both."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from training.runs import last_checkpoint, settings_for, watched

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import sha256_file
from evenhand.engine.devices import processes as processes_of_this_work
from evenhand.engine.features import cohort_features
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.encoders import Encoder
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings


def _all_work(generation: dict[str, Any], training: dict[str, Any], encoder: str, notes: str) -> None:
    """One rank's part: features, images, training; what is to be compared goes into files."""
    from safetensors.torch import save_file

    from evenhand.training import loop

    rank, rows, out = processes_of_this_work().process_index, {}, Path(notes)
    assert processes_of_this_work().num_processes == 2
    cohort = Cohort.load(training["cohort"])
    np.save(out / f"features-{rank}.npy", cohort_features(Encoder.load(encoder), cohort, batch_size=16))
    np.save(out / f"again-{rank}.npy", cohort_features(Encoder.load(encoder), cohort, batch_size=16))
    generate(GenerateSettings(**generation))
    publish = loop.publish

    def noted(settings, state, data, accelerator):  # type: ignore[no-untyped-def]
        weights = {name: value.contiguous().clone() for name, value in state.learner.denoiser.state_dict().items()}
        save_file(weights, out / f"weights-{rank}.safetensors")
        return publish(settings, state, data, accelerator)

    loop.publish = noted
    with watched(rows):
        train(TrainSettings(**{**training, "steps": 2}))
        train(TrainSettings(**{**training, "resume": True}))
    (out / f"rows-{rank}").write_text(repr(rows))


@pytest.fixture(scope="module")
def alone(tiny: Path, brain: Path, classifier_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process does."""
    out, rows = tmp_path_factory.mktemp("alone"), {}
    cohort = generate(GenerateSettings(model=str(tiny), like=brain, out=out / "images", n=10, steps=2, batch_size=3))
    with watched(rows):
        train(settings_for(tiny, brain, out / "run", steps=3))
    return {"images": cohort, "rows": rows, "run": out / "run"}


def test_two_processes_do_what_one_does(
    alone: dict[str, Any], tiny: Path, brain: Path, classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    generation = GenerateSettings(model=str(tiny), like=brain, out=tmp_path / "images", n=10, steps=2, batch_size=3)
    training = settings_for(tiny, brain, tmp_path / "run", steps=3)
    ended = processes.run_ranks(
        _all_work, generation.model_dump(), training.model_dump(), str(classifier_folder), str(tmp_path), log=tmp_path / "log"
    )
    assert [end.code for end in ended] == [0, 0], "\n".join(end.output for end in ended)

    images = Cohort.load(tmp_path / "images")
    assert images.table.equals(alone["images"].table)
    for name in images.table["image"]:
        assert sha256_file(images.image_path(name)) == sha256_file(alone["images"].image_path(name))

    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache-of-one"))
    expected = cohort_features(Encoder.load(classifier_folder), Cohort.load(brain), batch_size=16)
    for kind in ("features", "again"):
        for rank in (0, 1):
            np.testing.assert_array_equal(np.load(tmp_path / f"{kind}-{rank}.npy"), expected)

    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].isfinite().all() for name in a)
    rows = [ast.literal_eval((tmp_path / f"rows-{rank}").read_text()) for rank in (0, 1)]
    assert {step: rows[0][step] + rows[1][step] for step in rows[0]} == alone["rows"]
    one, two = last_checkpoint(alone["run"]), last_checkpoint(tmp_path / "run")
    assert one.tensors["model"].keys() == two.tensors["model"].keys()
    for name, tensor in one.tensors["model"].items():  # Adam's first steps are near the sign of the gradient, whatever its size
        assert (tensor - two.tensors["model"][name]).abs().max() < 3 * 2e-3
    means = [float(torch.cat([t.flatten() for t in point.tensors["model"].values()]).abs().mean()) for point in (one, two)]
    assert means[0] == pytest.approx(means[1], rel=1e-3)
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()
