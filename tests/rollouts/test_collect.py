from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.tree import build_tree_batch, separate
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import logprobs_and_entropy, token_logprobs, token_values
from onebase.models.base import OneBase
from onebase.records import Example, Message, Prompt, RewardSource, Row, ScoreRequest, Scores
from onebase.rewards.functions import FunctionReward
from onebase.rollouts.collect import Measured, Roles, Rollout, collect, score_request, with_samples
from onebase.rollouts.metrics import describe
from onebase.sampling.local import LocalSampler
from onebase.sampling.sampler import Sample, Sampling
from onebase.seeds import sample_seeds
from tests.tiny_models import EOS, add_adapter_role, disturb, tiny_base, tiny_tokenizer

K = 3


class LengthReward:
    """Scores by the number of tokens, and keeps what it was asked."""

    name = "length"

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []

    def score(self, request: ScoreRequest) -> Scores:
        self.requests.append(request)
        return Scores(torch.tensor([float(len(ids)) for e in request.examples for ids in e.completions]))


EVERY_ROLE, LENGTH = Roles("policy", "reference", "critic"), LengthReward()


def ppo_base(layout: str = "tree") -> tuple[OneBase, ChatFormat]:
    base = tiny_base("llama", layout=layout)
    add_adapter_role(base, "policy")
    base.add_role("reference", copy_of="policy")
    add_adapter_role(base, "critic", head=True, seed=8)
    return base, chat_format(base.tokenizer, "plain")


def prompts() -> list[Prompt]:
    """Of different lengths, so that the batches are in another order than the prompts."""
    words, tokenizer = ["one", "two two two", "three three three three", "4"], tiny_tokenizer()
    return [
        Prompt(
            [1, *tokenizer.encode(word, add_special_tokens=False)],
            Row((Message("user", word),), columns={"word": word, "number": i, "only": 1} | ({} if i else {"x": 0})),
        )
        for i, word in enumerate(words)
    ]


def collected(
    base: OneBase,
    chat: ChatFormat,
    *,
    temperature: float = 0.8,
    token_budget: int = 70,
    roles: Roles | None = EVERY_ROLE,
    source: RewardSource | None = LENGTH,
    seed: int = 0,
    max_new_tokens: int = 10,
) -> Rollout:
    # Half of the vocabulary ends a completion, so that their lengths differ.
    stop = (EOS, *range(3, 30))
    return collect(
        base,
        chat,
        prompts(),
        sampler=LocalSampler(base, "policy"),
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stop),
        seeds=sample_seeds(seed, num_prompts=4, samples_per_prompt=K),
        samples_per_prompt=K,
        budget=TokenBudget(token_budget),
        reward=source,
        roles=roles,
    )


def scores_of(rollout: Rollout) -> list[float]:
    assert rollout.scores is not None
    return rollout.scores.total.tolist()


def measured(rollout: Rollout) -> Measured:
    assert rollout.measured is not None
    return rollout.measured


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("token_budget", [1, 70, 4096])
def test_everything_measured_is_what_a_separate_computation_gives(layout: str, token_budget: int) -> None:
    base, chat = ppo_base(layout)
    disturb(base, "policy", seed=20, size=0.02)
    rollout = collected(base, chat, token_budget=token_budget)
    assert len(rollout.examples) == 4 and len(rollout.samples) == 4 * K
    assert len(set(rollout.completion_lengths)) > 2
    reference, values = measured(rollout).reference_logprobs, measured(rollout).values
    assert reference is not None and values is not None
    for p, example in enumerate(rollout.examples):
        samples = rollout.samples[p * K : (p + 1) * K]
        assert example.completions == [sample.ids for sample in samples] and example.grades is None
        batch = build_tree_batch(separate([example]))
        logprobs, entropy = logprobs_and_entropy(base, batch, role="policy", temperature=0.8)
        for found, expected in (
            (measured(rollout).logprobs[p], logprobs),
            (measured(rollout).entropy[p], entropy),
            (reference[p], token_logprobs(base, batch, role="reference", temperature=0.8)),
            (values[p], token_values(base, batch, role="critic")),
        ):
            assert found.shape == (sum(map(len, example.completions)),) and not found.requires_grad
            torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)
    assert set(rollout.seconds) == {"generate", "score", "logprobs"} and min(rollout.seconds.values()) >= 0


