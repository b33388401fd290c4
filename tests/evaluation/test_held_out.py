from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from onebase.data.chat import ChatFormat, chat_format
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import logprobs_and_entropy, token_logprobs
from onebase.engines.passes import lay_out
from onebase.evaluation.held_out import HeldOut, evaluate_role, improvement
from onebase.models.base import OneBase
from onebase.records import Example, Message, Prompt, RewardSource, Row, ScoreRequest, Scores
from onebase.reporting.intervals import bootstrap_mean, paired_bootstrap
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from tests.tiny_models import EOS, add_adapter_role, tiny_base, tiny_tokenizer

WORDS = ["one", "two two two", "three three three", "4", "five"]
STOP = (EOS, *range(3, 30))


class CharacterReward:
    """Scores by the characters of the completion, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.name, self.factor = "characters", factor

    def score(self, request: ScoreRequest) -> Scores:
        return Scores(torch.tensor([self.factor * len(text) for text in request.completions]))


class FailingReward(CharacterReward):
    """Cannot check every fourth completion, from the second on."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        self.decides = decides

    def score(self, request: ScoreRequest) -> Scores:
        count = len(request.completions)
        failures = {i: f"maths: no verdict on {i}" for i in range(1, count, 4)}
        right = torch.ones(count, dtype=torch.bool) if self.decides else None
        return Scores(super().score(request).total, {}, failures, right)


def base_with_roles(layout: str = "tree") -> tuple[OneBase, ChatFormat]:
    base = tiny_base("llama", layout=layout)
    add_adapter_role(base, "policy")
    base.add_role("reference")
    return base, chat_format(base.tokenizer, "plain")


def prompts() -> list[Prompt]:
    tokenizer = tiny_tokenizer()
    return [
        Prompt([1, *tokenizer.encode(word, add_special_tokens=False)], Row((Message("user", word),))) for word in WORDS
    ]


def evaluated(
    base: OneBase,
    chat: ChatFormat,
    *,
    role: str = "policy",
    seed: int = 0,
    temperature: float = 0.9,
    k: int = 3,
    token_budget: int = 80,
    judges: Mapping[str, RewardSource] | None = None,
    stop: tuple[int, ...] = STOP,
    reward: RewardSource | None = None,
) -> HeldOut:
    return evaluate_role(
        base,
        chat,
        prompts(),
        reward or CharacterReward(),
        role=role,
        reference="reference",
        sampling=Sampling(max_new_tokens=8, temperature=temperature, stop_ids=stop),
        samples_per_prompt=k,
        seed=seed,
        budget=TokenBudget(token_budget),
        judges=judges,
    )


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_every_figure_is_what_a_separate_computation_gives(layout: str) -> None:
    base, chat = base_with_roles(layout)
    found = evaluated(base, chat, judges={"doubled": CharacterReward(2.0)})
    seeds = sample_seeds(0, num_prompts=5, samples_per_prompt=3, stream="held-out")
    sampling = Sampling(max_new_tokens=8, temperature=0.9, stop_ids=STOP)
    samples = generate(
        base, [p.ids for p in prompts()], role="policy", sampling=sampling, seeds=seeds, samples_per_prompt=3
    )
    assert found.role == "policy" and found.prompts == WORDS
    assert found.completions == [chat.decode(samples[3 * p].ids) for p in range(5)]
    assert found.ended == sum(sample.ended for sample in samples) / 15 and 0 < found.ended < 1
    for p, prompt in enumerate(prompts()):
        drawn = samples[3 * p : 3 * p + 3]
        characters = [len(chat.decode(sample.ids)) for sample in drawn]
        batch = lay_out(base, [Example(prompt.ids, [sample.ids for sample in drawn])])
        with torch.no_grad():
            logprobs, entropy = logprobs_and_entropy(base, batch, role="policy", temperature=0.9)
            reference = token_logprobs(base, batch, role="reference", temperature=0.9)
        assert found.scores[p] == pytest.approx(sum(characters) / 3) and found.first_scores[p] == characters[0]
        assert found.judged["doubled"][p] == pytest.approx(2 * sum(characters) / 3)
        assert found.length[p] == pytest.approx(sum(len(sample.ids) for sample in drawn) / 3)
        assert found.kl[p] == pytest.approx(float((logprobs - reference).sum()) / 3, abs=1e-4)
        assert found.entropy[p] == pytest.approx(float(entropy.mean()), abs=1e-4)
    assert max(map(abs, found.kl)) > 0.01 and base.active is None


