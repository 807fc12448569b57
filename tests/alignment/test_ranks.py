"""Two gloo processes align as one does: the same batch, the same validation, one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file

from evenhand.alignment import softening
from evenhand.alignment.exemplars import OWN_FILE
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.alignment.validation import Validation
from evenhand.core.artifacts import read_json
from evenhand.core.errors import UserError
from evenhand.models.classifiers import ClassifierSettings, train_classifier


def _align(settings: dict[str, Any]) -> None:
    """Every rank is to draw its part with the weights that are kept."""
    standing, checked = Validation.standing, Validation.checked

    def same(unet: torch.nn.Module, validation: Validation) -> None:
        size = torch.stack([parameter.detach().double().norm() for parameter in unet.parameters()]).sum()
        sizes = validation.drawing.accelerator.gather(size)
        assert sizes.min() == sizes.max(), sizes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softening, "IMAGES", 20)
        patch.setattr(Validation, "standing", lambda self, unet, sheet: (same(unet, self), standing(self, unet, sheet))[1])
        patch.setattr(Validation, "checked", lambda self, unet, *rest: (same(unet, self), checked(self, unet, *rest))[1])
        align(AlignSettings(**settings))


def assert_nearly_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Within a tenth of a step, but for one weight in ten thousand.

    Sums over ranks are ordered otherwise, and AdamW steps as far by a gradient of rounding errors as by any other.
    """
    off = torch.cat([(found[name] - weights).abs().flatten() for name, weights in wanted.items()])
    assert off.max() <= 2e-3 and (off > 1e-4).double().mean() <= 1e-4, (off.max(), (off > 1e-4).sum(), len(off))


@pytest.mark.parametrize("form", ["kl", "transport", "distill"])
def test_two_processes_align_as_one_does(form: str, tiny: Path, brain: Path, classifier_folder: Path, tmp_path: Path) -> None:
    second, judge = tmp_path / "second", tmp_path / "judge"
    for seed, path in enumerate((second, judge), start=1):
        train_classifier(ClassifierSettings(cohort=brain, target="sex", out=path, steps=20, batch_size=16, seed=seed))
    settings = AlignSettings(
        model=str(tiny), guide=[classifier_folder, second], target="sex=male:1,female:0", prompts=str(brain), out=tmp_path / "one",
        form=form, own_images=60 if form == "distill" else 0, anchor=1.0, anchor_cohort=brain,
        consistency=0 if form == "distill" else 1, solver_steps=3, batch_size=4, iterations=2, validate_every=1,
        validation_images=60, judge=[judge], check_images=60, learning_rate=1e-3, tolerance=1e-6,
    )  # fmt: skip
    if form == "distill":  # what an untrained model shows is one group alone
        probe = settings.model_copy(update={"out": tmp_path / "probe"})
        with pytest.raises(UserError, match="however its own"):
            align(probe)
        male = float(load_file(probe.out / OWN_FILE)["shown"][:, 0].mean())
        settings = settings.model_copy(update={"target": f"sex=male:{male:.4f},female:{1 - male:.4f}"})
    one = align(settings)
    both = settings.model_copy(update={"out": tmp_path / "two"})
    ended = processes.run_ranks(_align, both.model_dump(), log=tmp_path / "log")
    assert [end.code for end in ended] == [0, 0], "\n".join(end.output for end in ended)
    checkpoints = [folder / "checkpoints" / "step-00000002" / "averages.safetensors" for folder in (one.run, both.out)]
    first, second_ = (load_file(path) for path in checkpoints)
    assert_nearly_equal(second_, first)
    published = [load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (one.run, both.out)]
    assert_nearly_equal(published[1], published[0])
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]] for folder in (one.run, both.out)]
    for single, double in zip(*logs, strict=True):
        assert double["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-3)
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-3)
    alone, together = (read_json(folder / "model" / "evenhand.json") for folder in (one.run, both.out))
    for key in ("kept", "final_check"):
        assert together[key] == alone[key]
