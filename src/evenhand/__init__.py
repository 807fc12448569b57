"""Evenhand: train, align and audit text-to-medical-image diffusion models so that every patient subgroup is served."""

from importlib.metadata import version

__version__ = version("evenhand")
