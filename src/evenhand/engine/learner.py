"""What an optimizer works on, whatever the loss: a denoiser, its optimizer and its averages, saved and restored to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from evenhand.core.errors import UserError
from evenhand.engine.ema import Averages

# torch can flatten the optimizer's state too, but then cannot load it where nothing is sharded (a KeyError up to 2.13)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_EVERYWHERE = StateDictOptions(full_state_dict=True)  # offloaded ones are on the first rank alone
_PART = StateDictOptions(full_state_dict=True, strict=False)  # a checkpoint holds what is trained, and no more
_OF = "|"  # between a parameter's name and what the optimizer keeps of it

Tensors = dict[str, dict[str, torch.Tensor]]


@dataclass
class Learner:
    """A denoiser in the hands of accelerate; only what requires a gradient is optimised, averaged and saved."""

    denoiser: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    averages: Averages
    scaler: torch.amp.GradScaler | None

    @classmethod
    def create(
        cls,
        unet: torch.nn.Module,
        accelerator: Accelerator,
        *,
        learning_rate: float,
        weight_decay: float,
        ema: float,
        compiled: bool,
    ) -> Learner:
        """AdamW on the trainable parameters of ``unet``."""
        unet = unet.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU
        trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        fused = accelerator.device.type in ("cuda", "cpu")
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=fused)
        denoiser, optimizer = accelerator.prepare(torch.compile(unet) if compiled else unet, optimizer)
        parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        return cls(denoiser, parameters, optimizer, Averages(parameters, ema), accelerator.scaler)

    def set_learning_rate(self, rate: float) -> None:
        """For all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def snapshot(self) -> tuple[Tensors, dict[str, Any]]:
        """Weights, averages and what the optimizer keeps, whole even where they are sharded; and facts that JSON can hold.

        Every rank takes part; both are empty on all but the first, which writes.
        """
        model: dict[str, Any]
        optimizer: dict[str, Any]
        if self._plain_optimizer().state:
            model, optimizer = get_state_dict(self.denoiser, self._plain_optimizer(), options=_WHOLE)
        else:  # no step was taken yet; torch would make a state by a step of its own, and count it
            model, optimizer = get_model_state_dict(self.denoiser, options=_WHOLE), {}
        tensors = {
            "model": self._trained(model),
            **({"averages": self._averages(_WHOLE)} if self.averages.kept else {}),
            "optimizer": {f"{name}{_OF}{key}": value for name, part in optimizer.get("state", {}).items() for key, value in part.items()},
        }
        facts = {
            "optimizer": optimizer.get("param_groups"),
            "averages_updates": self.averages.updates,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        return tensors, facts

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """The averages of the trained parameters, by name, on the CPU: whole, and the same on every rank. Without EMA the weights."""
        return {name: value.cpu() for name, value in self._averages(_EVERYWHERE).items()}

    def _averages(self, options: StateDictOptions) -> dict[str, torch.Tensor]:
        with self.averages.applied():
            return {name: value.clone() for name, value in self._trained(get_model_state_dict(self.denoiser, options=options)).items()}

    def restore(self, tensors: Tensors, facts: dict[str, Any], run: Path) -> None:
        """Take a snapshot of ``run`` back.

        Raises:
            UserError: it holds other parameters than are trained.
        """
        names = self._trained_names()
        if tensors["model"].keys() != names or tensors.get("averages", {}).keys() != (names if self.averages.kept else set()):
            raise UserError(f"{run}: the checkpoint holds other parameters than are trained now; start a new run")
        if self.averages.kept:
            set_model_state_dict(self.denoiser, tensors["averages"], options=_PART)
            self.averages.adopt(facts["averages_updates"])
        if tensors.get("optimizer"):
            self._restore_both(tensors["model"], tensors["optimizer"], facts["optimizer"])
        else:
            set_model_state_dict(self.denoiser, tensors["model"], options=_PART)
        if self.scaler is not None and facts["scaler"] is not None:
            self.scaler.load_state_dict(facts["scaler"])

    def _restore_both(self, model: dict[str, Any], tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> None:
        optimizer: dict[str, Any] = {"state": {}, "param_groups": groups}
        for name, value in tensors.items():
            parameter, _, key = name.rpartition(_OF)
            optimizer["state"].setdefault(parameter, {})[key] = value
        set_state_dict(self.denoiser, self._plain_optimizer(), model_state_dict=model, optim_state_dict=optimizer, options=_PART)
        for group in self._plain_optimizer().param_groups:  # JSON knows no tuples
            group["betas"] = tuple(group["betas"])
        for parameter, part in self._plain_optimizer().state.items():
            for key, value in part.items():
                if value.shape == parameter.shape:  # the fused kernel walks memory: averages must lie as the weights do (channels last)
                    part[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _trained(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = self._trained_names()
        return {name: value for name, value in weights.items() if name in names}

    def _trained_names(self) -> set[str]:
        return {_plain(name) for name, parameter in self.denoiser.named_parameters() if parameter.requires_grad}

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)


def _plain(name: str) -> str:
    for wrapper in ("module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name
