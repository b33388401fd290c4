"""The other side: transformers and PEFT doing the same as their users write it, on the same weights.

Padded rows, bfloat16 under autocast, eight rows at a time; PPO with three adapters on one base, so that neither side
holds a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.gpu.models import LOADS, random_pairs
from bench.gpu.ours import ALPHA, LEARNING_RATE, RANK

ROWS_AT_ONCE = 8


class Theirs:
    """A model with the adapters policy, reward and critic, and two scalar heads."""

    def __init__(self, model: PreTrainedModel, size: str) -> None:
        self.device, self.load = model.device, LOADS[size]
        self.pairs = random_pairs(size)
        self.prompts = [pair.prompt for pair in random_pairs(size, count=self.load.prompts, seed=1)]
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: Any = get_peft_model(model, lora, adapter_name="policy")
        for name in ("reward", "critic"):
            self.model.add_adapter(name, lora)
        hidden = model.config.hidden_size
        self.heads = {name: nn.Linear(hidden, 1, bias=False, device=self.device) for name in ("reward", "critic")}
        self.optimizers = {name: self._optimizer(name) for name in ("policy", "reward", "critic")}

    def stages(self) -> dict[str, Callable[[], int]]:
        return {"sft": self.sft, "reward": self.reward, "dpo": self.dpo, "ppo": self.ppo, "decode": self.decode}

    def unload(self) -> PreTrainedModel:
        """The model without adapters, as it was."""
        return self.model.unload()

    # -------------------------------------------------------------------------------------------------- training

    def sft(self) -> int:
        rows = [(pair.prompt, pair.chosen) for pair in self.pairs]
        with self._stepping("policy"):
            for some in self._split(rows):
                ids, mask, answer = self._pad(some)
                output = self.model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~answer, -100))
                (output.loss * len(some) / len(rows)).backward()
        return len(rows)

    def reward(self) -> int:
        with self._stepping("reward"):
            for some in self._split(self.pairs, ROWS_AT_ONCE // 2):
                rows = [(p.prompt, p.chosen) for p in some] + [(p.prompt, p.rejected) for p in some]
                chosen, rejected = self._scores(rows).chunk(2)
                (-F.logsigmoid(chosen - rejected).sum() / len(self.pairs)).backward()
        return len(self.pairs)

    def dpo(self) -> int:
        with self._stepping("policy"):
            for some in self._split(self.pairs, ROWS_AT_ONCE // 2):
                rows = [(p.prompt, p.chosen) for p in some] + [(p.prompt, p.rejected) for p in some]
                with torch.no_grad(), self.model.disable_adapter():
                    reference, answer = self._logprobs(rows)
                policy, _ = self._logprobs(rows)
                chosen, rejected = ((policy - reference) * answer).sum(1).chunk(2)
                (-F.logsigmoid(0.1 * (chosen - rejected)).sum() / len(self.pairs)).backward()
        return len(self.pairs)

    def ppo(self) -> int:
        """One rollout: sample, score, measure, and one epoch of four minibatches on policy and critic."""
        self.model.set_adapter("policy")
        completions = self._generate(self.load.new_tokens)
        rows = list(zip(self.prompts, completions, strict=True))
        with torch.no_grad(), self._autocast():
            scores, old, reference, values = [], [], [], []
            for some in self._split(rows):
                self.model.set_adapter("reward")
                scores.append(self._scores(some))
                self.model.set_adapter("critic")
                values.append(self._values(some))
                self.model.set_adapter("policy")
                old.append(self._logprobs(some)[0])
                with self.model.disable_adapter():
                    reference.append(self._logprobs(some)[0])
        for start in range(0, len(rows), max(ROWS_AT_ONCE, len(rows) // 4)):
            chosen = range(start, min(len(rows), start + max(ROWS_AT_ONCE, len(rows) // 4)))
            for role in ("policy", "critic"):
                with self._stepping(role):
                    for place in sorted({i // ROWS_AT_ONCE for i in chosen}):
                        some = rows[place * ROWS_AT_ONCE : (place + 1) * ROWS_AT_ONCE]
                        reward = scores[place][:, None] - 0.05 * (old[place] - reference[place])
                        advantage = reward - values[place]
                        if role == "critic":
                            loss = (self._values(some) - reward).square().mean()
                        else:
                            logprobs, answer = self._logprobs(some)
                            ratio = (logprobs - old[place]).exp()
                            worst = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
                            loss = (worst * answer).sum() / answer.sum()
                        loss.backward()
        return len(rows)

    def decode(self) -> int:
        self.model.set_adapter("policy")
        return sum(map(len, self._generate(4 * self.load.new_tokens)))

    # -------------------------------------------------------------------------------------------------- internal

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        own = [p for key, p in self.model.named_parameters() if f".{name}." in key]
        for parameter in own:
            parameter.requires_grad_(True)
        return torch.optim.AdamW(
            [*own, *(self.heads[name].parameters() if name in self.heads else [])], lr=LEARNING_RATE
        )

    @contextmanager
    def _stepping(self, role: str) -> Iterator[None]:
        """One optimizer step of a role over whatever runs backward inside."""
        self.model.set_adapter(role)
        with self._autocast():
            yield
        optimizer = self.optimizers[role]
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def _split(self, rows: Sequence[Any], count: int = ROWS_AT_ONCE) -> list[Sequence[Any]]:
        return [rows[start : start + count] for start in range(0, len(rows), count)]

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and which tokens are the answer's, `[R, C]`, padded on the right."""
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, answers = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, (prompt, answer) in enumerate(rows):
            length = len(prompt) + len(answer)
            ids[i, :length] = torch.tensor(prompt + answer)
            mask[i, :length] = 1
            answers[i, len(prompt) : length] = True
        return ids.to(self.device), mask.to(self.device), answers.to(self.device)

    def _logprobs(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """Each token's log-prob, and which tokens are the answer's: `[R, C - 1]`."""
        ids, mask, answer = self._pad(rows)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1), answer[:, 1:]

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def _scores(self, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        ids, mask, _ = self._pad(rows)
        last = mask.sum(1) - 1
        hidden = self._hidden(ids, mask)[torch.arange(len(rows), device=self.device), last]
        return self.heads["reward"](hidden.float()).squeeze(-1)

    def _values(self, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        ids, mask, _ = self._pad(rows)
        return self.heads["critic"](self._hidden(ids, mask)[:, :-1].float()).squeeze(-1)

    @torch.no_grad()
    def _generate(self, new_tokens: int) -> list[list[int]]:
        longest = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in self.prompts], device=self.device)
        with self._autocast():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=(ids != 0).long(),
                do_sample=True,
                top_k=0,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        return output[:, longest:].tolist()
