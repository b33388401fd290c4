"""The rollout that `trl_rl.py` and `tests/recipes/test_trl_rl_parity.py` compare: prompts, completions and scores.

The model is that of `model.py`. The policy that sampled is its adapter at a smaller size, as if the update had moved it
since: ratios are not 1, and clips bite.
"""

from __future__ import annotations

from bench.parity.model import END, words

NUM_PER_PROMPT = 4
"""Completions of each prompt (K)."""
MAX_NEW_TOKENS = 8
TRAINED, SAMPLED = 0.18, 0.15
"""Sizes of the adapter's weights: of the policy that trains, and of the one that sampled."""
STARTS = ((0, 5), (20, 3), (40, 8), (60, 1))
"""Where the words of a prompt start, and its tokens."""
LENGTHS = ((6, 3, 8, 5), (8, 2, 4, 7), (1, 5, 3, 8), (2, 6, 8, 4))
"""Tokens of each completion, end token included; those of `MAX_NEW_TOKENS` have none."""
SCORES = ((1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.25, 1.0, -0.5, 0.7))
"""The second and the third prompt's scores are all equal: these groups have no advantages."""


def prompts() -> list[list[int]]:
    """Returns the ids of each prompt."""
    return [words(start, count) for start, count in STARTS]


def completions() -> list[list[list[int]]]:
    """Returns the ids of each prompt's completions."""
    return [
        [completion(start + 11 + 7 * k, length) for k, length in enumerate(lengths)]
        for (start, _), lengths in zip(STARTS, LENGTHS, strict=True)
    ]


def completion(start: int, length: int) -> list[int]:
    return words(start, length) if length == MAX_NEW_TOKENS else [*words(start, length - 1), END]
