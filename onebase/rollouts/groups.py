"""Groups of a rollout, the K completions of one prompt: which differ in score, and several rollouts as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.records import ScoreRequest, Scores
from onebase.rollouts.collect import Rollout
from onebase.sampling.sampler import Sample


def differing_groups(scores: Tensor, num_per_prompt: int) -> list[int]:
    """The groups whose scores are not all equal: the others teach nothing by comparison.

    Args:
        scores: `[N]`, the completions of a prompt next to each other.
        num_per_prompt: K.
    """
    groups = scores.view(-1, num_per_prompt)
    return (groups != groups[:, :1]).any(1).nonzero().flatten().tolist()


def distinct_share(samples: Sequence[Sample], num_per_prompt: int) -> float:
    """How many of a prompt's completions differ from each other, as a share of K, averaged over prompts.

    1 / K: all are the same; 1: no two are. It falls as a policy becomes sure of its answers.
    """
    groups = [samples[start : start + num_per_prompt] for start in range(0, len(samples), num_per_prompt)]
    return sum(len({tuple(sample.ids) for sample in group}) for group in groups) / len(samples)


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Several scored rollouts, not yet measured, as one; seconds are summed."""
    samples: list[Sample] = []
    failures: dict[int, str] = {}
    notes: dict[int, str] = {}
    count = 0
    for rollout in rollouts:
        assert rollout.scores is not None and rollout.measured is None
        failures |= {count + i: why for i, why in rollout.scores.failures.items()}
        notes |= {count + i: note for i, note in rollout.scores.notes.items()}
        samples += rollout.samples
        count += len(rollout.samples)
    scores = [rollout.scores for rollout in rollouts if rollout.scores is not None]
    rights = [each.right for each in scores if each.right is not None]
    answers = [each.answers for each in scores if each.answers is not None]
    parts = {name: torch.cat([each.parts[name] for each in scores]) for name in scores[0].parts}
    return Rollout(
        examples=[example for rollout in rollouts for example in rollout.examples],
        samples=samples,
        request=_joined_requests([rollout.request for rollout in rollouts]),
        scores=Scores(
            torch.cat([each.total for each in scores]),
            parts,
            failures,
            torch.cat(rights) if rights else None,
            [answer for each in answers for answer in each] if answers else None,
            notes,
        ),
        seconds={name: sum(rollout.seconds[name] for rollout in rollouts) for name in rollouts[0].seconds},
    )


def only_groups(rollout: Rollout, groups: Sequence[int], num_per_prompt: int) -> Rollout:
    """The rollout, not yet measured, with only these groups."""
    chosen = [group * num_per_prompt + k for group in groups for k in range(num_per_prompt)]
    request = rollout.request
    return Rollout(
        examples=[rollout.examples[group] for group in groups],
        samples=[replace(rollout.samples[i], prompt=new // num_per_prompt) for new, i in enumerate(chosen)],
        request=ScoreRequest(
            [rollout.examples[group] for group in groups],
            [request.prompts[i] for i in chosen],
            [request.completions[i] for i in chosen],
            {name: [values[i] for i in chosen] for name, values in request.columns.items()},
        ),
        scores=None if rollout.scores is None else rollout.scores.only(chosen),
        seconds=dict(rollout.seconds),
    )


def _joined_requests(requests: Sequence[ScoreRequest]) -> ScoreRequest:
    shared = set.intersection(*(set(request.columns) for request in requests))
    return ScoreRequest(
        [example for request in requests for example in request.examples],
        [prompt for request in requests for prompt in request.prompts],
        [completion for request in requests for completion in request.completions],
        {name: [value for request in requests for value in request.columns[name]] for name in sorted(shared)},
    )