def test_evaluating_twice_gives_the_same_and_another_seed_another() -> None:
    base, chat = base_with_roles()
    first = evaluated(base, chat)
    torch.manual_seed(123)  # the random numbers are the evaluation's own
    assert evaluated(base, chat) == first
    assert evaluated(base, chat, token_budget=1).completions == first.completions
    assert evaluated(base, chat, seed=1).completions != first.completions


def test_two_roles_that_are_the_same_draw_the_same_samples() -> None:
    base, chat = base_with_roles()
    base.add_role("copy", copy_of="policy")
    first, again = evaluated(base, chat), evaluated(base, chat, role="copy")
    assert again.role == "copy" and again.completions == first.completions and again.scores == first.scores


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_the_reference_has_no_kl_to_itself(layout: str) -> None:
    base, chat = base_with_roles(layout)
    assert evaluated(base, chat, role="reference").kl == [0.0] * 5


def test_greedy_evaluation_has_figures_too() -> None:
    base, chat = base_with_roles()
    found = evaluated(base, chat, temperature=0.0, k=2)
    assert all(torch.tensor(values).isfinite().all() for values in (found.kl, found.entropy, found.scores))
    assert found.scores == found.first_scores  # both samples of a prompt are the same


def test_completions_cut_by_the_limit_have_not_ended() -> None:
    base, chat = base_with_roles()
    assert evaluated(base, chat, stop=()).ended == 0.0
    everything = evaluated(base, chat, stop=tuple(range(259)))
    assert everything.ended == 1.0 and everything.length == [1.0] * 5


def test_a_row_has_every_figure_with_its_interval_and_judges_first() -> None:
    found = evaluated(*base_with_roles(), judges={"gold": CharacterReward(0.1)})
    row = found.row()
    assert list(row) == ["gold", "score", "kl", "entropy", "length"]
    assert row["kl"] == bootstrap_mean(found.kl) and row["gold"] == bootstrap_mean(found.judged["gold"])


def test_the_rise_is_paired_by_prompt() -> None:
    base, chat = base_with_roles()
    before, after = evaluated(base, chat, role="reference"), evaluated(base, chat)
    assert improvement(before, after) == paired_bootstrap(before.scores, after.scores)
    assert improvement(before, before).mean == 0.0


def test_completions_that_could_not_be_checked_are_counted_logged_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    base, chat = base_with_roles()
    for decides in (True, False):
        found = evaluated(base, chat, reward=FailingReward(decides=decides))
        assert found.failed == 4 and found.metrics()["eval/failed"] == 4 / 15
        said = "warning: 4 of 15 held-out completions could not be checked; the first: maths: no verdict on 1\n"
        assert capsys.readouterr().err == said


def test_that_all_could_be_checked_is_logged_too_where_a_verifier_decides(capsys: pytest.CaptureFixture[str]) -> None:
    class AllRight(CharacterReward):
        def score(self, request: ScoreRequest) -> Scores:
            return Scores(super().score(request).total, right=torch.ones(len(request.completions), dtype=torch.bool))

    base, chat = base_with_roles()
    assert evaluated(base, chat, reward=AllRight()).metrics()["eval/failed"] == 0
    assert "eval/failed" not in evaluated(base, chat).metrics() and capsys.readouterr().err == ""
