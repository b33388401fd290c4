from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.tree import build_tree_batch, separate
from onebase.models.forward import logprobs_and_entropy, token_logprobs, token_values
from onebase.models.one_base import OneBase
from onebase.records import Example, Message, Row, ScoreRequest
from onebase.rewards.functions import FunctionReward
from onebase.rollouts.collect import Rollout, collect_rollout, score_request, trees
from onebase.sampling.local import Sampling, sample_seeds
from tests.tiny_models import EOS, add_adapter_role, disturb, tiny_base, tiny_tokenizer

K = 3


class LengthReward:
    """Scores by the number of tokens, and keeps what it was asked."""

    name = "length"

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []

    def score(self, request: ScoreRequest) -> Tensor:
        self.requests.append(request)
        return torch.tensor([float(len(ids)) for example in request.examples for ids in example.completions])


def ppo_base(layout: str = "tree") -> tuple[OneBase, ChatFormat]:
    one = tiny_base("llama", layout=layout)
    add_adapter_role(one, "policy")
    one.add_role("reference", copy_of="policy")
    add_adapter_role(one, "critic", head=True, seed=8)
    return one, chat_format(one.tokenizer, "plain")


def prompts() -> list[Example]:
    """Of different lengths, so that the batches are in another order than the prompts."""
    words, tokenizer = ["one", "two two two", "three three three three", "4"], tiny_tokenizer()
    return [
        Example(
            [1, *tokenizer.encode(word, add_special_tokens=False)],
            [],
            row=Row((Message("user", word),), columns={"word": word, "number": i, "only": 1} | ({} if i else {"x": 0})),
        )
        for i, word in enumerate(words)
    ]


def collect(
    one: OneBase,
    chat: ChatFormat,
    *,
    temperature: float = 0.8,
    token_budget: int = 70,
    critic: str | None = "critic",
    source: LengthReward | FunctionReward | None = None,
    seed: int = 0,
    max_new_tokens: int = 10,
) -> Rollout:
    # Half of the vocabulary ends a completion, so that their lengths differ.
    stop = (EOS, *range(3, 30))
    return collect_rollout(
        one,
        chat,
        prompts(),
        source or LengthReward(),
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stop),
        seeds=sample_seeds(seed, num_prompts=4, samples_per_prompt=K),
        samples_per_prompt=K,
        token_budget=token_budget,
        critic=critic,
    )


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("token_budget", [1, 70, 4096])
def test_everything_measured_is_what_a_separate_computation_gives(layout: str, token_budget: int) -> None:
    one, chat = ppo_base(layout)
    disturb(one, "policy", seed=20, size=0.02)
    rollout = collect(one, chat, token_budget=token_budget)
    assert len(rollout.examples) == 4 and len(rollout.samples) == 4 * K
    assert len(set(rollout.completion_lengths)) > 2
    for p, example in enumerate(rollout.examples):
        samples = rollout.samples[p * K : (p + 1) * K]
        assert example.completions == [sample.ids for sample in samples] and example.grades is None
        batch = build_tree_batch(separate([example]))
        logprobs, entropy = logprobs_and_entropy(one, batch, role="policy", temperature=0.8)
        for found, expected in (
            (rollout.logprobs[p], logprobs),
            (rollout.entropy[p], entropy),
            (rollout.reference_logprobs[p], token_logprobs(one, batch, role="reference", temperature=0.8)),
            (rollout.values[p], token_values(one, batch, role="critic")),
        ):
            assert found.shape == (sum(map(len, example.completions)),) and not found.requires_grad
            torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)
    assert set(rollout.seconds) == {"generate", "score", "logprobs"} and min(rollout.seconds.values()) >= 0


def test_the_log_probabilities_of_decoding_differ_by_rounding_alone() -> None:
    rollout = collect(*ppo_base())
    difference = rollout.sampled_logprobs - torch.cat(rollout.logprobs)
    assert difference.abs().max() < 1e-4 and rollout.sampled_logprobs.min() < -1


def test_the_reference_is_the_policy_until_the_policy_moves() -> None:
    one, chat = ppo_base()
    before = collect(one, chat)
    torch.testing.assert_close(torch.cat(before.logprobs), torch.cat(before.reference_logprobs), rtol=0, atol=1e-6)
    disturb(one, "policy", seed=20, size=0.05)
    after = collect(one, chat)
    assert (torch.cat(after.logprobs) - torch.cat(after.reference_logprobs)).abs().max() > 0.01


