"""One optimizer step: microbatches, one normaliser, clipping, a check that all is finite, the schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebase import processes
from onebase.errors import DoesNotFitError, NonFiniteError
from onebase.files import write_atomically
from onebase.models.one_base import OneBase
from onebase.models.passes import lay_out, split_to_fit
from onebase.records import Example, TreeBatch
from onebase.runs.progress import say
from onebase.training.averages import Averages

MAX_REFUSED_IN_A_ROW = 5
"""Optimizer steps refused one after the other for NaN or infinity before the run stops."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Args:
        role: whose they are. The gradient is clipped role by role, so that no role's steps depend on another's scale.
    """

    parameters: list[nn.Parameter]
    learning_rate: float
    role: str = "policy"


LossFunction = Callable[[TreeBatch, list[int], Averages], Iterable[Tensor]]
"""`(batch, indices of its examples, where to note metrics) -> scalars`, each run backward before the next is asked for.

A scalar is the microbatch's share of the step's loss: divide sums by the count of the *whole* minibatch, so that the
sum over microbatches does not depend on the split. Yield a loss per role, and only one role's activations are held.
"""

Part = tuple[Sequence[Example], LossFunction]
"""Examples and their loss."""


class Update:
    """AdamW over the roles that train.

    Args:
        dropout: whether adapter dropout is on in the passes that train. Not for PPO: its ratios would be noise.
        total_steps: optimizer steps of the run, for a schedule that ends at 0.
        token_budget: padded tokens of a microbatch; halved when the device runs out of memory.
        repro_folder: where a step that was refused leaves its examples, to be looked into.
    """

    def __init__(
        self,
        base: OneBase,
        groups: Sequence[ParameterGroup],
        *,
        dropout: bool = False,
        weight_decay: float,
        schedule: str,
        warmup_steps: int,
        total_steps: int,
        max_grad_norm: float,
        token_budget: int,
        repro_folder: Path | None = None,
    ) -> None:
        self._base = base
        self._repro_folder = repro_folder
        self._dropout = dropout
        self.token_budget = token_budget
        self._max_grad_norm = max_grad_norm
        self._parameters = [p for group in groups for p in group.parameters]
        self._of_role: dict[str, list[nn.Parameter]] = {}
        for group in groups:
            self._of_role.setdefault(group.role, []).extend(group.parameters)
        options = [
            {
                "params": [p for p in group.parameters if (p.dim() > 1) == decayed],
                "lr": group.learning_rate,
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for group in groups
            for decayed in (True, False)
        ]
        self.optimizer = torch.optim.AdamW([group for group in options if group["params"]], fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _rate(step, schedule, warmup_steps, total_steps)
        )
        self._shape, self._total_steps = schedule, total_steps
        self._refused_in_a_row = 0
        self.steps_refused = 0
        self.steps_done = 0
        """The refused ones too."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "total_steps": self._total_steps,
            "refused_in_a_row": self._refused_in_a_row,
            "steps_refused": self.steps_refused,
            "steps_done": self.steps_done,
            "token_budget": self.token_budget,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`; the token budget stays as it is configured now, as it changes no result.

        Where the run has become longer since, the learning rates that are left are those of the longer schedule.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self._refused_in_a_row = state["refused_in_a_row"]
        self.steps_refused = state["steps_refused"]
        self.steps_done = state["steps_done"]
        if state["total_steps"] != self._total_steps:
            self._stretch(state["total_steps"])

    def _stretch(self, before: int) -> None:
        # The rate of the next step was set by the schedule that ended earlier.
        parts = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, peak, rate in parts:
            group["lr"] = peak * rate(self.schedule.last_epoch)
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self._shape != "constant":
            say(
                f"optimizer.schedule: {self._shape} now ends at step {self._total_steps} and not {before}: the first "
                f"{self.steps_done} steps keep the learning rates they had, the rest is recomputed"
            )

    def step(self, *parts: Part) -> dict[str, float]:
        """One optimizer step on all examples of all parts; returns the metrics noted, the gradient norm (of each role
        too, where there are several) and the learning rate. A part is examples and their loss: most steps have one,
        PPO with PTX has two.

        A step whose loss or gradient is not finite changes nothing and is counted as `train/refused_steps`.

        Raises:
            NonFiniteError: too many refused in a row.
            DoesNotFitError: a single example does not fit the device's memory.
        """
        metrics, loss = self._accumulate(parts)
        norms = {
            role: float(nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
            for role, parameters in self._of_role.items()
        }
        norm = math.hypot(*norms.values())
        learning_rate = self.schedule.get_last_lr()[0]
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
            self._refused_in_a_row = 0
        else:
            self._refused_in_a_row += 1
            self.steps_refused += 1
            self._keep_for_repro(parts, loss, norm)
            if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
                raise NonFiniteError(
                    f"{MAX_REFUSED_IN_A_ROW} optimizer steps in a row had a loss or gradient that is not finite (loss "
                    f"{loss}, gradient norm {norm}); the roles are as before them. "
                    f"{self._advice(never_taken=self.steps_refused > self.steps_done)}"
                )
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        refused = {"train/refused_steps": 1.0} if self._refused_in_a_row else {}
        of_roles = {f"{role}/grad_norm": of_role for role, of_role in norms.items()} if len(norms) > 1 else {}
        return {
            **metrics.means(),
            **refused,
            **of_roles,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": float(learning_rate),
        }

    def require_a_step(self) -> None:
        """
        Raises:
            NonFiniteError: every step was refused, so that nothing was trained.
        """
        if self.steps_done and self.steps_refused == self.steps_done:
            raise NonFiniteError(
                f"nothing was trained: all {self.steps_done} optimizer steps had a loss or gradient that is not "
                f"finite. {self._advice(never_taken=True)}"
            )

    def _advice(self, *, never_taken: bool) -> str:
        if never_taken:  # then no learning rate has had a part in it
            return "No step was taken yet: look at the base's weights, the data and the reward for extreme values"
        return "Lower optimizer.learning_rate, or look at the data and the reward for extreme values"

    def _keep_for_repro(self, parts: Sequence[Part], loss: float, norm: float) -> None:
        """Writes the tokens of a refused step, and where they came from; the roles are as before it."""
        if self._repro_folder is None:
            return
        examples = [
            {
                "place": example.row.place if example.row else "",
                "prompt_ids": list(example.prompt_ids),
                "completions": [list(ids) for ids in example.completions],
            }
            for part, _ in parts
            for example in part
        ]
        said = {
            "optimizer_step": self.steps_done + 1,
            "loss": str(loss),
            "grad_norm": str(norm),
            "token_budget": self.token_budget,
            "seed": torch.initial_seed(),
            "examples": examples,
        }
        path = self._repro_folder / f"step-{self.steps_done + 1}.json"
        write_atomically(path, json.dumps(said) + "\n")
        say(
            f"warning: optimizer step {self.steps_done + 1} refused: loss {loss}, gradient norm {norm}; its examples "
            f"are in {path}"
        )

    def _accumulate(self, parts: Sequence[Part]) -> tuple[Averages, float]:
        loss: Tensor | None = None
        while True:
            metrics, total = Averages(), 0.0
            try:
                for examples, loss_function in parts:
                    mine = processes.share([example.num_tokens for example in examples])
                    split = split_to_fit(self._base, [examples[i] for i in mine], self.token_budget)
                    for indices in ([mine[i] for i in part] for part in split):
                        batch = lay_out(self._base, [examples[i] for i in indices])
                        with self._base.dropout() if self._dropout else nullcontext():
                            for loss in loss_function(batch, indices, metrics):
                                loss.backward()
                                total += float(loss.detach())
                processes.sum_gradients(self._parameters)
                found = processes.gather((metrics, total))
                return Averages.merged([part for part, _ in found]), sum(loss for _, loss in found)
            except torch.OutOfMemoryError as error:
                # From the start of the step: part of a gradient may have been added already.
                self.optimizer.zero_grad(set_to_none=True)
                loss = None  # else its graph would be held while the smaller microbatch runs
                torch.cuda.empty_cache()
                longest = max(example.num_tokens for examples, _ in parts for example in examples)
                if self.token_budget <= longest:
                    raise DoesNotFitError(
                        f"an example of {longest} tokens alone does not fit the device's memory; lower "
                        "data.max_prompt_tokens or data.max_completion_tokens, or set model.quantization: nf4"
                    ) from error
                self.token_budget = max(longest, self.token_budget // 2)
                say(f"out of memory: microbatches of {self.token_budget} tokens from here on; the result is the same")


def _rate(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """The learning rate as a share of its peak."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0
