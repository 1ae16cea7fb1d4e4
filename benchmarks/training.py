"""A training with enough parameters to be worth a checkpoint: residual layers, AdamW, a step of each kind."""

from typing import Any

import torch
from torch import Tensor, nn

_LAYER_PARAMETERS = 1_000_000  # of the largest layers
_BATCH = 64


class Residual(nn.Module):
    """Linear layers of one width. The sums keep signals alive through all of them: denormal numbers would be slow."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = inputs + torch.tanh(layer(inputs))
        return inputs


class Training:
    """A model and its optimizer, which has taken a step, so that it has all of its state."""

    def __init__(self, parameters: int, device: str = "cpu") -> None:
        self.size, self.device = parameters, device
        self.model, self.optimizer = fresh(parameters, device)
        self._inputs = torch.randn(_BATCH, self.model.width, device=device)
        self.epoch()

    def epoch(self) -> None:
        """One batch is the whole epoch."""
        self.pass_()
        self.step()

    def pass_(self) -> None:
        """Forward and backward: what a copy of the weights may go on beside."""
        self.model(self._inputs).square().mean().backward()

    def step(self) -> None:
        """The gradients are dropped at once: no method here has to keep them."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def objects(self) -> dict[str, Any]:
        """What is tracked."""
        return {"model": self.model, "optimizer": self.optimizer}

    def state(self) -> dict[str, Any]:
        """What is given to those who take a state_dict."""
        return {name: value.state_dict() for name, value in self.objects().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of `state`, by dotted name."""
        found: dict[str, Tensor] = {}
        _flatten("", self.state(), found)
        return found

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


def fresh(parameters: int, device: str) -> tuple[Residual, torch.optim.AdamW]:
    """A model of about so many parameters and its optimizer, as a process has them that starts again."""
    layers = max(4, round(parameters / _LAYER_PARAMETERS))
    model = Residual(layers, round((parameters / layers) ** 0.5)).to(device)
    return model, torch.optim.AdamW(model.parameters())


def _flatten(name: str, value: Any, found: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(f"{name}.{key}" if name else str(key), item, found)
