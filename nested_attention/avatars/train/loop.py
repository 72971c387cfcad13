"""What every stage shares: seeds, a schedule, an average of the weights, checkpoints that resume, a log."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Budget:
    """How long a stage runs: whichever of steps and minutes ends first, with the last fifth for the decay."""

    steps: int
    minutes: float = math.inf
    warmup: int = 100
    decay: float = 0.3

    def factor(self, step: int, elapsed: float) -> float:
        """Learning-rate factor: linear warm-up, constant, then linear decay to zero at the end of the
        budget."""
        progress = max(step / self.steps, elapsed / (60 * self.minutes))
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, (1 - progress) / self.decay))

    def done(self, step: int, elapsed: float) -> bool:
        return step >= self.steps or elapsed >= 60 * self.minutes


class Run:
    """One stage of training: modules by name, their optimiser, an exponential average, a folder to resume
    from."""

    def __init__(
        self,
        folder: Path,
        modules: dict[str, nn.Module],
        *,
        rate: float,
        budget: Budget,
        ema: float = 0.999,
        weight_decay: float = 0.01,
        fixed: Iterable[nn.Module] = (),
    ) -> None:
        self.folder, self.modules, self.rate, self.budget, self.ema = folder, modules, rate, budget, ema
        for module in fixed:
            module.requires_grad_(False).eval()
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.parameters = parameters
        self.average = {name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()}
        self.step, self._before, self._started = 0, 0.0, time.monotonic()
        self._log: list[tuple[int, dict[str, float]]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all starts."""
        return self._before + time.monotonic() - self._started

    @property
    def done(self) -> bool:
        return self.budget.done(self.step, self.elapsed)

    def update(self, loss: torch.Tensor, **logged: torch.Tensor) -> None:
        """One optimiser step on `loss`, the average after it, a line of the log every 50 steps."""
        factor = self.budget.factor(self.step, self.elapsed)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                averaged: list[torch.Tensor] = list(self.average[name].parameters())
                current: list[torch.Tensor] = list(module.parameters())
                torch._foreach_lerp_(averaged, current, 1 - decay)
        self._log.append((self.step, {"loss": loss.detach(), "norm": norm, **logged}))  # type: ignore[dict-item]
        if self.step % 50 == 0 or self.done:
            self._write_log(factor)

    def _write_log(self, factor: float) -> None:
        keys = self._log[-1][1]
        means = {
            k: float(torch.stack([torch.as_tensor(v[k]).float() for _, v in self._log]).mean()) for k in keys
        }
        self._log.clear()
        line = {"step": self.step, "minutes": round(self.elapsed / 60, 2), "rate": self.rate * factor}
        line |= {k: round(v, 5) for k, v in means.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the resumable state, in one piece or not at all."""
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "optimizer": self.optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": {name: module.state_dict() for name, module in self.average.items()},
        }
        temporary = self.folder / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / "state.pt")

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.parameters[0].device)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.average[name].load_state_dict(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._before = state["step"], state["elapsed"]