def test_the_log_probabilities_of_decoding_differ_by_rounding_alone() -> None:
    rollout = collected(*ppo_base())
    difference = rollout.sampled_logprobs - torch.cat(measured(rollout).logprobs)
    assert difference.abs().max() < 1e-4 and rollout.sampled_logprobs.min() < -1


def test_the_reference_is_the_policy_until_the_policy_moves() -> None:
    base, chat = ppo_base()
    before = collected(base, chat)
    torch.testing.assert_close(
        torch.cat(measured(before).logprobs), torch.cat(measured(before).reference_logprobs), rtol=0, atol=1e-6
    )
    disturb(base, "policy", seed=20, size=0.05)
    after = collected(base, chat)
    assert (torch.cat(measured(after).logprobs) - torch.cat(measured(after).reference_logprobs)).abs().max() > 0.01


def test_what_nobody_asks_for_is_not_measured() -> None:
    base, chat = ppo_base()
    alone = collected(base, chat, roles=Roles("policy"))
    assert measured(alone).reference_logprobs is None and measured(alone).values is None
    whole = collected(base, chat)
    for found, expected in zip(measured(alone).logprobs, measured(whole).logprobs, strict=True):
        assert torch.equal(found, expected)
    sampled = collected(base, chat, roles=None, source=None)
    assert sampled.measured is None and sampled.scores is None
    assert [sample.ids for sample in sampled.samples] == [sample.ids for sample in whole.samples]
    assert list(sampled.request.completions) == list(whole.request.completions)


def test_a_critic_on_the_policys_trunk_reads_the_policys_states() -> None:
    base, chat = ppo_base()
    head = base.share_adapter("head", with_role="policy").head
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(4))
    rollout = collected(base, chat, roles=Roles("policy", critic="head"))
    values = measured(rollout).values
    assert values is not None
    for example, found in zip(rollout.examples, values, strict=True):
        expected = token_values(base, build_tree_batch([example]), role="head").detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_trees_of_a_rollout_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, chat = ppo_base()
    rollout = collected(base, chat)
    monkeypatch.setattr("onebase.data.tree.lay", lambda *_: pytest.fail("laid out again"))
    assert len(build_tree_batch(rollout.examples).targets) == sum(rollout.completion_lengths)


def test_a_sample_names_the_weights_it_was_drawn_with() -> None:
    base, chat = ppo_base()
    before = collected(base, chat, roles=None, source=None)
    base.set_adapter_weights("policy", base.adapter_weights("policy"))
    after = collected(base, chat, roles=None, source=None)
    assert {sample.version for sample in before.samples} == {0}
    assert {sample.version for sample in after.samples} == {1}


class Canned:
    """A sampler that always answers the same."""

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int], samples_per_prompt: int = 1
    ) -> list[Sample]:
        return [
            Sample(prompt=p, ids=[40 + k, EOS], logprobs=[-1.0, -2.0], ended=True)
            for p in range(len(prompts))
            for k in range(samples_per_prompt)
        ]


def test_any_sampler_will_do() -> None:
    base, chat = ppo_base()
    rollout = collect(
        base,
        chat,
        prompts(),
        sampler=Canned(),
        sampling=Sampling(2),
        seeds=[0] * 8,
        samples_per_prompt=2,
        budget=TokenBudget(70),
        reward=LengthReward(),
        roles=Roles("policy", "reference"),
    )
    assert [example.completions for example in rollout.examples] == [[[40, EOS], [41, EOS]]] * 4
    assert scores_of(rollout) == [2.0] * 8 and rollout.sampled_logprobs.tolist() == [-1.0, -2.0] * 8


def test_greedy_samples_are_measured_at_temperature_one_as_decoding_does() -> None:
    base, chat = ppo_base()
    rollout = collected(base, chat, temperature=0.0)
    torch.testing.assert_close(rollout.sampled_logprobs, torch.cat(measured(rollout).logprobs), rtol=0, atol=1e-4)
    assert (
        torch.cat(measured(rollout).entropy).isfinite().all()
        and torch.cat(measured(rollout).reference_logprobs).isfinite().all()
    )


def test_every_token_knows_its_completion_over_the_whole_rollout() -> None:
    rollout = collected(*ppo_base())
    index = rollout.completion_index
    expected = [i for i, sample in enumerate(rollout.samples) for _ in sample.ids]
    assert index.tolist() == expected and len(index) == len(torch.cat(measured(rollout).logprobs))
    by_hand = replace(rollout, samples=rollout.samples[:1] + rollout.samples[4:5])
    first, second = by_hand.completion_lengths
    assert by_hand.completion_index.tolist() == [0] * first + [1] * second


