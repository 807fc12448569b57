"""Synthetic anatomy with known truth: one modality a file, generator and oracle side by side."""

from evenhand.cohorts.phantoms.brain import BRAIN
from evenhand.cohorts.phantoms.chest import CHEST
from evenhand.cohorts.phantoms.dermoscopy import DERMOSCOPY
from evenhand.cohorts.phantoms.fundus import FUNDUS
from evenhand.cohorts.phantoms.phantom import Modality, Phantoms

MODALITIES: dict[str, Modality] = {"brain": BRAIN, "chest": CHEST, "dermoscopy": DERMOSCOPY, "fundus": FUNDUS}

__all__ = ["MODALITIES", "Modality", "Phantoms"]
