"""The loop: it moves what is drawn, resumes to the bit, and refuses what it cannot do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from evenhand.alignment import tune, validation
from evenhand.alignment.checking import FinalCheck, images_needed, judges_leave_open
from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.correction import Correction, Rows
from evenhand.alignment.defaults import resolved
from evenhand.alignment.drawing import stating
from evenhand.alignment.exemplars import OWN_FILE, Exemplars
from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.state import AlignState
from evenhand.alignment.tune import align
from evenhand.alignment.validation import Standing, Validation
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import read_json, write_json
from evenhand.core.errors import UserError
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import CALIBRATION_FILE, Classifier, ClassifierSettings, train_classifier
from evenhand.models.sampling import Sampling

TARGET = "sex=male:0.5,female:0.5"


@pytest.fixture(scope="module")
def guides(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers of sex that a few steps have not made sure of themselves."""
    folder = tmp_path_factory.mktemp("guides")
    paths = [folder / "first", folder / "second"]
    for seed, path in enumerate(paths):
        train_classifier(ClassifierSettings(cohort=brain, target="sex", out=path, steps=25, batch_size=16, seed=seed))
        facts = read_json(path / CALIBRATION_FILE)
        write_json(path / CALIBRATION_FILE, {**facts, "auc": max(0.9, facts["auc"]), "temperature": 4.0})
    return paths