def test_the_same_seeds_give_the_same_rollout_and_others_another() -> None:
    base, chat = ppo_base()
    first, again, other = collected(base, chat), collected(base, chat, token_budget=1), collected(base, chat, seed=1)
    assert [s.ids for s in first.samples] == [s.ids for s in again.samples] != [s.ids for s in other.samples]


def test_collecting_leaves_no_gradient_and_no_role_in_force() -> None:
    base, chat = ppo_base()
    collected(base, chat)
    assert base.active is None
    assert all(p.requires_grad and p.grad is None for name in ("policy", "critic") for p in base.parameters(name))


def test_a_source_is_asked_once_with_k_completions_of_every_prompt() -> None:
    source = LengthReward()
    base, chat = ppo_base()
    rollout = collected(base, chat, source=source)
    (request,) = source.requests
    words = [example.row.columns["word"] for example in prompts() if example.row]
    assert list(request.prompts) == [word for word in words for _ in range(K)]
    assert list(request.completions) == [chat.decode(sample.ids) for sample in rollout.samples]
    assert dict(request.columns) == {
        "word": [word for word in words for _ in range(K)],
        "number": [i for i in range(4) for _ in range(K)],
        "only": [1] * 4 * K,
    }  # and not `x`, which base row alone has
    assert scores_of(rollout) == [float(length) for length in rollout.completion_lengths]


def test_a_function_of_ones_own_scores_the_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollout_rewards.py").write_text(
        "calls = []\n"
        "def score(prompts, completions, word, number, **others):\n"
        "    calls.append((prompts, completions, word, number, others))\n"
        "    return [100 * n + len(c) for n, c in zip(number, completions)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    base, chat = ppo_base()
    rollout = collected(base, chat, source=FunctionReward("rollout_rewards:score"))
    (call,) = sys.modules["rollout_rewards"].calls
    completions = [chat.decode(sample.ids) for sample in rollout.samples]
    words = [word for word in ("one", "two two two", "three three three three", "4") for _ in range(K)]
    assert call == (words, completions, words, [i for i in range(4) for _ in range(K)], {"only": [1] * 4 * K})
    assert scores_of(rollout) == [100.0 * (i // K) + len(text) for i, text in enumerate(completions)]


def test_rows_without_columns_give_none_and_special_tokens_are_no_text() -> None:
    chat = chat_format(tiny_base("llama").tokenizer, "plain")
    example = Example([1, 68, 69], [[70, 2], [71]])
    request = score_request(chat, [example, Example([1, 72], [[73]], row=Row((), columns={"a": 1}))])
    assert list(request.prompts) == [chat.decode([68, 69])] * 2 + [chat.decode([72])]
    assert list(request.completions) == [chat.decode([70]), chat.decode([71]), chat.decode([73])]
    assert dict(request.columns) == {} and len(chat.decode([70])) == 1
    assert dict(score_request(chat, []).columns) == {}


def test_samples_go_to_their_own_prompts() -> None:
    base, chat = ppo_base()
    rollout = collected(base, chat)
    again = with_samples(prompts(), rollout.samples)
    assert [example.completions for example in again] == [example.completions for example in rollout.examples]
    assert [example.prompt_ids for example in again] == [prompt.ids for prompt in prompts()]
    assert [example.row for example in again] == [example.row for example in prompts()]


def test_what_could_not_be_checked_is_logged_even_where_that_is_nothing() -> None:
    samples = [Sample(0, [5], [0.0], ended=True), Sample(0, [6, 7], [0.0, 0.0], ended=False)]
    examples = [Example([1], [sample.ids for sample in samples])]
    total, right = torch.tensor([1.0, 0.0]), torch.tensor([True, False])

    def failed(scores: Scores) -> float | None:
        request = ScoreRequest(examples, ["a", "a"], ["4", "5"])
        return describe(Rollout(examples, samples, request, scores)).get("rewards/failed")

    assert failed(Scores(total, right=right)) == 0
    assert failed(Scores(total, {}, {1: "out of memory"}, right)) == 0.5
    assert failed(Scores(total, {}, {1: "nothing to judge"})) == 0.5
    assert failed(Scores(total)) is None
