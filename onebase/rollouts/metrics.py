"""What is logged about a rollout: what was sampled, how it scored, where the time went."""

from __future__ import annotations

import torch

from onebase.rollouts.collect import Rollout


def describe(rollout: Rollout) -> dict[str, float]:
    """A scored rollout's metrics."""
    scores = rollout.scores
    assert scores is not None
    count, lengths = len(rollout.samples), torch.tensor(rollout.completion_lengths, dtype=torch.float32)
    together = torch.corrcoef(torch.stack([scores.total, lengths]))[0, 1] if count > 1 else torch.nan
    return {
        "objective/scores": float(scores.total.mean()),
        "objective/scores_std": float(scores.total.std(unbiased=False)),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/num_tokens": float(lengths.sum()),
        "completions/score_length_correlation": float(together),
        "completions/ended": sum(sample.ended for sample in rollout.samples) / count,
        **{f"rewards/{name}/mean": float(own.mean()) for name, own in scores.parts.items()},
        **({} if scores.right is None else {"rewards/right": float(scores.right.float().mean())}),
        **({} if scores.right is None and not scores.failures else {"rewards/failed": len(scores.failures) / count}),
        **{f"perf/{name}_seconds": seconds for name, seconds in rollout.seconds.items()},
    }
