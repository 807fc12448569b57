"""Image features for the audit: a classifier's penultimate layer, or any local transformers vision model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

from evenhand.core.artifacts import is_file, read_json, sha256_files
from evenhand.core.errors import UserError
from evenhand.models.libraries import LOAD_ERRORS, quiet_libraries
from evenhand.models.preprocessing import PREPROCESSOR_FILE, Preprocessing
from evenhand.models.tensors import to_tensor
from evenhand.models.weights import CONFIG_FILE, Loaded, component_files, load_weights

_POOLER = "pooler."


@dataclass(frozen=True)
class Encoder:
    """A frozen vision model with its own preprocessing."""

    model: torch.nn.Module
    preprocessing: Preprocessing
    name: str
    sha256: str
    has_pooler: bool = True  # a ViT classifier has none: AutoModel would add one with random weights

    @classmethod
    def load(cls, path: Path | str) -> Encoder:
        """Read a transformers vision folder (CLIP, DINOv2, ViT, ...) or an Evenhand classifier.

        Raises:
            UserError: not such a folder, weights that are not safetensors, or no ``preprocessor_config.json``.
        """
        folder = Path(path)
        if not is_file(folder / CONFIG_FILE):
            raise UserError(f"{folder}: not an encoder (no config.json); give a transformers vision folder or an Evenhand classifier")
        preprocessing = Preprocessing.load(folder)
        config = read_json(folder / CONFIG_FILE)
        is_clip = isinstance(config, dict) and config.get("model_type") == "clip"
        # Said, not left to the default: unset, transformers asks on a terminal whether to run a folder's own code.
        options = {} if is_clip else {"trust_remote_code": False}
        loaded = load_weights(CLIPVisionModelWithProjection if is_clip else AutoModel, folder, "the encoder", **options)
        has_pooler = not _lacks_pooler(loaded)
        _without_head(loaded, folder, drop_pooler=not has_pooler).require_whole(folder)
        return cls(loaded.model.eval(), preprocessing, folder.name, encoder_hash(folder), has_pooler=has_pooler)

    @property
    def is_clip(self) -> bool:
        """Whether features are CLIP image embeddings."""
        return str(self.model.config.model_type) == "clip"

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features (n, d), float32, of images (n, H, W) or (n, H, W, 3) in [0, 1]."""
        device = next(self.model.parameters()).device
        return self.embed(to_tensor(images, 3).to(device)).float().cpu().numpy()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Differentiable features (n, d) of a tensor (n, 3, H, W) in [0, 1]."""
        output = self.model(pixel_values=self.preprocessing(images))
        if getattr(output, "image_embeds", None) is not None:
            return output.image_embeds
        if not self.has_pooler:
            return output.last_hidden_state[:, 0]  # the class token, which the classifier's last layer reads
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)

    def to(self, device: torch.device) -> Encoder:
        """The same encoder on another device."""
        self.model.to(device)
        return self


def encoder_files(folder: Path) -> list[Path]:
    """Every file that is read of an encoder or classifier: settings, weights, and what it wants done to images.

    Raises:
        UserError: one is not there.
    """
    files = [*component_files(folder, AutoModel), folder / PREPROCESSOR_FILE]
    for file in files:
        if not is_file(file):
            raise UserError(f"{file}: no such file; save the model's configuration and image processor beside its weights")
    return files


def encoder_hash(folder: Path) -> str:
    """SHA-256 over names and contents of ``encoder_files``."""
    return sha256_files({file.name: file for file in encoder_files(folder)})


def _lacks_pooler(loaded: Loaded) -> bool:
    """Whether the whole of the pooler is missing: networks saved without one, such as a classifier, hold none of its tensors."""
    pooler = {name for name in loaded.model.state_dict() if name.startswith(_POOLER)}
    return bool(pooler) and pooler <= loaded.missing


def _without_head(loaded: Loaded, folder: Path, *, drop_pooler: bool) -> Loaded:
    """The report without what an encoder does not have, but the network that was saved does: a head, or CLIP's text side."""
    missing = {name for name in loaded.missing if not (drop_pooler and name.startswith(_POOLER))}
    unexpected = loaded.unexpected - _saved_names(folder) if loaded.unexpected else set()
    return Loaded(loaded.model, missing, unexpected, loaded.misshapen)


def _saved_names(folder: Path) -> set[str]:
    """Names of the tensors of the network whose class ``config.json`` gives."""
    names: set[str] = set()
    try:
        with quiet_libraries(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            for architecture in config.architectures or []:
                names |= getattr(transformers, architecture)(config).state_dict().keys()
    except LOAD_ERRORS:
        pass  # a class that transformers does not have: what it alone holds stays unexpected
    return names