def test_values_are_zero_without_a_critic() -> None:
    rollout = collect(*ppo_base(), critic=None)
    assert [v.shape for v in rollout.values] == [lp.shape for lp in rollout.logprobs]
    assert not torch.cat(rollout.values).any()


def test_greedy_samples_are_measured_at_temperature_one_as_decoding_does() -> None:
    one, chat = ppo_base()
    rollout = collect(one, chat, temperature=0.0)
    torch.testing.assert_close(rollout.sampled_logprobs, torch.cat(rollout.logprobs), rtol=0, atol=1e-4)
    assert torch.cat(rollout.entropy).isfinite().all() and torch.cat(rollout.reference_logprobs).isfinite().all()


def test_every_token_knows_its_completion_over_the_whole_rollout() -> None:
    rollout = collect(*ppo_base())
    index = rollout.completion_index
    expected = [i for i, sample in enumerate(rollout.samples) for _ in sample.ids]
    assert index.tolist() == expected and len(index) == len(torch.cat(rollout.logprobs))
    by_hand = Rollout(
        examples=[],
        samples=rollout.samples[:1] + rollout.samples[4:5],
        logprobs=[],
        entropy=[],
        reference_logprobs=[],
        values=[],
        scores=torch.zeros(2),
    )
    first, second = by_hand.completion_lengths
    assert by_hand.completion_index.tolist() == [0] * first + [1] * second


def test_the_same_seeds_give_the_same_rollout_and_others_another() -> None:
    one, chat = ppo_base()
    first, again, other = collect(one, chat), collect(one, chat, token_budget=1), collect(one, chat, seed=1)
    assert [s.ids for s in first.samples] == [s.ids for s in again.samples] != [s.ids for s in other.samples]


def test_collecting_leaves_no_gradient_and_no_role_in_force() -> None:
    one, chat = ppo_base()
    collect(one, chat)
    assert one.active is None
    assert all(p.requires_grad and p.grad is None for name in ("policy", "critic") for p in one.parameters(name))


def test_a_source_is_asked_once_with_k_completions_of_every_prompt() -> None:
    source = LengthReward()
    one, chat = ppo_base()
    rollout = collect(one, chat, source=source)
    (request,) = source.requests
    words = [example.row.columns["word"] for example in prompts() if example.row]
    assert list(request.prompts) == [word for word in words for _ in range(K)]
    assert list(request.completions) == [chat.decode(sample.ids) for sample in rollout.samples]
    assert dict(request.columns) == {
        "word": [word for word in words for _ in range(K)],
        "number": [i for i in range(4) for _ in range(K)],
        "only": [1] * 4 * K,
    }  # and not `x`, which one row alone has
    assert rollout.scores.tolist() == [float(length) for length in rollout.completion_lengths]


def test_a_function_of_ones_own_scores_the_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollout_rewards.py").write_text(
        "calls = []\n"
        "def score(prompts, completions, word, number, **others):\n"
        "    calls.append((prompts, completions, word, number, others))\n"
        "    return [100 * n + len(c) for n, c in zip(number, completions)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    one, chat = ppo_base()
    rollout = collect(one, chat, source=FunctionReward("rollout_rewards:score"))
    (call,) = sys.modules["rollout_rewards"].calls
    completions = [chat.decode(sample.ids) for sample in rollout.samples]
    words = [word for word in ("one", "two two two", "three three three three", "4") for _ in range(K)]
    assert call == (words, completions, words, [i for i in range(4) for _ in range(K)], {"only": [1] * 4 * K})
    assert rollout.scores.tolist() == [100.0 * (i // K) + len(text) for i, text in enumerate(completions)]


def test_rows_without_columns_give_none_and_special_tokens_are_no_text() -> None:
    chat = chat_format(tiny_base("llama").tokenizer, "plain")
    example = Example([1, 68, 69], [[70, 2], [71]])
    request = score_request(chat, [example, Example([1, 72], [[73]], row=Row((), columns={"a": 1}))])
    assert list(request.prompts) == [chat.decode([68, 69])] * 2 + [chat.decode([72])]
    assert list(request.completions) == [chat.decode([70]), chat.decode([71]), chat.decode([73])]
    assert dict(request.columns) == {} and len(chat.decode([70])) == 1
    assert dict(score_request(chat, []).columns) == {}


def test_samples_go_to_their_own_prompts() -> None:
    one, chat = ppo_base()
    rollout = collect(one, chat)
    again = trees(prompts(), rollout.samples)
    assert [example.completions for example in again] == [example.completions for example in rollout.examples]
    assert [example.prompt_ids for example in again] == [example.prompt_ids for example in prompts()]
    assert [example.row for example in again] == [example.row for example in prompts()]
