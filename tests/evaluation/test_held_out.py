from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from onebase.data.chat import ChatFormat, chat_format
from onebase.evaluation.held_out import HeldOut, evaluate_role, improvement
from onebase.models.forward import logprobs_and_entropy, token_logprobs
from onebase.models.one_base import OneBase
from onebase.models.passes import lay_out
from onebase.records import Example, Message, RewardSource, Row, ScoreRequest
from onebase.reporting.intervals import bootstrap_mean, paired_bootstrap
from onebase.sampling.local import Sampling, generate, sample_seeds
from tests.tiny_models import EOS, add_adapter_role, tiny_base, tiny_tokenizer

WORDS = ["one", "two two two", "three three three", "4", "five"]
STOP = (EOS, *range(3, 30))


class CharacterReward:
    """Scores by the characters of the completion, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.name, self.factor = "characters", factor

    def score(self, request: ScoreRequest) -> Tensor:
        return torch.tensor([self.factor * len(text) for text in request.completions])


def base_with_roles(layout: str = "tree") -> tuple[OneBase, ChatFormat]:
    one = tiny_base("llama", layout=layout)
    add_adapter_role(one, "policy")
    one.add_role("reference")
    return one, chat_format(one.tokenizer, "plain")


def prompts() -> list[Example]:
    tokenizer = tiny_tokenizer()
    return [
        Example([1, *tokenizer.encode(word, add_special_tokens=False)], [], row=Row((Message("user", word),)))
        for word in WORDS
    ]


def evaluated(
    one: OneBase,
    chat: ChatFormat,
    *,
    role: str = "policy",
    seed: int = 0,
    temperature: float = 0.9,
    k: int = 3,
    token_budget: int = 80,
    judges: Mapping[str, RewardSource] | None = None,
    stop: tuple[int, ...] = STOP,
) -> HeldOut:
    return evaluate_role(
        one,
        chat,
        prompts(),
        CharacterReward(),
        role=role,
        reference="reference",
        sampling=Sampling(max_new_tokens=8, temperature=temperature, stop_ids=stop),
        samples_per_prompt=k,
        seed=seed,
        token_budget=token_budget,
        judges=judges,
    )


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_every_figure_is_what_a_separate_computation_gives(layout: str) -> None:
    one, chat = base_with_roles(layout)
    found = evaluated(one, chat, judges={"doubled": CharacterReward(2.0)})
    seeds = sample_seeds(0, num_prompts=5, samples_per_prompt=3, stream="held-out")
    sampling = Sampling(max_new_tokens=8, temperature=0.9, stop_ids=STOP)
    samples = generate(
        one, [p.prompt_ids for p in prompts()], role="policy", sampling=sampling, seeds=seeds, samples_per_prompt=3
    )
    assert found.role == "policy" and found.prompts == WORDS
    assert found.completions == [chat.decode(samples[3 * p].ids) for p in range(5)]
    assert found.ended == sum(sample.ended for sample in samples) / 15 and 0 < found.ended < 1
    for p, prompt in enumerate(prompts()):
        drawn = samples[3 * p : 3 * p + 3]
        characters = [len(chat.decode(sample.ids)) for sample in drawn]
        batch = lay_out(one, [Example(prompt.prompt_ids, [sample.ids for sample in drawn])])
        with torch.no_grad():
            logprobs, entropy = logprobs_and_entropy(one, batch, role="policy", temperature=0.9)
            reference = token_logprobs(one, batch, role="reference", temperature=0.9)
        assert found.scores[p] == pytest.approx(sum(characters) / 3) and found.first_scores[p] == characters[0]
        assert found.judged["doubled"][p] == pytest.approx(2 * sum(characters) / 3)
        assert found.length[p] == pytest.approx(sum(len(sample.ids) for sample in drawn) / 3)
        assert found.kl[p] == pytest.approx(float((logprobs - reference).sum()) / 3, abs=1e-4)
        assert found.entropy[p] == pytest.approx(float(entropy.mean()), abs=1e-4)
    assert max(map(abs, found.kl)) > 0.01 and one.active is None


def test_evaluating_twice_gives_the_same_and_another_seed_another() -> None:
    one, chat = base_with_roles()
    first = evaluated(one, chat)
    torch.manual_seed(123)  # the random numbers are the evaluation's own
    assert evaluated(one, chat) == first
    assert evaluated(one, chat, token_budget=1).completions == first.completions
    assert evaluated(one, chat, seed=1).completions != first.completions


def test_two_roles_that_are_the_same_draw_the_same_samples() -> None:
    one, chat = base_with_roles()
    one.add_role("copy", copy_of="policy")
    first, again = evaluated(one, chat), evaluated(one, chat, role="copy")
    assert again.role == "copy" and again.completions == first.completions and again.scores == first.scores


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_the_reference_has_no_kl_to_itself(layout: str) -> None:
    one, chat = base_with_roles(layout)
    assert evaluated(one, chat, role="reference").kl == [0.0] * 5


def test_greedy_evaluation_has_figures_too() -> None:
    one, chat = base_with_roles()
    found = evaluated(one, chat, temperature=0.0, k=2)
    assert all(torch.tensor(values).isfinite().all() for values in (found.kl, found.entropy, found.scores))
    assert found.scores == found.first_scores  # both samples of a prompt are the same


def test_completions_cut_by_the_limit_have_not_ended() -> None:
    one, chat = base_with_roles()
    assert evaluated(one, chat, stop=()).ended == 0.0
    everything = evaluated(one, chat, stop=tuple(range(259)))
    assert everything.ended == 1.0 and everything.length == [1.0] * 5


def test_a_row_has_every_figure_with_its_interval_and_judges_first() -> None:
    found = evaluated(*base_with_roles(), judges={"gold": CharacterReward(0.1)})
    row = found.row()
    assert list(row) == ["gold", "score", "kl", "entropy", "length"]
    assert row["kl"] == bootstrap_mean(found.kl) and row["gold"] == bootstrap_mean(found.judged["gold"])


def test_the_rise_is_paired_by_prompt() -> None:
    one, chat = base_with_roles()
    before, after = evaluated(one, chat, role="reference"), evaluated(one, chat)
    assert improvement(before, after) == paired_bootstrap(before.scores, after.scores)
    assert improvement(before, before).mean == 0.0
