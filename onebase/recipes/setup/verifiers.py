"""Opens configured verifiers: from their options to objects that check a completion."""

from __future__ import annotations

from collections.abc import Sequence

from onebase.config.verifiers import FunctionGroup, VerifierGroup
from onebase.errors import ConfigError
from onebase.processes import ALONE, Group
from onebase.rewards.functions import FunctionReward
from onebase.rewards.verified import Weighted
from onebase.runs.progress import say
from onebase.verifiers.sandbox import missing_layers
from onebase.verifiers.table import VERIFIERS


def open_verifiers(
    options: Sequence[VerifierGroup],
    *,
    allow_code_execution: bool = False,
    timeout: float | None = 600.0,
    key: str = "reward.verifiers",
    group: Group = ALONE,
) -> list[Weighted]:
    """The verifiers with these options, in order, each with its weight. Says what the sandbox lacks on this system.

    Args:
        allow_code_execution: leave to run what a policy wrote.
        timeout: seconds that a Python function may take; None for no limit.
        key: what messages about a Python function call it.
        group: the processes of the run; the first alone calls Python functions.

    Raises:
        ConfigError: a verifier runs code without leave, or where no sandbox starts, or a Python function cannot be
            imported.
        MissingExtraError: a verifier needs a package that is not installed.
    """
    opened: list[Weighted] = []
    runs_code = False
    for given in options:
        if isinstance(given, FunctionGroup):
            source = FunctionReward(given.name, timeout=timeout, key=key, group=group)
            opened.append(Weighted(source, given.weight))
            continue
        own = given.options
        if given.name == "code":
            if not allow_code_execution:
                raise ConfigError("the verifier code runs programs that the model writes", remedy="code-not-allowed")
            own["allowed"] = runs_code = True
        opened.append(Weighted(VERIFIERS[given.name](**own), given.weight))
    for line in missing_layers() if runs_code else []:
        say(f"the sandbox of the verifier code lacks {line}")
    return opened
