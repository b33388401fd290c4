"""Publishing to a server that speaks vLLM's protocol, and every way in which a policy may fail to arrive."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebase import asking
from onebase.config.remedies import with_remedy
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import load_base
from onebase.errors import ModelError, QualityError, UnansweredError
from onebase.models.base import OneBase
from onebase.records import Prompt
from onebase.rollouts.collect import Roles, measure, with_samples
from onebase.sampling import published
from onebase.sampling.ahead import DRAWS, Ahead
from onebase.sampling.published import PublishedSampler
from onebase.sampling.sampler import Sampling
from onebase.sampling.vllm import VLLM
from tests.sampling.vllm_like import VLLMLike
from tests.tiny_models import add_adapter_role, disturb, save_tiny

PROMPTS = [[1, 40, 50, 60], [1, 70, 80], [1, 90]]
SAMPLING = Sampling(6, temperature=0.7, stop_ids=(2, *range(100, 130)))
SEEDS = list(range(6))
BUDGET = TokenBudget(4096)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=1, hidden_size=16)


@pytest.fixture
def server(folder: Path) -> Iterator[VLLMLike]:
    served = VLLMLike(folder)
    yield served
    served.close()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asking, "WAITS", (0.0, 0.0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are slower with more
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base(folder: Path) -> OneBase:
    base = load_base(str(folder), dtype="float32")
    add_adapter_role(base, "policy")
    return base


def sampler_of(
    base: OneBase, server: VLLMLike, folder: Path, *, role: str = "policy", **options: Any
) -> PublishedSampler:
    return PublishedSampler(base, role, VLLM(server.url, **options), folder / "published", budget=BUDGET)


def drawn(sampler: PublishedSampler | Ahead) -> list[Any]:
    return sampler.sample(PROMPTS, SAMPLING, seeds=SEEDS, samples_per_prompt=2)


def step(base: OneBase, *, seed: int = 3, size: float = 0.05) -> None:
    disturb(base, "policy", seed=seed, size=size)
    base.roles["policy"].version += 1


def test_tokens_and_log_probs_are_those_of_the_policy(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    sampler = sampler_of(base, server, tmp_path)
    for version in range(2):
        samples = drawn(sampler)
        assert [sample.prompt for sample in samples] == [0, 0, 1, 1, 2, 2]
        assert {sample.version for sample in samples} == {version}
        assert any(sample.ended for sample in samples) and not all(sample.ended for sample in samples)
        assert all(sample.ended == (sample.ids[-1] in SAMPLING.stop_ids) for sample in samples)
        examples = with_samples([Prompt(ids) for ids in PROMPTS], samples)
        found = measure(base, examples, Roles("policy"), temperature=0.7, budget=BUDGET)
        own = [p for of_prompt in found.logprobs for p in of_prompt.tolist()]
        assert [p for sample in samples for p in sample.logprobs] == pytest.approx(own, abs=1e-4)
        step(base)
    bodies = [body for path, body in server.requests if path == "/v1/completions" and body.get("stop_token_ids")]
    assert all((body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, 0, 1.0) for body in bodies)
    assert all(body["prompt"] in PROMPTS and body["model"].startswith("policy-v") for body in bodies)


def test_equal_seeds_draw_equal_tokens(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    sampler = sampler_of(base, server, tmp_path)
    assert [s.ids for s in drawn(sampler)] == [s.ids for s in drawn(sampler)]


def test_a_version_has_a_fresh_name_and_the_one_before_is_unloaded(
    base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    sampler = sampler_of(base, server, tmp_path)
    names = []
    for number in range(3):
        drawn(sampler)
        names.append(server.adapters[-1])
        assert server.adapters == [names[-1]], "an older version is still there"
        assert [path.name for path in (tmp_path / "published").iterdir()] == [names[-1]]
        assert names[-1].startswith(f"policy-v{number}-")
        step(base, seed=number)
    loads = sum(path == "/v1/load_lora_adapter" for path, _ in server.requests)
    assert len(set(names)) == loads == 3
    sampler.close()
    assert server.adapters == [] and not (tmp_path / "published").exists()


def test_unchanged_weights_are_not_published_again(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    sampler = sampler_of(base, server, tmp_path)
    drawn(sampler)
    base.roles["policy"].version += 1  # a step in which only the critic moved
    assert {sample.version for sample in drawn(sampler)} == {1}
    assert len(server.loaded) == 1


def test_the_base_without_an_adapter_is_asked_by_its_own_name(folder: Path, server: VLLMLike, tmp_path: Path) -> None:
    base = load_base(str(folder), dtype="float32")
    base.add_role("policy")
    drawn(sampler_of(base, server, tmp_path))
    assert server.loaded == []


def fails(sampler: PublishedSampler | Ahead, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as raised:
        drawn(sampler)
    for word in words:
        assert word in with_remedy(raised.value), with_remedy(raised.value)  # type: ignore[arg-type]


def test_an_adapter_that_is_never_loaded_is_noticed(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    server.never_lists = True
    fails(sampler_of(base, server, tmp_path), QualityError, "without an error and does not list it", "--enable-lora")


def test_a_server_that_answers_with_the_base_is_noticed_at_the_first_version(
    base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    server.answers_with = "base"
    fails(
        sampler_of(base, server, tmp_path), QualityError, "answers as policy-v0-", "nothing else loads adapters there"
    )


@pytest.mark.parametrize("size", [0.05, 0.0005])
def test_a_stale_version_is_noticed_however_small_the_step(
    size: float, base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    sampler = sampler_of(base, server, tmp_path)
    drawn(sampler)
    step(base, size=size)
    server.answers_with = "previous"
    fails(sampler, QualityError, "answers as policy-v1-")
    assert not any(body.get("stop_token_ids") and body["model"].startswith("policy-v1") for _, body in server.requests)


def test_rounding_of_improbable_tokens_is_not_taken_for_another_version(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharp = tmp_path / "sharp"
    shutil.copytree(folder, sharp)
    weights = load_file(sharp / "model.safetensors")
    weights["lm_head.weight"] *= 30  # as of a policy that has made up its mind: log-probs of ten nats on average
    save_file(weights, sharp / "model.safetensors", metadata={"format": "pt"})
    base, served = load_base(str(sharp), dtype="bfloat16"), VLLMLike(sharp)
    add_adapter_role(base, "policy")
    sampler = sampler_of(base, served, tmp_path)
    drawn(sampler)
    sampler._noise = published.USUAL_NOISE  # as a first version without certain tokens leaves it
    step(base, size=0.0005)
    assert {sample.version for sample in drawn(sampler)} == {1}
    step(base, size=0.2)
    served.answers_with = "previous"
    fails(sampler, QualityError, "answers as policy-v2-")
    served.close()


def test_another_adapter_that_answers_is_noticed(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    other = load_base(server.base_name, dtype="float32")
    add_adapter_role(other, "policy", seed=9)
    drawn(sampler_of(other, server, tmp_path / "other"))
    server.answers_with = server.adapters[0]
    fails(sampler_of(base, server, tmp_path), QualityError, "answers as policy-v0-")


def test_an_adapter_that_is_read_half_is_noticed(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    server.reads_half = True
    fails(sampler_of(base, server, tmp_path), QualityError, "answers as policy-v0-")


def test_a_folder_that_the_server_does_not_see_is_told(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    server.load = lambda name, path: VLLMLike.load(server, name, "/elsewhere")  # type: ignore[method-assign]
    fails(sampler_of(base, server, tmp_path), ModelError, "answered 404", "No adapter found for /elsewhere", "start it")


@pytest.mark.parametrize("path", ["completions", "load_lora_adapter"])
@pytest.mark.parametrize("fault", ["drops", "fails"])
def test_a_failure_that_passes_changes_nothing(
    fault: str, path: str, base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    expected = [sample.ids for sample in drawn(sampler_of(base, server, tmp_path))]
    server.only = path
    setattr(server, fault, 2)
    assert [sample.ids for sample in drawn(sampler_of(base, server, tmp_path / "again"))] == expected
    assert getattr(server, fault) == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [("drops", "the connection was dropped"), ("fails", "status 500: EngineCore encountered an issue.")],
)
def test_a_failure_that_stays_stops_the_draw(
    fault: str, said: str, base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    setattr(server, fault, math.inf)
    fails(sampler_of(base, server, tmp_path), UnansweredError, said, "(3 tries)", "the same command resumes")


def test_a_slow_server_stops_the_draw(
    base: OneBase, server: VLLMLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(sampler_of(base, server, tmp_path))
    monkeypatch.setattr(asking, "WAITS", ())
    server.seconds = 1.0
    fails(sampler_of(base, server, tmp_path, seconds=0.3), UnansweredError, "no answer within 0.3 seconds")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": []}, "a completion of 0 tokens"),
        ({"token_ids": [5, 6]}, "with 6 log-probs"),
        ({"logprobs": {"token_logprobs": [math.nan] * 6}}, "not a finite number of at most 0"),
        ({"logprobs": None}, "no completions with token ids and log-probs"),
        ({"prompt_token_ids": [1, 2]}, "an answer to another prompt"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_not_used(
    change: dict[str, Any], said: str, base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    choice = server.choice
    plain = Sampling(6)

    def other(name: str, prompt: list[int], body: dict[str, Any], k: int) -> dict[str, Any]:
        return choice(name, prompt, body, k) | (change if body.get("return_token_ids") else {})

    server.choice = other  # type: ignore[method-assign]
    with pytest.raises(UnansweredError, match=said):
        sampler_of(base, server, tmp_path).sample(PROMPTS, plain, seeds=SEEDS, samples_per_prompt=2)


def test_an_answer_of_another_model_is_not_used(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    complete = server.complete
    server.complete = lambda body: (200, complete(body)[1] | {"model": "other"})  # type: ignore[method-assign]
    fails(sampler_of(base, server, tmp_path), UnansweredError, "an answer of the model 'other'")


def test_a_completion_that_stops_without_an_end_is_not_used(base: OneBase, server: VLLMLike) -> None:
    server.choice = (  # type: ignore[method-assign]
        lambda name, prompt, body, k: VLLMLike.choice(server, name, prompt, body | {"max_tokens": 3}, k)
    )
    with pytest.raises(UnansweredError, match="a completion of 3 tokens without an end"):
        VLLM(server.url).draw(server.base_name, PROMPTS, Sampling(6), seeds=SEEDS, samples_per_prompt=2)


def test_a_list_that_is_none_is_not_used(base: OneBase, server: VLLMLike) -> None:
    server.models = lambda: {"data": [{"name": 1}]}  # type: ignore[method-assign]
    with pytest.raises(UnansweredError, match="no list of models"):
        VLLM(server.url).models()


@pytest.mark.parametrize(
    ("tops", "said"),
    [([{"a": -1.0}], "no log-probs of token ids"), ([{"token_id:1": math.inf}], "not a finite number")],
)
def test_log_probs_of_no_tokens_are_not_used(tops: list[Any], said: str, server: VLLMLike) -> None:
    answer = {"model": "m", "choices": [{"logprobs": {"top_logprobs": tops}}]}
    server.complete = lambda body: (200, answer)  # type: ignore[method-assign]
    with pytest.raises(UnansweredError, match=said):
        VLLM(server.url).likeliest("m", PROMPTS)


def test_what_is_drawn_ahead_is_of_the_policy_before_and_a_resumed_run_draws_it_again(
    folder: Path, base: OneBase, server: VLLMLike, tmp_path: Path
) -> None:
    def ahead_of(base: OneBase, name: str) -> Ahead:
        base.add_role(DRAWS, copy_of="policy")
        return Ahead(sampler_of(base, server, tmp_path / name, role=DRAWS), "policy")

    ahead = ahead_of(base, "a")
    first = [sample.ids for sample in drawn(ahead)]
    ahead.renew()
    ahead.begin(PROMPTS, SAMPLING, seeds=SEEDS, samples_per_prompt=2)
    step(base, size=0.3)  # while the draw is under way
    kept = ahead.state_dict()
    samples = drawn(ahead)
    assert [sample.ids for sample in samples] == first and {sample.version for sample in samples} == {0}
    assert base.roles["policy"].version == 1

    again = load_base(str(folder), dtype="float32")
    add_adapter_role(again, "policy", seed=8)
    resumed = ahead_of(again, "b")
    resumed.load_state_dict(kept)
    assert again.roles["policy"].version == 1
    assert [(s.ids, s.version) for s in drawn(resumed)] == [(s.ids, s.version) for s in samples]
    resumed.renew()
    assert {sample.version for sample in drawn(resumed)} == {1}


def test_an_error_ahead_is_raised_when_the_draw_is_asked_for(base: OneBase, server: VLLMLike, tmp_path: Path) -> None:
    base.add_role(DRAWS, copy_of="policy")
    ahead = Ahead(sampler_of(base, server, tmp_path, role=DRAWS), "policy")
    drawn(ahead)
    ahead.renew()
    server.fails = math.inf  # type: ignore[assignment]
    ahead.begin(PROMPTS, SAMPLING, seeds=SEEDS, samples_per_prompt=2)
    fails(ahead, UnansweredError, "status 500")
    server.fails = 0
    assert drawn(ahead)
    ahead.close()
    assert server.adapters == []
