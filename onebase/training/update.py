"""One optimizer step: microbatches, one normaliser, clipping, a check for NaN and infinity, the schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebase.engines.budget import TokenBudget
from onebase.engines.passes import lay_out
from onebase.errors import NonFiniteError
from onebase.files import write_atomically
from onebase.models.base import OneBase
from onebase.records import Example, TreeBatch
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.training.averages import Averages, on_host

MAX_REFUSED_IN_A_ROW = 5
"""Optimizer steps refused in a row for NaN or infinity before the run stops."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Args:
        role: the role they belong to. Gradients are clipped role by role, so no role's steps depend on another's scale.
    """

    parameters: list[nn.Parameter]
    learning_rate: float
    role: str = "policy"


LossFunction = Callable[[TreeBatch, list[int], Averages], Tensor]
"""`(batch, indices of its examples, where to note metrics) -> scalar`, which is run backward at once.

The scalar is the microbatch's share of the step's loss: divide sums by the count of the *whole* minibatch, so that the
sum over microbatches does not depend on the split. Give each role its own part, so that only one role's activations are
held.
"""

Part = tuple[Sequence[Example], LossFunction]
"""Examples and their loss."""


class Update:
    """AdamW over the roles that train.

    Args:
        dropout: whether training passes use adapter dropout. PPO must not: its ratios would be noise.
        total_steps: the run's optimizer steps, for a schedule that ends at 0.
        budget: how many tokens a microbatch may hold.
        repro_folder: where a refused step writes its examples, for inspection.
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
        budget: TokenBudget,
        repro_folder: Path | None = None,
    ) -> None:
        self._base, self._group, self.budget = base, base.group, budget
        self._repro_folder = repro_folder
        self._dropout = dropout
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
        """Optimizer steps so far, including refused ones."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "total_steps": self._total_steps,
            "refused_in_a_row": self._refused_in_a_row,
            "steps_refused": self.steps_refused,
            "steps_done": self.steps_done,
            "token_budget": self.budget.tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`; the token budget stays as configured now, as it changes no result.

        If the run has been extended, the remaining learning rates follow the longer schedule.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self._refused_in_a_row = state["refused_in_a_row"]
        self.steps_refused = state["steps_refused"]
        self.steps_done = state["steps_done"]
        if state["total_steps"] != self._total_steps:
            self._stretch(state["total_steps"])

    def _stretch(self, before: int) -> None:
        # The next step's rate was set by the schedule that ended earlier.
        rates = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, peak, rate in rates:
            group["lr"] = peak * rate(self.schedule.last_epoch)
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self._shape != "constant":
            kept = number_of(self.steps_done, "step keeps its learning rate", "steps keep the learning rates they had")
            say(
                f"the {self._shape} schedule now ends at step {self._total_steps} and not {before}: the first {kept}, "
                "the rest is recomputed"
            )

    def step(self, *parts: Part) -> dict[str, float]:
        """Takes one optimizer step on all examples of all parts.

        A part is examples and their loss: most steps have one, PPO with PTX has two. Returns the metrics noted, the
        gradient norm (also per role, if there are several) and the learning rate.

        A step whose loss or gradient is not finite changes nothing and is counted as `train/refused_steps`.

        Raises:
            NonFiniteError: too many steps in a row were refused.
            DoesNotFitError: a single example does not fit the device's memory.
        """
        longest = max(example.num_tokens for examples, _ in parts for example in examples)
        repeats = not self._base.is_spread
        forget = partial(self.optimizer.zero_grad, set_to_none=True)
        for attempt in self.budget.attempts(longest, forget=forget, can_repeat=repeats):
            metrics, losses = Averages(), []
            with attempt:
                for examples, loss_of in parts:
                    for indices, counts in self._microbatches(examples):
                        batch = lay_out(self._base, [examples[i] for i in indices])
                        with self._base.dropout() if self._dropout else nullcontext():
                            loss = loss_of(batch, indices, metrics if counts else Averages())
                            held = [loss if counts else loss * 0]
                            del loss
                            held[0].backward()
                        losses.append(held.pop().detach())
            held = []  # free the graph of a microbatch that did not fit before the next attempt
        self._group.sum_gradients(self._parameters)
        clipped = [nn.utils.clip_grad_norm_(parameters, self._max_grad_norm) for parameters in self._of_role.values()]
        norms = dict(zip(self._of_role, on_host(clipped), strict=True))  # where the host waits for a GPU, once a step
        found = self._group.gather((metrics.totals(), sum(on_host(losses))))
        loss = sum(share for _, share in found)
        norm = math.hypot(*norms.values())
        learning_rate = self.schedule.get_last_lr()[0]
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
            self._refused_in_a_row = 0
            for role in self._base.roles.values():
                role.version += role.trains
        else:
            self._refused_in_a_row += 1
            self.steps_refused += 1
            self._keep_for_repro(parts, loss, norm)
            if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
                raise NonFiniteError(
                    f"{MAX_REFUSED_IN_A_ROW} optimizer steps in a row had a loss or gradient that is not finite (loss "
                    f"{loss}, gradient norm {norm}); the roles are as before them",
                    remedy="never-finite" if self.steps_refused > self.steps_done else "not-finite",
                )
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        refused = {"train/refused_steps": 1.0} if self._refused_in_a_row else {}
        of_roles = {f"{role}/grad_norm": of_role for role, of_role in norms.items()} if len(norms) > 1 else {}
        return {
            **Averages.means_of(noted for noted, _ in found),
            **refused,
            **of_roles,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": float(learning_rate),
        }

    def _microbatches(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], bool]]:
        """This process's microbatches of a minibatch, as indices, and whether they count.

        Where the base is spread over several processes, each takes part in every pass of the others: one with fewer
        microbatches goes on with the shortest example, which then counts for nothing.
        """
        sizes = [example.num_tokens for example in examples]
        mine = self._group.share(sizes)
        own = [[mine[i] for i in some] for some in self.budget.split(self._base, [examples[i] for i in mine])]
        most = max(self._group.gather(len(own))) if self._base.is_spread else len(own)  # before the first pass
        yield from ((indices, True) for indices in own)
        yield from [([sizes.index(min(sizes))], False)] * (most - len(own))

    def require_a_step(self) -> None:
        """Checks that at least one step was taken.

        Raises:
            NonFiniteError: every step was refused, so nothing was trained.
        """
        if self.steps_done and self.steps_refused == self.steps_done:
            raise NonFiniteError(
                f"nothing was trained: all {number_of(self.steps_done, 'optimizer step')} had a loss or gradient "
                "that is not finite",
                remedy="never-finite",
            )

    def _keep_for_repro(self, parts: Sequence[Part], loss: float, norm: float) -> None:
        """Writes a refused step's tokens and where they came from; the roles are as before the step."""
        if self._repro_folder is None:
            return
        examples = [
            {
                "place": example.row.place if example.row else "",
                "prompt_ids": list(example.prompt_ids),
                "completions": [list(ids) for ids in example.completions],
            }
            for of_part, _ in parts
            for example in of_part
        ]
        said = {
            "optimizer_step": self.steps_done + 1,
            "loss": str(loss),
            "grad_norm": str(norm),
            "token_budget": self.budget.tokens,
            "seed": torch.initial_seed(),
            "examples": examples,
        }
        path = self._repro_folder / f"step-{self.steps_done + 1}.json"
        write_atomically(path, json.dumps(said) + "\n")
        say(
            f"warning: optimizer step {self.steps_done + 1} refused: loss {loss}, gradient norm {norm}; its examples "
            f"are in {path}"
        )


def _rate(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """The learning rate as a fraction of its peak."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0
