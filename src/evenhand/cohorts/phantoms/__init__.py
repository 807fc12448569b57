"""Synthetic anatomy with known truth: one modality a file, generator and oracle side by side."""

from evenhand.cohorts.phantoms.brain import BRAIN
from evenhand.cohorts.phantoms.phantom import Modality, Phantoms

MODALITIES: dict[str, Modality] = {"brain": BRAIN}

__all__ = ["MODALITIES", "Modality", "Phantoms"]
