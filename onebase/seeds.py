"""Seeds for every draw, each a pure function of the run's seed and of what is drawn.

No generator lives from step to step, so a resumed run needs only the step number.

| drawn                                  | seed                                                |
| -------------------------------------- | --------------------------------------------------- |
| the order of an epoch                  | `mixed_seed("order", seed, epoch)`                  |
| the order of a PPO epoch on a rollout  | the same, with `rollout_seed(seed, rollout)`        |
| comparisons of a ranked list           | `comparison_seed(seed, step, example)`               |
| a rollout's length limit               | `mixed_seed("length", seed, rollout)`               |
| a round of `iterate`                   | `mixed_seed("round", seed, round)`                  |
| the tokens of a sample                 | `sample_seeds(seed, ..., stream=...)`               |
"""

from __future__ import annotations

import hashlib


def mixed_seed(stream: str, *numbers: int) -> int:
    """A seed below 2**32 that depends on every bit of the numbers: torch's CPU generator reads only the low 32 bits.

    Args:
        stream: names what is drawn, so that different uses of the same numbers get different seeds.
    """
    name = "/".join([stream, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def rollout_seed(seed: int, rollout: int) -> int:
    """The seed for draws within one rollout."""
    return seed * 1_000_003 + rollout


def comparison_seed(seed: int, step: int, example: int) -> int:
    """The seed for the comparisons drawn from a ranked list at one visit."""
    return _hashed(f"{seed}/{step}/{example}")


def sample_seeds(seed: int, *, num_prompts: int, samples_per_prompt: int, stream: str = "") -> list[int]:
    """One seed per sample, prompt by prompt: a pure function of `(seed, stream, prompt, sample)`."""
    return [_hashed(f"{seed}/{stream}/{p}/{k}") for p in range(num_prompts) for k in range(samples_per_prompt)]


def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
