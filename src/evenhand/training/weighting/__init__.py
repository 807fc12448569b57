"""Methods that weight samples or choose sampling odds by group. Add a file, name its class here; the command line follows."""

from evenhand.training.weighting.method import GroupCodes, WeightingMethod
from evenhand.training.weighting.uniform import Uniform

METHODS: dict[str, type[WeightingMethod]] = {
    "uniform": Uniform,
}

__all__ = ["METHODS", "GroupCodes", "Uniform", "WeightingMethod"]
