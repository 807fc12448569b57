"""Image features for the audit: a classifier's penultimate layer, or any local transformers vision model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

from evenhand.core.artifacts import sha256_folder
from evenhand.core.errors import UserError
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries
from evenhand.models.preprocessing import Preprocessing
from evenhand.models.tensors import to_tensor


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
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: not an encoder (no config.json); give a transformers vision folder or an Evenhand classifier")
        try:
            with quiet_libraries():
                # Said, not left to the default: unset, transformers asks on a terminal whether to run a folder's own code.
                local = {"local_files_only": True, "trust_remote_code": False}
                config = AutoConfig.from_pretrained(folder, **local)
                family = CLIPVisionModelWithProjection if config.model_type == "clip" else AutoModel
                model, loading = family.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **local)
        except LOAD_ERRORS as error:
            raise UserError(f"{folder}: cannot load the encoder ({brief(error)}); it must be a folder with safetensors") from None
        missing = sorted(loading["missing_keys"])
        if any(not name.startswith("pooler.") for name in missing):
            raise UserError(f"{folder}: weights are missing ({missing[0]}); random ones would give meaningless features")
        return cls(model.eval(), Preprocessing.load(folder), folder.name, sha256_folder(folder), has_pooler=not missing)

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
