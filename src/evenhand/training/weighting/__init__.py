"""Methods that weight samples or choose sampling odds by group. Add a file, name its class here; the command line follows."""

from evenhand.training.weighting.bayesian_perturbation import BayesianPerturbation
from evenhand.training.weighting.group_dro import GroupDro
from evenhand.training.weighting.inverse_frequency import InverseFrequency
from evenhand.training.weighting.joint import GroupCodes
from evenhand.training.weighting.method import WeightingMethod
from evenhand.training.weighting.perturbation import RandomPerturbation
from evenhand.training.weighting.uniform import Uniform

METHODS: dict[str, type[WeightingMethod]] = {
    "uniform": Uniform,
    "inverse_frequency": InverseFrequency,
    "group_dro": GroupDro,
    "random_perturbation": RandomPerturbation,
    "bayesian_perturbation": BayesianPerturbation,
}

__all__ = ["METHODS", "GroupCodes", "WeightingMethod"]
