"""A ViT classifier has no pooler: its features must be what its last layer reads, not a random layer's."""

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from evenhand.core.errors import UserError
from evenhand.models.encoders import Encoder
from evenhand.models.preprocessing import Preprocessing

SMALL = ViTConfig(
    image_size=32, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=2
)


@pytest.fixture
def folder(tmp_path):
    Preprocessing((32, 32), None, (0.5,) * 3, (0.5,) * 3).save(tmp_path)
    return tmp_path


def test_features_are_what_the_last_layer_reads_and_the_same_at_every_load(folder):
    classifier = ViTForImageClassification(SMALL).eval()
    classifier.save_pretrained(folder)
    images = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    features = Encoder.load(folder).features(images)
    assert np.array_equal(features, Encoder.load(folder).features(images))
    pixels = (torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1) - 0.5) / 0.5
    with torch.no_grad():
        logits = classifier(pixel_values=pixels).logits
        assert torch.allclose(classifier.classifier(torch.from_numpy(features)), logits, atol=1e-5)


def test_other_missing_weights_are_refused(folder):
    model = ViTModel(SMALL)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("layernorm")}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(UserError, match="weights are missing"):
        Encoder.load(folder)