@pytest.fixture(scope="module")
def judge(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third classifier of sex."""
    path = tmp_path_factory.mktemp("judge") / "sex"
    train_classifier(ClassifierSettings(cohort=brain, target="sex", out=path, steps=25, batch_size=16, seed=2))
    facts = read_json(path / CALIBRATION_FILE)
    write_json(path / CALIBRATION_FILE, {**facts, "auc": max(0.9, facts["auc"])})
    return path


@pytest.fixture(scope="module")
def silent(brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts that state no sex."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("A brain MR slice with a tumour.\n\nA brain MR slice without a tumour.\n")
    return path


@pytest.fixture
def settings(tiny: Path, guides: list[Path], silent: Path, tmp_path: Path) -> Any:
    """Few small iterations, with changes."""

    def make(out: str = "run", **changes: Any) -> AlignSettings:
        base: dict[str, Any] = {
            "model": str(tiny), "guide": guides, "target": TARGET, "prompts": str(silent), "out": tmp_path / out, "solver_steps": 3,
            "guidance_scale": 1.0,  # half the evaluations
            "form": "kl", "batch_size": 4, "iterations": 6, "validate_every": 2, "validation_images": 20,
            "checkpoint_every": 2, "learning_rate": 1e-3, "tolerance": 1e-6,
        }  # fmt: skip
        return AlignSettings(**{**base, **changes})

    return make


def log(out: Path) -> list[dict[str, Any]]:
    """What iterations left; the first line is of where the model stood before."""
    first, *rest = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert first["iteration"] == 0 and first["validation"]["distance"] >= 0
    return rest


@pytest.mark.parametrize(("form", "path"), [("kl", "adjusted"), ("transport", "adjusted"), ("kl", "truncated"), ("kl", "full")])
def test_the_batch_moves_towards_the_target(settings: Any, form: str, path: str) -> None:
    """Whichever group the untrained model's images resemble, the other one is asked for."""
    start = settings(form=form, path=path, consistency=0, damping=0, iterations=10, batch_size=8, validate_every=10)
    before = align(start.model_copy(update={"iterations": 1, "out": start.out.with_name("before")}))
    shown = log(before.run)[0]["batch"]
    rarer = min(shown, key=lambda group: shown[group])
    mix = "sex=" + ",".join(f"{group}:{int(group == rarer)}" for group in shown)
    result = align(start.model_copy(update={"target": mix}))
    found = [line["batch"][rarer] for line in log(result.run)]
    assert sum(found[-3:]) > sum(found[:3])
    assert result.iterations == 10 and result.model is not None


def test_transport_moves_images_of_which_guides_are_certain(settings: Any, guides: list[Path], tmp_path: Path) -> None:
    """Their probabilities of the other group are 0 to float32; the cross-entropy to it has a gradient all the same."""
    certain = [changed(guide, tmp_path / f"certain-{place}", temperature=1e-4) for place, guide in enumerate(guides)]
    align(settings(form="transport", consistency=0, guide=certain, target="sex=male:0.99,female:0.01", out="male", iterations=1))
    align(settings(form="transport", consistency=0, guide=certain, target="sex=male:0.01,female:0.99", out="female", iterations=1))
    pulled = [log(tmp_path / name)[0] for name in ("male", "female")]
    assert sorted(pulled[0]["batch"].values()) == [0, 1]  # all of them certain of one group, and so they should be of the other
    assert max(line["gradient_norm"] for line in pulled) > 0 and np.isfinite([line["loss"] for line in pulled]).all()


@pytest.mark.parametrize("form", ["kl", "distill"])
def test_a_run_that_is_stopped_goes_on_to_the_bit(form: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {} if form == "kl" else {**DISTILL, "target": within_reach(settings)}
    whole = align(settings("whole", **changes))
    count = AlignState.count

    def killed(state: AlignState, finite: bool) -> None:
        count(state, finite)
        if state.iteration == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AlignState, "count", killed)
        align(settings("parts", **changes))
    parts = align(settings("parts", **changes, resume=True))
    assert (parts.kept, parts.scale, parts.distance) == (whole.kept, whole.scale, whole.distance)
    first, second = (load_file(result.model / "unet" / "diffusion_pytorch_model.safetensors") for result in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log(whole.run) == log(parts.run)


def test_the_best_weights_are_kept_and_checked_by_a_judge_on_other_seeds(settings: Any, judge: Path) -> None:
    result = align(settings(judge=[judge], check_images=30))
    seen = [line["validation"] for line in log(result.run) if "validation" in line]
    assert result.distance <= min(one["distance"] for one in seen) and result.kept in (0, 2, 4, 6)
    facts = read_json(result.model / "evenhand.json")
    assert facts["kept"]["iteration"] == result.kept and facts["final_check"] == result.check and result.check["images"] == 30
    assert sum(result.check["shares"].values()) == pytest.approx(1) and not result.reached  # a tolerance of 1e-6 is not shown by any number
    for group, (low, high) in result.check["intervals"].items():
        share = result.check["shares"][group]
        assert low <= share <= high and f"{group} {share:.3f} [{low:.3f}" in result.verdict and result.verdict.startswith("not reached, by")
    assert [guide["role"] for guide in facts["guides"]] == ["guide", "held-out guide"]
    assert len({guide["sha256"] for guide in facts["guides"]}) == 2
    assert len(list((result.run / "sheets").glob("*.png"))) == 4


def test_within_tolerance_twice_it_ends(settings: Any) -> None:
    result = align(settings(tolerance=1.0, iterations=20))
    assert result.iterations == 2 and len(log(result.run)) == 2 and not result.shortfall
    assert not result.reached and result.verdict.startswith("not checked: no judge was given")


def test_an_aligned_lora_loads_in_plain_diffusers(settings: Any, tiny: Path) -> None:
    result = align(settings(lora=2, iterations=2))
    merged = DiffusionPipeline.from_pretrained(result.model, use_safetensors=True)
    plain = DiffusionPipeline.from_pretrained(tiny, use_safetensors=True, safety_checker=None)
    plain.load_lora_weights(result.run / "lora")
    plain.fuse_lora()
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    fused = {key.replace(".base_layer", ""): value for key, value in plain.unet.state_dict().items()}
    torch.testing.assert_close(fused[name], merged.unet.state_dict()[name])


def test_real_images_hold_it_by_a_gradient_of_stated_norm(settings: Any, brain: Path) -> None:
    free, held = align(settings("free", iterations=1)), align(settings("held", iterations=1, anchor=1.0, anchor_cohort=brain))
    weights = [load_file(run.run / "checkpoints" / "step-00000001" / "model.safetensors") for run in (free, held)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not log(free.run)[0].get("anchor_norm") and log(held.run)[0]["anchor_norm"] > 0
    target = align(settings("cohort", iterations=1, anchor=1.0, target=str(brain)))
    shares = Cohort.load(brain).table["sex"].value_counts(normalize=True)
    assert read_json(target.model / "evenhand.json")["target"] == pytest.approx(shares.to_dict())


def test_an_anchor_pulls_with_its_strength_times_the_gradients_norm() -> None:
    """Norms 5 and 2, half as strong: the anchor's is brought to 2.5."""
    gradients, held = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], [torch.tensor([0.0, 2.0]), torch.tensor([[0.0]])]
    found = tune.anchored(gradients, held, 0.5)
    torch.testing.assert_close(found, [torch.tensor([3.0, 2.5]), torch.tensor([[4.0]])])
    nothing = [torch.zeros(2), torch.zeros(1, 1)]
    torch.testing.assert_close(tune.anchored(gradients, nothing, 0.5), gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "sex=male:0.5,woman:0.5"}, "mix: sex has no group 'woman'"),
        ({"target": "sex=male:0.5,female:0.4"}, "shares sum to 0.9, not 1"),
        ({"target": "age_group=young:0.5,old:0.5"}, "no guide reads 'age_group'"),
        ({"target": "nowhere"}, "neither a cohort nor a mix"),
        ({"prompts": "nowhere.txt"}, "no such cohort or file"),
        ({"prompts": "A brain MR slice, " * 20}, "no such cohort or file"),  # longer than a file's name may be
        (
            {"target": "sex=male:0.5,female:0.5;" + ";".join(f"attribute_{i}=a:0.5,b:0.5" for i in range(15))},
            "no guide reads 'attribute_0'",
        ),
        ({"anchor": 1.0}, "name the real images with --anchor-cohort"),
    ],
)
def test_bad_input_is_one_line(settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        align(settings(**changes))
    assert "\n" not in str(error.value)


def changed(guide: Path, out: Path, **facts: Any) -> Path:
    """A copy of a classifier that says other things of itself."""
    shutil.copytree(guide, out)
    write_json(out / CALIBRATION_FILE, {**read_json(out / CALIBRATION_FILE), **facts})
    return out


def test_guides_that_cannot_guide_are_refused(settings: Any, guides: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"AUC 0\.62 on held-out subjects, below 0\.7"):
        align(settings(guide=[changed(guides[0], tmp_path / "blind", auc=0.62), guides[1]]))
    with pytest.raises(UserError, match="no AUC on held-out subjects"):
        align(settings(guide=[changed(guides[0], tmp_path / "unmeasured", auc=None), guides[1]]))
    with pytest.raises(UserError, match="its groups of sex are man, woman"):
        align(settings(guide=[guides[0], changed(guides[1], tmp_path / "other", groups=["man", "woman"])]))
    with pytest.raises(UserError, match="given twice"):
        align(settings(guide=guides, held_out_guide=[guides[0]]))
    with pytest.raises(UserError, match="given twice"):
        align(settings(guide=[guides[0], guides[0]]))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_one_guide_alone_is_warned_of(settings: Any, guides: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    align(settings(guide=guides[:1], iterations=1))
    told = " ".join(capsys.readouterr().err.split())
    assert "alone both guides and tells how far to go" in told and "of one architecture" not in told


def test_held_out_guides_of_the_guides_architecture_are_warned_of(
    settings: Any, guides: list[Path], brain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a gradient passes through guides, their kind alone does not tell how far it has gone."""
    vit = tmp_path / "vit"
    train_classifier(ClassifierSettings(cohort=brain, target="sex", arch="vit", out=vit, steps=25, batch_size=16))
    write_json(vit / CALIBRATION_FILE, {**read_json(vit / CALIBRATION_FILE), "auc": 0.9})
    warned = []
    for place, changes in enumerate(({}, {"held_out_guide": [vit]}, {"form": "distill", "consistency": 0, "exemplars": brain})):
        align(settings(out=f"run-{place}", iterations=1, **changes))
        warned.append("are of one architecture (resnet)" in " ".join(capsys.readouterr().err.split()))
    assert warned == [True, False, False]


def test_prompts_that_state_the_attribute_are_warned_of(settings: Any, brain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align(settings(prompts=str(brain), iterations=1))
    assert "prompts state a group of sex" in " ".join(capsys.readouterr().err.split())


def test_prompts_that_the_tokenizer_cuts_are_warned_of(settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long.txt").write_text("Brain MR slice\n" + "Brain MR slice of a patient " * 20)
    align(settings(prompts=str(tmp_path / "long.txt"), iterations=1))
    assert "1 prompts (1 images) exceed the tokenizer's" in " ".join(capsys.readouterr().err.split())


def test_exemplars_whose_prompts_state_it_are_warned_of(settings: Any, brain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align(settings(form="distill", consistency=0, exemplars=brain, iterations=1))
    assert "silent ones learn little of these images' mix" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("form", "attributes"), [("kl", 1), ("kl", 2), ("transport", 2)])
def test_gradients_that_are_not_finite_stop_it(
    form: str, attributes: int, settings: Any, brain: Path, guides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {}
    if attributes == 2:
        train_classifier(ClassifierSettings(cohort=brain, target="age_group", out=tmp_path / "age", steps=5, batch_size=16))
        age = changed(tmp_path / "age", tmp_path / "of-age", auc=0.9)
        changes = {"guide": [*guides, age], "target": "sex=male:0.5,female:0.5;age_group=young:0.5,old:0.5"}
    broken = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", lambda self, images: broken(self, images) * torch.nan)
    with pytest.raises(UserError, match="5 gradients in a row were not finite"):
        align(settings(form=form, validate_every=99, iterations=20, **changes))


def test_real_images_alone_are_drawn_in_the_target_mix(settings: Any, brain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is fine-tuning on resampled images; every batch has the target's mix."""
    seen: list[int] = []
    loss = Exemplars.loss

    def noted(exemplars: Exemplars, unet: torch.nn.Module, iteration: int, places: Any) -> torch.Tensor:
        seen.extend(exemplars.rows(iteration)[places])
        return loss(exemplars, unet, iteration, places)

    monkeypatch.setattr(Exemplars, "loss", noted)
    changes = {"form": "distill", "consistency": 0, "exemplars": brain, "target": "sex=male:0.1,female:0.9"}
    result = align(settings(**changes, batch_size=20, validate_every=99))
    shown = Cohort.load(brain).split("train").table["sex"].to_numpy()[seen].reshape(6, 20)
    assert ((shown == "female").sum(1) == 18).all()  # of every batch
    assert not (result.run / OWN_FILE).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "distill", "consistency": 0, "own_images": 60, "anchor": 1.0}, "name the real images with --anchor-cohort$"),
        ({"anchor": 1.0}, "--anchor-cohort, or give --own-images"),
        ({"anchor": 1.0, "anchor_cohort": "brain", "own_images": 30}, "so own ones would do nothing"),
    ],
)
def test_an_anchor_without_images_or_with_two_kinds_is_refused(settings: Any, brain: Path, changes: dict[str, Any], message: str) -> None:
    if "anchor_cohort" in changes:
        changes = {**changes, "anchor_cohort": brain}
    with pytest.raises(UserError, match=message):
        align(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "distill", "own_images": 0}, "nothing to learn from"),
        ({"form": "distill", "consistency": 1.0}, "so consistency would do nothing"),
        ({"form": "distill", "path": "truncated"}, "so path would do nothing"),
        ({"anchor_cohort": "cohort"}, "its images would do nothing"),
        ({"exemplars": "cohort"}, "what form distill learns from alone"),
        ({"form": "distill", "consistency": 0, "exemplars": "cohort", "anchor": 1.0}, "what form distill learns from alone"),
        ({"form": "distill", "consistency": 0, "exemplars": "cohort", "own_images": 60}, "so own_images would do nothing"),
        ({"form": "distill", "consistency": 0, "exemplars": "cohort", "early": 0.3}, "so early would do nothing"),
        ({"form": "kl", "own_images": 50}, "they only anchor"),
        ({"path": "truncated", "carrying": "first:2"}, "write carrying last:K"),
        ({"form": "transport", "memory": 0.1}, "so memory would do nothing"),
        ({"early": 0.3}, "so early would do nothing"),
        ({"form": "distill", "consistency": 0, "real_mix": "own"}, "so real_mix would do nothing"),
    ],
)
def test_settings_that_contradict_each_other(settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_defaults_go_by_form() -> None:
    base = {"model": "m", "guide": ["g"], "target": "sex=male:1", "prompts": "p", "out": "o"}
    assert AlignSettings(**base).own_images == 1200 and AlignSettings(**base).learning_rate is None  # by what is tuned
    pulled = AlignSettings(**base, form="kl", ema=0.5)
    assert (pulled.own_images, pulled.learning_rate, pulled.consistency, pulled.ema) == (0, 2e-5, 1.0, 0.5)


def test_an_aligned_model_is_drawn_as_it_was_aligned(settings: Any, brain: Path, tmp_path: Path) -> None:
    base = settings(form="kl", iterations=1, guidance_scale=None, validation_images=20, consistency=0)
    for given in (base.model_copy(update={"solver_steps": None}), base.model_copy(update={"solver_steps": None, "guidance_scale": 1.0})):
        assert resolved(given).sampling == Sampling(25, given.guidance_scale or 3.0, "dpm++", "trailing")
    result = align(base.model_copy(update={"timestep_spacing": "linspace"}))
    told = {"steps": 3, "guidance_scale": 3.0, "sampler": "dpm++", "timestep_spacing": "linspace"}
    assert result.model is not None and read_json(result.model / "evenhand.json")["sampling"] == told
    cohort = generate(GenerateSettings(model=str(result.run), like=brain, out=tmp_path / "drawn", n=1))
    assert told.items() <= cohort.schema.made["settings"].items()
    assert resolved(base.model_copy(update={"model": str(result.run), "solver_steps": None})).sampling.steps == 3


DISTILL = {"form": "distill", "own_images": 60, "consistency": 0, "batch_size": 8}


REACHED: dict[tuple[Path, ...], str] = {}  # by guides


def within_reach(settings: Any) -> str:
    """A mix that some weights make of the untrained model's own images, and that is not what they show unweighted."""
    probe = settings("probe", **DISTILL, target="sex=male:1,female:0")
    if (key := tuple(probe.guide)) not in REACHED:
        REACHED[key] = _within_reach(probe)
    return REACHED[key]


def _within_reach(probe: AlignSettings) -> str:
    with pytest.raises(UserError, match=r"however its own 60 images are weighed, (fe)?male is 0\.\d\d of them by the guides, not [01]\.00"):
        align(probe)
    male = float(np.quantile(load_file(probe.out / OWN_FILE)["shown"][:, 0], 0.8))
    return f"sex=male:{male:.4f},female:{1 - male:.4f}"


def test_a_model_learns_its_own_images_in_the_target_mix(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images that it learns from are read, on average, as the target has it, whatever it draws by itself."""
    target, kept, own = within_reach(settings), list[Exemplars](), Exemplars.own
    monkeypatch.setattr(Exemplars, "own", lambda *parts: kept.append(own(*parts)) or kept[-1])
    result = align(settings(**DISTILL, target=target, iterations=2))
    shown, weights = load_file(result.run / OWN_FILE)["shown"].double().numpy(), kept[0].weights
    with torch.no_grad():  # what is learnt is what was read
        images = kept[0].stage.decode(torch.from_numpy(kept[0].cache.mean))
        read = Guides.load(settings().guide[:1]).probabilities(images)
    np.testing.assert_allclose(read.numpy(), shown, atol=1e-4)
    assert weights is not None and weights.sum() == pytest.approx(1)
    assert weights @ shown[:, 0] == pytest.approx(float(target.split(":")[1].split(",")[0]), abs=1e-3)
    assert shown[:, 0].mean() != pytest.approx(weights @ shown[:, 0], abs=1e-3)
    drawn = np.concatenate([kept[0].rows(iteration) for iteration in range(300)])
    spread = shown[:, 0].std() / np.sqrt(len(drawn))
    assert shown[drawn, 0].mean() == pytest.approx(weights @ shown[:, 0], abs=5 * spread)
    assert all(line["gradient_norm"] > 0 and "batch" not in line for line in log(result.run))


def drawn_exemplars(settings: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Exemplars, AlignState]:
    """Own images as a run holds them."""
    kept, own = list[tuple[Exemplars, AlignState]](), Exemplars.own

    def noted(drawing: Any, guides: Guides, state: AlignState, *rest: Any) -> Exemplars:
        kept.append((own(drawing, guides, state, *rest), state))
        raise KeyboardInterrupt

    monkeypatch.setattr(Exemplars, "own", noted)
    with pytest.raises(KeyboardInterrupt):
        align(settings("drawn", **{**DISTILL, **changes}))
    return kept[0]


def test_below_the_early_noise_levels_the_untuned_model_teaches(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not tuned yet answers as the untuned model does, so those levels add nothing to the loss."""
    target = within_reach(settings)
    exemplars, state = drawn_exemplars(settings, monkeypatch, target=target, early=0.25)
    places = np.arange(8)
    steps = exemplars.timesteps(0, 1000)
    early = int((steps >= 750).sum())
    assert 1 <= early <= 3
    losses = [float(exemplars.loss(state.untuned, 0, places[place : place + 1])) for place in places]
    assert [loss > 1e-6 for loss in losses] == (steps >= 750).tolist()


def test_noise_levels_cover_every_run_of_places(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups lie in runs, so each of them sees all levels."""
    exemplars, _ = drawn_exemplars(settings, monkeypatch, target=within_reach(settings), batch_size=64)
    steps = np.stack([exemplars.timesteps(iteration, 1000) for iteration in range(20)])
    quarters = np.stack([np.bincount(run // 250, minlength=4) for run in steps.reshape(-1, 8)])
    assert quarters.min() >= 1 and quarters.max() <= 3
    assert len(np.unique(steps[:, 0])) > 15


def test_what_held_out_guides_and_judges_read_is_corrected_for_their_errors(
    settings: Any, guides: list[Path], judge: Path, tmp_path: Path
) -> None:
    """Votes of one that takes every test subject for the other sex mean the contrary; unknown errors change nothing."""
    shares = {}
    for name, read_as in {"right": [[1.0, 0.0], [0.0, 1.0]], "wrong": [[0.0, 1.0], [1.0, 0.0]], "silent": None}.items():
        told = {"read_as": read_as, "test_subjects": [30, 30]}
        held_out, judging = (changed(path, tmp_path / f"{name}-{path.name}", **told) for path in (guides[1], judge))
        chosen = {"guide": guides[:1], "held_out_guide": [held_out], "judge": [judging], "check_images": 20}
        result = align(settings(f"of-{name}", **chosen, iterations=1, validate_every=1))
        shares[name] = result.check["shares"]["male"], log(result.run)[0]["validation"]["held_out"]["male"]
    for right, wrong, silent in zip(*shares.values(), strict=True):
        assert right == pytest.approx(silent) and wrong == pytest.approx(1 - right)


def test_held_out_guides_speak_of_groups_in_the_guides_order(settings: Any, guides: list[Path], tmp_path: Path) -> None:
    """One whose head has the groups the other way round reads the same; one of other groups is refused."""
    turned = tmp_path / "turned"
    shutil.copytree(guides[1], turned)
    weights = load_file(turned / "model.safetensors")
    head = {name: weight.flip(0) for name, weight in weights.items() if name.startswith("classifier.")}
    assert head
    save_file({**weights, **head}, turned / "model.safetensors", metadata={"format": "pt"})
    facts = read_json(turned / "calibration.json")
    read_as = [row[::-1] for row in facts["read_as"]][::-1]
    changed = {"groups": facts["groups"][::-1], "read_as": read_as, "test_subjects": facts["test_subjects"][::-1]}
    write_json(turned / "calibration.json", {**facts, **changed})
    few = {"iterations": 1, "validate_every": 1, "guide": guides[:1]}
    first, second = (align(settings(f"of-{path.name}", held_out_guide=[path], **few)) for path in (guides[1], turned))
    assert log(second.run)[0]["validation"]["held_out"] == pytest.approx(log(first.run)[0]["validation"]["held_out"])
    write_json(turned / "calibration.json", {**facts, "groups": ["male", "diverse"]})
    with pytest.raises(UserError, match=r"turned: its groups of sex are male, diverse, those of the guides .*male"):
        align(settings("other", held_out_guide=[turned], **few))


def test_distillation_slows_to_a_halt_and_is_scaled_to_the_target(settings: Any, judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weights went past the target by a quarter of their way; a second look finds where the target is."""
    target, real, seen = within_reach(settings), Validation.standing, dict[str, Any]()
    male = float(target.split(":")[1].split(",")[0])
    off = {"iteration-0000": 0.3, "iteration-0002": 0.1, "iteration-0004": -0.1, "scale-0.75": 0.05, "scale-0.83": 0.004}

    def standing(validation: Validation, unet: torch.nn.Module, sheet: str) -> Standing:
        real(validation, unet, sheet)
        seen[sheet] = {name: weight.clone() for name, weight in unet.state_dict().items()}
        return Standing(*[np.array([male + off[sheet], 1 - male - off[sheet]])] * 2, None)

    def checked(validation: Validation, unet: torch.nn.Module, *rest: Any) -> FinalCheck:
        seen["checked"] = {name: weight.clone() for name, weight in unet.state_dict().items()}
        return FinalCheck(*[np.array([male, 1 - male])] * 3, 100)

    monkeypatch.setattr(Validation, "checked", checked)
    monkeypatch.setattr(Validation, "standing", standing)
    result = align(settings(**DISTILL, target=target, iterations=4, validate_every=2, tolerance=0.02, warmup=0, judge=[judge]))
    assert result.iterations == result.kept == 4 and result.scale == pytest.approx(0.83) and result.reached
    assert result.distance == pytest.approx(0.004)
    rates = [line["learning_rate"] for line in log(result.run)]
    assert rates == pytest.approx([1e-3 * share for share in (1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4)])
    read = read_json(result.model / "evenhand.json")["kept"]["read_at_scale"]
    assert {scale: round(mix["male"] - male, 6) for scale, mix in read.items()} == {"0.00": 0.3, "0.75": 0.05, "0.83": 0.004, "1.00": -0.1}
    last = load_file(result.run / "checkpoints" / "step-00000004" / "averages.safetensors")
    untuned = load_file(Path(settings().model) / "unet" / "diffusion_pytorch_model.safetensors")
    published = load_file(result.model / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in published.items():
        for scale, sheet in ((0.0, "iteration-0000"), (1.0, "iteration-0004"), (0.75, "scale-0.75"), (0.83, "scale-0.83")):
            torch.testing.assert_close(seen[sheet][name], untuned[name] + scale * (last[name] - untuned[name]))
        assert torch.equal(weight, seen["scale-0.83"][name]) and torch.equal(weight, seen["checked"][name])


def test_a_lora_is_scaled_along_a_line(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what it adds, and so half of what diffusers adds of it."""
    target = within_reach(settings)
    male = float(target.split(":")[1].split(",")[0])
    off = {"iteration-0000": 0.1, "iteration-0002": -0.1, "scale-0.50": 0.0}
    monkeypatch.setattr(
        Validation, "standing", lambda _, unet, sheet: Standing(*[np.array([male + off[sheet], 1 - male - off[sheet]])] * 2, None)
    )
    result = align(settings(**DISTILL, target=target, iterations=2, validate_every=2, lora=2))
    assert result.scale == 0.5
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    last = load_file(result.run / "checkpoints" / "step-00000002" / "averages.safetensors")
    first, second = (last[next(key for key in last if key.startswith(name) and part in key)] for part in ("lora_A", "lora_B"))
    published, untuned = (
        load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")[f"{name}.weight"]
        for folder in (result.model, settings().model)
    )
    assert float(second.norm()) > 0
    torch.testing.assert_close(published, untuned + 0.5 * second @ first)


@pytest.mark.parametrize(
    ("after", "scale", "said"), [(0.2, 0.0, "the model is as it was"), (0.09, 1.5, "raise --iterations or --learning")]
)
def test_a_target_out_of_reach_is_said(after: float, scale: float, said: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning that leads away from it, and one that hardly moves."""
    target = within_reach(settings)
    male = float(target.split(":")[1].split(",")[0])
    off = {"iteration-0000": 0.1, "iteration-0002": after, "scale-1.50": 0.085}
    monkeypatch.setattr(
        Validation, "standing", lambda _, unet, sheet: Standing(*[np.array([male + off[sheet], 1 - male - off[sheet]])] * 2, None)
    )
    result = align(settings(**DISTILL, target=target, iterations=2, validate_every=2))
    assert not result.reached and result.scale == scale and said in result.shortfall
    untuned, published = (
        load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors") for folder in (settings().model, result.model)
    )
    assert all(torch.equal(untuned[name], weight) for name, weight in published.items()) == (scale == 0)


@pytest.mark.parametrize(
    ("share", "half", "reached"), [(0.5, 0.04, True), (0.52, 0.02, True), (0.5, 0.06, False), (0.53, 0.04, False), (0.788, 0.02, False)]
)
def test_reached_means_shown_to_be_within_the_tolerance(
    share: float, half: float, reached: bool, settings: Any, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not: not shown to be elsewhere. The interval of 95 % has to lie within .05 of one half."""
    monkeypatch.setattr(tune, "iterate", lambda work: work.state.count(True) or {"iteration": work.state.iteration})
    monkeypatch.setattr(Validation, "standing", lambda *_: Standing(*[np.array([0.5, 0.5])] * 2, None))
    shares, asked = np.array([share, 1 - share]), []

    def checked(_: Any, unet: torch.nn.Module, judges: Guides, correction: Any, n: int) -> FinalCheck:
        asked.append((n, [one.path for one in judges.all]))
        return FinalCheck(shares, shares - half, shares + half, n)

    monkeypatch.setattr(Validation, "checked", checked)
    result = align(settings(iterations=1, validate_every=1, tolerance=0.05, judge=[judge]))
    assert result.reached is reached and not result.shortfall and [paths for _, paths in asked] == [[judge]]
    assert result.verdict.startswith("reached" if reached else "not reached") and f"{share:.3f}" in result.verdict


def test_images_needed_by_hand() -> None:
    """Half width 1.96 sqrt(.25 / n) = .025 at n = 1536.6; a judge that takes a fifth for the other group has 1 / .6 times that noise."""
    sure = Correction(1, [[Rows(np.eye(2), np.full(2, np.inf), 1)]], [])
    errs = Correction(1, [[Rows(np.array([[0.8, 0.2], [0.2, 0.8]]), np.full(2, 400.0), 1)]], [])
    half, few = np.array([0.5, 0.5]), np.array([0.02, 0.98])
    assert images_needed(half, 0.05, sure) == 1537 and images_needed(half, 0.02, sure) == 9604
    assert images_needed(half, 0.05, errs) == pytest.approx(1536.6 / 0.36, abs=1) and images_needed(few, 0.05, sure) == 200
    assert images_needed(half, 0.05, sure, 0.02) == pytest.approx(0.25 * 1.96**2 / (0.025**2 - 0.02**2), abs=1)
    assert images_needed(half, 0.05, sure, 0.4) == pytest.approx(4 * 1536.6, abs=1)
    one = PromptClasses.one([""])
    assert judges_leave_open(half, sure, one, 0) < 0.001
    assert judges_leave_open(half, errs, one, 0) == pytest.approx(1.96 * 0.5 * (2 * 0.16 / 400) ** 0.5 / 0.6, rel=0.2)


def test_a_judge_takes_no_part(settings: Any, guides: list[Path], judge: Path, tmp_path: Path) -> None:
    for path in guides:
        with pytest.raises(UserError, match=r"--judge .*: it guides this alignment, or selects its weights"):
            align(settings(judge=[path]))
    aligned = align(settings(iterations=1, validate_every=1, guide=[judge, guides[0]], checkpoint_every=1))
    with pytest.raises(UserError, match="or did so before"):
        align(settings("again", model=str(aligned.run), judge=[judge]))
    other = changed(judge, tmp_path / "other", target="age_group")
    with pytest.raises(UserError, match="no guide reads 'age_group'"):
        align(settings("other-run", judge=[other]))
    with pytest.raises(UserError, match="its groups of sex are"):
        align(settings("named-run", judge=[changed(judge, tmp_path / "named", groups=["M", "F"])]))


def test_own_images_survive_a_kill_and_resume_to_the_bit(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**DISTILL, "target": within_reach(settings)}
    whole = align(settings("whole", **changes))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune, "iterate", lambda work: (_ for _ in ()).throw(KeyboardInterrupt))
        align(settings("parts", **changes))
    drawn = (whole.run.with_name("parts") / OWN_FILE).read_bytes()
    assert drawn == (whole.run / OWN_FILE).read_bytes()
    (whole.run.with_name("parts") / OWN_FILE).write_bytes(drawn[:-40])  # broken off: drawn anew
    parts = align(settings("parts", **changes, resume=True))
    first, second = (load_file(result.model / "unet" / "diffusion_pytorch_model.safetensors") for result in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first) and log(whole.run) == log(parts.run)


@pytest.mark.parametrize("form", ["kl", "distill"])
def test_a_run_killed_between_its_end_and_its_model_only_publishes(form: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"iterations": 20, "tolerance": 1.0} if form == "kl" else {**DISTILL, "target": within_reach(settings), "iterations": 2}
    whole = align(settings("whole", **changes))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune, "publish", lambda *parts: (_ for _ in ()).throw(KeyboardInterrupt))
        align(settings(**changes))
    again = align(settings(**changes, resume=True))
    assert again.iterations == 2 and len(log(again.run)) == 2
    assert (again.scale, again.distance) == (whole.scale, whole.distance)
    first, second = (load_file(result.model / "unet" / "diffusion_pytorch_model.safetensors") for result in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_distillation_logs_how_images_change(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns no consistency; the model's own CLIP says what became of it, of some of the images."""
    monkeypatch.setattr(validation, "COMPARED", 8)
    result = align(settings(**DISTILL, target=within_reach(settings), iterations=4, validate_every=2, ema=0.0, learning_rate=0.03))
    tuned = [line["validation"]["consistency"] for line in log(result.run) if "validation" in line]
    assert len(tuned) == 2 and all(0 < cosine < 1 - 1e-6 for cosine in tuned)
    before = json.loads((result.run / "log.jsonl").read_text().splitlines()[0])
    assert before["validation"]["consistency"] == pytest.approx(1, abs=1e-6)


def test_without_consistency_no_encoder_is_wanted(settings: Any, tiny: Path, tmp_path: Path) -> None:
    """A Stable Diffusion folder has no image encoder of its own."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    shutil.rmtree(bare / "clip")
    with pytest.raises(UserError, match="--consistency-encoder"):
        align(settings("refused", model=str(bare)))
    result = align(settings(model=str(bare), consistency=0, iterations=2))
    assert [line["validation"]["consistency"] for line in log(result.run) if "validation" in line] == [None]


def test_other_anchor_images_are_another_run(settings: Any, brain: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    whole = Cohort.load(brain)
    whole.subset(whole.table.index % 2 == 0).save(other)
    align(settings(anchor=1.0, anchor_cohort=brain, iterations=2))
    with pytest.raises(UserError, match="real images changed since"):
        align(settings(anchor=1.0, anchor_cohort=other, iterations=2, resume=True))


def test_a_guide_that_was_calibrated_anew_is_another_run(settings: Any, guides: list[Path], tmp_path: Path) -> None:
    """Its weights are the same, its readings are not."""
    guide = changed(guides[0], tmp_path / "guide")
    align(settings(guide=[guide, guides[1]], iterations=2))
    write_json(guide / CALIBRATION_FILE, {**read_json(guide / CALIBRATION_FILE), "temperature": 0.5})
    with pytest.raises(UserError, match="guides' calibration changed since"):
        align(settings(guide=[guide, guides[1]], iterations=2, resume=True))


def test_columns_tell_what_they_know_and_guides_the_rest(brain: Path, guides: list[Path]) -> None:
    """One unknown row leaves the others as they are told; a guide's word is taken for that row alone."""
    cohort, found = Cohort.load(brain), Guides.load(guides)
    told = found.read(cohort)
    codes = {group: code for code, group in enumerate(found.joint)}
    assert told.tolist() == cohort.table["sex"].map(codes).tolist()
    blind = replace(cohort, table=cohort.table.assign(sex="unknown"))
    read = found.read(blind)
    assert 0 < (read != told).mean() < 1  # these guides err
    row = int(np.flatnonzero(read != told)[0])
    partly = cohort.table["sex"].copy()
    partly.iloc[row] = "unknown"
    mixed = found.read(replace(cohort, table=cohort.table.assign(sex=partly)))
    assert np.flatnonzero(mixed != told).tolist() == [row]
    partly.iloc[row] = "man"
    with pytest.raises(UserError, match=r"its sex is 'man', and guides know male, female; .* leave such images \(1\) out"):
        found.read(replace(cohort, table=cohort.table.assign(sex=partly)))


def test_steps_shrink_near_the_target(settings: Any) -> None:
    """Below the damping distance in proportion: .05 of .1 off is half the rate."""
    state = SimpleNamespace(settings=settings(damping=0.1, warmup=0), target=np.array([0.5, 0.5]), iteration=7, shown=None, past=None)
    assert AlignState.rate(state) == 1e-3
    AlignState.saw(state, np.array([0.55, 0.45]), np.array([0.6, 0.4]))
    assert AlignState.rate(state) == pytest.approx(0.5e-3)
    AlignState.saw(state, np.array([0.8, 0.2]), np.array([0.6, 0.4]))
    assert state.shown == pytest.approx([0.6, 0.4]) and AlignState.rate(state) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("groups", "stated"),
    [(["<60", ">=60"], [0, 1]), (["male", "female"], [2]), (["60+"], [3])],
)
def test_prompts_that_state_a_group(groups: list[str], stated: list[int]) -> None:
    prompts = ["Image of a <60 patient", "Image of a >=60, patient", "Image of a Female patient", "a 60+ patient", "a tomale"]
    assert stating(prompts, {"attribute": groups}) == [prompts[place] for place in stated]
