"""Sets up what scores completions: rules (verifiers and functions), which need no model, and learned rewards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from onebase.config.ppo_groups import OptionalRewardSourceGroup
from onebase.engines.budget import TokenBudget
from onebase.errors import ConfigError
from onebase.models.base import OneBase
from onebase.processes import ALONE, Group
from onebase.recipes.setup.verifiers import open_verifiers
from onebase.records import RewardSource, Row
from onebase.rewards.elsewhere import ElsewhereReward
from onebase.rewards.functions import FunctionReward
from onebase.rewards.learned import ClassifierReward, RoleReward
from onebase.rewards.verified import VerifiedReward, Weighted, check_gold
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.verifiers.verifier import Verifier


@dataclass(frozen=True, slots=True)
class Rules:
    """The rewards that need no model here: opened before anything slow, so that mistakes are reported at once."""

    function: FunctionReward | None
    verifiers: Sequence[Weighted]
    gold: str | None
    """The column with the right answer; None: the usual ones."""
    judge: FunctionReward | None = None
    group: Group = ALONE
    """The processes of the run; the first alone checks the gold answers."""
    elsewhere: ElsewhereReward | None = None

    def meet(self) -> None:
        """Finds the reward that is elsewhere, if one is configured, and says which weights it has.

        Raises:
            ConfigError, ModelError, UnansweredError: as `ElsewhereReward.meet`.
        """
        if self.elsewhere is not None:
            self.elsewhere.meet()
            say(f"reward: {self.elsewhere.fingerprint}")

    @property
    def record(self) -> dict[str, str]:
        """What a run's summary and checkpoints keep of a reward elsewhere: which weights scored."""
        return {} if self.elsewhere is None else {"reward": self.elsewhere.fingerprint}

    @property
    def judges(self) -> Mapping[str, RewardSource]:
        """The sources that only judge held-out completions, by name."""
        return {} if self.judge is None else {"judge": self.judge}

    def check(self, rows: Iterable[Row | None]) -> None:
        """Checks the rules against the rows they will score answers to.

        Raises:
            ConfigError: a function cannot be called with the rows' columns.
            DataError: a verifier does not accept a row's gold answer, or accepts a corrupted one.
        """
        rows = list(rows)
        columns = [row.columns if row else {} for row in rows]
        functions = [part.source for part in self.verifiers if isinstance(part.source, FunctionReward)]
        for function in filter(None, (self.function, self.judge, *functions)):
            function.check_columns(columns)
        verifiers = [cast(Verifier, part.source) for part in self.verifiers if part.source not in functions]
        given = [row for row in rows if row is not None]
        self.group.from_main(lambda: check_gold(verifiers, given, gold=self.gold))
        if deciding := [verifier.name for verifier in verifiers if verifier.decides]:
            say(
                f"{' and '.join(deciding)}: accepts the gold answers of all {number_of(len(given), 'row')}, and "
                "no corrupted one"
            )


def open_rules(
    reward: OptionalRewardSourceGroup,
    group: Group = ALONE,
    *,
    judge: str | None = None,
    judge_key: str = "evaluation.judge",
) -> Rules:
    """Opens the verifiers, and imports the reward function and the judge, if configured."""
    timeout = reward.timeout
    return Rules(
        None if reward.callable is None else FunctionReward(reward.callable, timeout=timeout, group=group),
        open_verifiers(
            reward.verifiers, allow_code_execution=reward.allow_code_execution, timeout=timeout, group=group
        ),
        reward.gold,
        None if judge is None else FunctionReward(judge, timeout=timeout, key=judge_key, group=group),
        group,
        None if reward.url is None else _elsewhere(reward, reward.url, group),
    )


def _elsewhere(reward: OptionalRewardSourceGroup, url: str, group: Group) -> ElsewhereReward:
    return ElsewhereReward(
        url,
        role=reward.url_role,
        key=secret_of(reward.url_key, "reward.url_key"),
        timeout=reward.timeout or 1e6,
        normalize=reward.normalize == "held_out",
        group=group,
    )


def secret_of(variable: str | None, key: str) -> str | None:
    """The value of an environment variable that a key of the config names.

    Raises:
        ConfigError: the environment has none of that name.
    """
    if variable is None:
        return None
    if not (value := os.environ.get(variable)):
        raise ConfigError(f"'{key}' = {variable}: the environment has no such variable, or it is empty; set it")
    return value


def open_reward_source(
    reward: OptionalRewardSourceGroup, rules: Rules, base: OneBase, budget: TokenBudget
) -> RewardSource:
    """The configured reward: the role, which is already on the base, a function, another model, a server, verifiers, or
    both."""
    learned: RewardSource | None = rules.function or rules.elsewhere
    if reward.role is not None:
        learned = RoleReward(base, "reward", budget=budget, normalize=reward.normalize == "held_out")
    elif reward.model is not None:
        learned = ClassifierReward(reward.model, device=base.device, group=base.group)
    if rules.verifiers:
        return VerifiedReward(
            rules.verifiers, learned=learned, learned_weight=reward.weight, gold=rules.gold, group=base.group
        )
    assert learned is not None, "the config names a source"
    return learned
