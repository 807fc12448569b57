"""The tiny model's text encoder is the one that CLIP was fitted with, and its states tell prompts apart."""

import torch
from transformers import CLIPModel

from evenhand.cohorts.cohort import Cohort
from evenhand.models.pipelines import encode_prompts, load_pipeline


def test_the_pipeline_has_the_fitted_text_encoder(tiny):
    ours = load_pipeline(tiny).text_encoder.state_dict()
    fitted = CLIPModel.from_pretrained(tiny / "clip").text_model.state_dict()
    assert ours.keys() == fitted.keys()
    assert all(torch.equal(ours[name], fitted[name]) for name in ours)


def test_states_are_centred_and_prompts_differ(tiny, brain):
    prompts = sorted(set(Cohort.load(brain).split("train").table["prompt"]))
    states = encode_prompts(load_pipeline(tiny), prompts)
    assert states.mean((0, 1)).abs().max() < 1e-4
    spread = states.std(0, unbiased=False).square().mean().sqrt()
    # two steps of CLIP leave a spread so small that the scale stops at its bound; without it the states would have a spread near .05
    assert 0.3 < spread <= 1.0 + 1e-4
