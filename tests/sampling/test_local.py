from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from onebase.data.tree import build_tree_batch
from onebase.engines.decoder import Decoder
from onebase.engines.engine import engine_of, packs
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base
from onebase.errors import DoesNotFitError, PromptTooLongError
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.sampling import local
from onebase.sampling.drawing import draw, random_numbers
from onebase.sampling.local import LocalSampler, generate, slots_that_fit, stop_ids
from onebase.sampling.sampler import Sample, Sampler, Sampling
from onebase.seeds import sample_seeds
from tests.tiny_models import (
    EOS,
    PAD,
    VOCABULARY,
    WINDOW,
    add_adapter_role,
    random_ids,
    through_transformers,
    tiny_base,
)

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high"
)
PROMPTS = [random_ids(length, seed=length) for length in (5, 11, 1, 8, 8, 3, 14)]
# Every seventh id ends a completion, so that they end at many different lengths.
MANY_STOPS = tuple(range(3, VOCABULARY, 7))
HF = "llama through transformers"


def base_with_policy(architecture: str, **options: Any) -> OneBase:
    base = tiny_base(architecture, **options)
    add_adapter_role(base, "policy")
    return base


def draw_samples(
    base: OneBase, prompts: list[list[int]] = PROMPTS, *, k: int = 3, seeds: list[int] | None = None, **options: Any
) -> list[Sample]:
    sampling = options.pop("sampling", Sampling(max_new_tokens=12, stop_ids=MANY_STOPS))
    seeds = sample_seeds(1, num_prompts=len(prompts), samples_per_prompt=k) if seeds is None else seeds
    return generate(base, prompts, role="policy", sampling=sampling, seeds=seeds, samples_per_prompt=k, **options)


def greedy_by_recomputing(base: OneBase, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The model's own logits over the whole sequence for every token: no cache, no batch, no padding."""
    ids, logprobs = list(prompt), []
    with torch.no_grad(), base.role("policy"):
        for _ in range(count):
            distribution = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            ids.append(int(distribution.argmax()))
            logprobs.append(distribution.max().item())
    return ids[len(prompt) :], logprobs


# ------------------------------------------------------------------------------------------------------------ greedy


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "qwen3", "neox", "bloom"])
def test_greedy_decoding_is_that_of_transformers(architecture: str) -> None:
    base = base_with_policy(architecture)
    found = draw_samples(base, k=1, sampling=Sampling(max_new_tokens=20, temperature=0, stop_ids=(EOS,)), max_rows=4)
    with base.role("policy"):
        for prompt, sample in zip(PROMPTS, found, strict=True):
            ids = torch.tensor([prompt])
            greedy = GenerationConfig(do_sample=False, max_new_tokens=20, eos_token_id=EOS, pad_token_id=PAD)
            plain: Any = base.model
            expected = plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            assert sample.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "qwen3", "gemma2", "gemma3", "mistral", "bloom"])
def test_greedy_decoding_is_that_of_computing_everything_again(architecture: str) -> None:
    base = base_with_policy(architecture)
    assert min(len(prompt) for prompt in PROMPTS) < WINDOW < max(len(prompt) for prompt in PROMPTS)
    found = draw_samples(base, k=1, sampling=Sampling(max_new_tokens=12, temperature=0), max_rows=3)
    for prompt, sample in zip(PROMPTS, found, strict=True):
        ids, logprobs = greedy_by_recomputing(base, prompt, 12)
        assert sample.ids == ids
        assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_the_small_real_model_tells_its_story(shared: Path) -> None:
    base = load_base(str(shared / "models" / "stories260K" / "hf"), dtype="float32", device="cpu")
    base.add_role("policy")
    sampling = Sampling(max_new_tokens=80, temperature=0, stop_ids=stop_ids(base))
    sample = generate(base, [[1]], role="policy", sampling=sampling, seeds=[0])[0]
    text = base.tokenizer.decode(sample.ids, skip_special_tokens=True)
    assert isinstance(text, str) and text.strip().startswith(STORY)


# --------------------------------------------------------------------------------------------- what a sample depends on


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "gemma3", "bloom"])
def test_samples_do_not_depend_on_what_stands_beside_them(architecture: str) -> None:
    base = base_with_policy(architecture)
    expected = draw_samples(base)
    assert len({tuple(sample.ids) for sample in expected}) > 15
    assert len({len(sample.ids) for sample in expected}) > 3
    assert [sample.prompt for sample in expected] == [p for p in range(len(PROMPTS)) for _ in range(3)]
    for max_rows in (1, 3, 4, 6, 10, 1000):
        found = draw_samples(base, max_rows=max_rows)
        assert [s.ids for s in found] == [s.ids for s in expected], max_rows
        assert [s.ended for s in found] == [s.ended for s in expected]
        for sample, wanted in zip(found, expected, strict=True):
            assert sample.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    seeds = sample_seeds(1, num_prompts=len(PROMPTS), samples_per_prompt=3)
    for chosen in ([4, 1], [6, 5, 4, 3, 2, 1, 0], [2]):
        own = [seed for p in chosen for seed in seeds[3 * p : 3 * p + 3]]
        found = draw_samples(base, [PROMPTS[p] for p in chosen], seeds=own, max_rows=6)
        assert [s.ids for s in found] == [expected[3 * p + k].ids for p in chosen for k in range(3)]


def test_samples_do_not_depend_on_the_number_of_samples_or_the_global_random_state() -> None:
    base = base_with_policy("llama")
    expected = draw_samples(base, k=4)
    seeds = sample_seeds(1, num_prompts=len(PROMPTS), samples_per_prompt=4)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    single = draw_samples(base, k=1, seeds=seeds[::4])
    assert [s.ids for s in single] == [s.ids for s in expected[::4]]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_lower_limit_only_cuts_a_sample_short() -> None:
    base = base_with_policy("llama")
    long = draw_samples(base, sampling=Sampling(max_new_tokens=12, stop_ids=MANY_STOPS))
    short = draw_samples(base, sampling=Sampling(max_new_tokens=5, stop_ids=MANY_STOPS))
    assert [s.ids for s in short] == [s.ids[:5] for s in long]


def test_seeds_are_a_pure_function_of_seed_stream_prompt_and_sample() -> None:
    seeds = sample_seeds(7, num_prompts=5, samples_per_prompt=4)
    assert len(set(seeds)) == 20 and seeds == sample_seeds(7, num_prompts=5, samples_per_prompt=4)
    assert sample_seeds(7, num_prompts=3, samples_per_prompt=4) == seeds[:12]
    fewer = [seed for p in range(5) for seed in seeds[4 * p : 4 * p + 2]]
    assert sample_seeds(7, num_prompts=5, samples_per_prompt=2) == fewer
    others = [*sample_seeds(8, num_prompts=5, samples_per_prompt=4)]
    others += sample_seeds(7, num_prompts=5, samples_per_prompt=4, stream="step-1")
    assert not set(others) & set(seeds)


@pytest.mark.parametrize("architecture", ["llama", HF, "bloom"])
def test_every_token_is_drawn_by_the_next_random_number_of_its_samples_seed(architecture: str) -> None:
    """Two tokens drawn by one number would each be distributed as they should be, and together not."""
    base, seeds, count = base_with_policy(architecture), [5, 6, 7, 8], 6
    samples = draw_samples(base, PROMPTS[:2], k=2, seeds=seeds, sampling=Sampling(max_new_tokens=count))
    for sample, seed in zip(samples, seeds, strict=True):
        ids = list(PROMPTS[sample.prompt])
        for number in torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist():
            with torch.no_grad(), base.role("policy"):
                logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int((logits.double().softmax(-1).cumsum(-1) <= number).sum()))
        assert sample.ids == ids[len(PROMPTS[sample.prompt]) :]


def test_random_numbers_are_a_row_for_each_seed_whatever_the_others_are() -> None:
    numbers = random_numbers([7, 5, 7], 9)
    assert numbers.shape == (3, 9) and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(numbers[0], numbers[2]) and torch.equal(numbers[1], random_numbers([5], 9)[0])
    assert torch.equal(random_numbers([5], 4)[0], numbers[1, :4])
    assert random_numbers([], 9).shape == (0, 9)


# ---------------------------------------------------------------------------------------------------- samplers, slots


@pytest.mark.parametrize("architecture", ["llama", HF, "bloom"])
def test_a_sampler_here_draws_what_generate_does_as_its_role(architecture: str) -> None:
    base = base_with_policy(architecture)
    base.add_role("base")
    seeds, sampling = [3, 4, 5, 6], Sampling(max_new_tokens=8, stop_ids=MANY_STOPS)
    found = {}
    for role in base.roles:
        sampler: Sampler = LocalSampler(base, role)
        found[role] = sampler.sample(PROMPTS[:2], sampling, seeds=seeds, samples_per_prompt=2)
        expected = generate(base, PROMPTS[:2], role=role, sampling=sampling, seeds=seeds, samples_per_prompt=2)
        assert found[role] == expected
    assert found["policy"] != found["base"]


def test_a_sample_says_which_version_of_the_weights_drew_it() -> None:
    base = base_with_policy("llama")
    base.add_role("base")
    assert [sample.version for sample in draw_samples(base, PROMPTS[:2], k=2)] == [0] * 4
    weights = {name: 2 * tensor for name, tensor in base.adapter_weights("policy").items()}
    for version in (1, 2):
        base.set_adapter_weights("policy", weights)
        assert base.roles["policy"].version == version
        assert [sample.version for sample in draw_samples(base, PROMPTS[:2], k=2)] == [version] * 4
    sampling = Sampling(max_new_tokens=3)
    assert generate(base, [[5]], role="base", sampling=sampling, seeds=[0])[0].version == 0


@pytest.mark.parametrize("architecture", ["llama", HF])
def test_fewer_are_decoded_at_once_where_memory_is_short_and_one_prompts_samples_must_fit(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, sampling = base_with_policy(architecture), Sampling(max_new_tokens=12)
    row = engine_of(base, "policy").slot_bytes(14, 12, copies=3) + 32 * VOCABULARY
    assert row > 32 * VOCABULARY
    expected = draw_samples(base)

    def slots(free: float, k: int, prompts: list[list[int]] = PROMPTS) -> int:
        monkeypatch.setattr(local, "free_memory", lambda device: int(free))
        return slots_that_fit(base, "policy", prompts, sampling, k)

    assert slots(1e12, 3) == 3 * len(PROMPTS) and slots(1e12, 3, PROMPTS * 100) == local.MOST_ROWS
    assert slots(1e12, 500) == 500  # never less than one prompt's
    assert slots(row * 10 / local.SHARE_OF_FREE_MEMORY + 1, 3) == 10
    assert slots(row * 3, 3) == 3
    with pytest.raises(DoesNotFitError, match="the keys and values of 3 completions of 26 tokens need") as caught:
        slots(row * 3 - 1, 3)
    assert caught.value.remedy == "completions-do-not-fit" and caught.value.exit_code == 4
    monkeypatch.setattr(local, "free_memory", lambda device: row * 4)
    assert [sample.ids for sample in draw_samples(base)] == [sample.ids for sample in expected]


def test_what_keeps_nothing_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_with_policy("bloom")
    monkeypatch.setattr(local, "free_memory", lambda device: 0)
    assert slots_that_fit(base, "policy", PROMPTS, Sampling(max_new_tokens=12), 3) == 3 * len(PROMPTS)


def test_no_prompts_give_no_samples() -> None:
    assert draw_samples(base_with_policy("llama"), []) == []


# ------------------------------------------------------------------------------------------------------ logprobs, ends


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "qwen3", "gemma2", "gemma3", "mistral", "neox", "bloom"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_logprobs_of_samples_are_those_of_the_tree_built_from_them(architecture: str, temperature: float) -> None:
    base = base_with_policy(architecture)
    sampling = Sampling(max_new_tokens=12, temperature=temperature, top_k=50, top_p=0.9, stop_ids=MANY_STOPS)
    samples = draw_samples(base, sampling=sampling, max_rows=7)
    examples = [Example(prompt, [s.ids for s in samples[3 * p : 3 * p + 3]]) for p, prompt in enumerate(PROMPTS)]
    expected = token_logprobs(base, build_tree_batch(examples), role="policy", temperature=temperature)
    found = torch.tensor([logprob for sample in samples for logprob in sample.logprobs])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", HF, "bloom"])
def test_a_stop_token_stays_as_the_last_one_and_the_length_limit_is_no_end(architecture: str) -> None:
    samples = draw_samples(base_with_policy(architecture), max_rows=6)
    assert {sample.ended for sample in samples} == {True, False}
    for sample in samples:
        assert not set(sample.ids[:-1]) & set(MANY_STOPS)
        assert sample.ended == (sample.ids[-1] in MANY_STOPS)
        assert len(sample.ids) == len(sample.logprobs) == 12 or (sample.ended and 1 <= len(sample.ids) <= 12)


def test_a_stop_token_at_the_length_limit_is_an_end() -> None:
    base = base_with_policy("llama")
    free = draw_samples(base, sampling=Sampling(max_new_tokens=6), k=1)[0]
    first = free.ids.index(free.ids[-1]) + 1
    stopped = draw_samples(base, sampling=Sampling(max_new_tokens=first, stop_ids=(free.ids[-1],)), k=1)[0]
    assert stopped.ids == free.ids[:first] and stopped.ended and not free.ended


@pytest.mark.parametrize("architecture", ["llama", HF, "bloom"])
def test_a_sample_can_be_read_after_each_of_its_tokens(architecture: str) -> None:
    seen: dict[int, list[list[int]]] = {}
    samples = draw_samples(
        base_with_policy(architecture), on_token=lambda s: seen.setdefault(id(s), []).append(list(s.ids)), max_rows=6
    )
    assert seen == {id(s): [s.ids[: n + 1] for n in range(len(s.ids))] for s in samples}


@pytest.mark.parametrize("architecture", [HF, "gpt2"])
def test_a_prompt_is_read_once_and_finished_rows_are_dropped(architecture: str) -> None:
    base = base_with_policy(architecture)
    assert not packs(base, "policy")
    shapes: list[tuple[int, int]] = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = base.model.base_model.register_forward_pre_hook(record, with_kwargs=True)
    samples = draw_samples(base, k=2, max_rows=6)
    handle.remove()
    decoded = [rows for rows, columns in shapes if columns == 1 and rows > 0]
    # One prompt has a single token: its prefill has the shape of a decoding step or stands in a wider one.
    prefilled = [rows for rows, columns in shapes if columns > 1]
    assert max(decoded) <= 6 and sum(prefilled) in (len(PROMPTS) - 1, len(PROMPTS))
    single = len(PROMPTS) - sum(prefilled)
    assert sum(decoded) - single == sum(len(sample.ids) - 1 for sample in samples)
    assert len(prefilled) > 1  # refilled: seven prompts of two samples do not fit six rows at once


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_decoder_reads_a_prompt_once_without_padding_and_drops_finished_rows(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_with_policy(architecture)
    assert packs(base, "policy")
    prefilled: list[list[list[int]]] = []
    read: list[int] = []
    decoded: list[int] = []
    prefill, trees, step = Decoder.prefill, Decoder.trees, Decoder.step

    def record_prefill(self: Decoder, prompts: list[list[int]]) -> Any:
        prefilled.append(prompts)
        return prefill(self, prompts)

    def record_trees(self: Decoder, input_ids: Tensor, *args: Any, **options: Any) -> Tensor:
        read.append(len(input_ids))
        return trees(self, input_ids, *args, **options)

    def record_step(self: Decoder, layers: Any, ids: Tensor, *args: Any) -> Tensor:
        decoded.append(len(ids))
        return step(self, layers, ids, *args)

    monkeypatch.setattr(Decoder, "prefill", record_prefill)
    monkeypatch.setattr(Decoder, "trees", record_trees)
    monkeypatch.setattr(Decoder, "step", record_step)
    calls: list[Any] = []
    handle = base.model.base_model.register_forward_pre_hook(lambda *args: calls.append(args))
    samples = draw_samples(base, k=2, max_rows=6)
    handle.remove()
    assert not calls, "it went through transformers"
    assert read == [sum(map(len, prompts)) for prompts in prefilled]
    assert sorted(list(prompt) for prompts in prefilled for prompt in prompts) == sorted(PROMPTS)
    assert len(prefilled) > 1  # refilled: seven prompts of two samples do not fit six rows at once
    assert 0 < min(decoded) and max(decoded) <= 6
    assert sum(decoded) == sum(len(sample.ids) - 1 for sample in samples)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12, stop_ids=MANY_STOPS),
        Sampling(max_new_tokens=12, temperature=0.7, top_k=20, top_p=0.9, stop_ids=MANY_STOPS),
        Sampling(max_new_tokens=12, temperature=0),
    ],
    ids=["plain", "truncated", "greedy"],
)
def test_the_decoder_draws_the_samples_that_transformers_would_give(
    architecture: str, k: int, sampling: Sampling
) -> None:
    found = draw_samples(base_with_policy(architecture), k=k, sampling=sampling, max_rows=6)
    plain = through_transformers(base_with_policy(architecture))
    expected = draw_samples(plain, k=k, sampling=sampling, max_rows=6)
    assert sampling.temperature == 0 or len({len(sample.ids) for sample in expected}) > 3
    assert [sample.ids for sample in found] == [sample.ids for sample in expected]
    assert [sample.ended for sample in found] == [sample.ended for sample in expected]
    for sample, other in zip(found, expected, strict=True):
        assert sample.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_generation_is_done_as_the_role_named_and_leaves_nothing_behind() -> None:
    base = base_with_policy("llama")
    base.add_role("base")
    sampling = Sampling(max_new_tokens=10, temperature=0)
    policy, adapters_off = (
        [s.ids for s in generate(base, PROMPTS, role=role, sampling=sampling, seeds=[0] * len(PROMPTS))]
        for role in ("policy", "base")
    )
    assert policy != adapters_off and base.active is None
    assert all(parameter.requires_grad for parameter in base.parameters("policy"))
    bare = tiny_base("llama")
    bare.add_role("base")
    assert [
        s.ids for s in generate(bare, PROMPTS, role="base", sampling=sampling, seeds=[0] * len(PROMPTS))
    ] == adapters_off

    def fail(_sample: Sample) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draw_samples(base, on_token=fail)
    assert base.active is None and all(parameter.requires_grad for parameter in base.parameters("policy"))


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    base = base_with_policy("llama")
    assert base.context_length == 128
    fits = draw_samples(base, [random_ids(120, seed=1)], k=1, sampling=Sampling(max_new_tokens=8))
    assert len(fits[0].ids) == 8
    with pytest.raises(
        PromptTooLongError, match="prompt 1: 121 tokens and 8 new ones exceed the model's context of 128"
    ) as caught:
        draw_samples(base, [[5], random_ids(121, seed=1)], k=1, sampling=Sampling(max_new_tokens=8))
    assert caught.value.remedy == "context-exceeded" and caught.value.exit_code == 3
    assert base.active is None


def test_stop_ids_are_those_of_the_tokenizer_the_model_and_the_caller() -> None:
    base = tiny_base("llama")
    assert stop_ids(base) == (EOS,)
    base.model.generation_config.eos_token_id = [EOS, 9]
    assert stop_ids(base, [7, 9]) == (EOS, 7, 9)
    base.model.generation_config.eos_token_id = None
    base.tokenizer.eos_token = None
    assert stop_ids(base) == () and stop_ids(base, [7]) == (7,)


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_two_tokens_in_a_row_are_drawn_as_often_as_the_model_says(layout: str) -> None:
    """Their joint distribution: two tokens that each follow the model's may still depend on one random number."""
    base, prompt, count = tiny_base("llama", layout=layout), random_ids(5, seed=3), 6000
    base.add_role("policy")
    samples = generate(
        base,
        [prompt] * 20,
        role="policy",
        sampling=Sampling(max_new_tokens=2),
        seeds=sample_seeds(0, num_prompts=20, samples_per_prompt=count // 20),
        samples_per_prompt=count // 20,
    )
    with torch.no_grad():
        first = base.model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        rows = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
        joint = first[:, None] * base.model(rows).logits[:, -1].double().softmax(-1)  # [V, V]
    # Thirds of the vocabulary, as tokens of low numbers are drawn for low random numbers.
    third = torch.arange(VOCABULARY) * 3 // VOCABULARY
    cell = third[:, None] * 3 + third
    expected = count * torch.zeros(9, dtype=torch.float64).index_add(0, cell.flatten(), joint.flatten())
    drawn = torch.tensor([int(cell[sample.ids[0], sample.ids[1]]) for sample in samples])
    counts = torch.bincount(drawn, minlength=9).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 26.1  # 8 degrees of freedom: exceeded once in 1000


# ---------------------------------------------------------------------------------------------------------------- draw


def frequencies(logits: Tensor, sampling: Sampling, count: int = 4000) -> Tensor:
    randoms = torch.rand(count, generator=torch.Generator().manual_seed(11))
    ids, _ = draw(logits.expand(count, -1), randoms, sampling)
    return torch.bincount(ids, minlength=len(logits)).double()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(2)) * 1.5
    expected = 4000 * (logits.double() / temperature).softmax(-1)
    counts = frequencies(logits, Sampling(max_new_tokens=1, temperature=temperature))
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 31.3  # 11 degrees of freedom: exceeded once in a thousand


PROBABILITIES = torch.tensor([0.04, 0.30, 0.06, 0.40, 0.20])


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {0, 1, 2, 3, 4}),
        (1, 1.0, {3}),
        (2, 1.0, {1, 3}),
        (3, 1.0, {1, 3, 4}),
        (5, 1.0, {0, 1, 2, 3, 4}),
        (99, 1.0, {0, 1, 2, 3, 4}),
        (0, 0.01, {3}),
        (0, 0.39, {3}),
        (0, 0.41, {1, 3}),
        (0, 0.69, {1, 3}),
        (0, 0.71, {1, 3, 4}),
        (0, 0.89, {1, 3, 4}),
        (0, 0.95, {1, 2, 3, 4}),
        (0, 0.97, {0, 1, 2, 3, 4}),
        (2, 0.5, {3}),
        (2, 0.6, {1, 3}),
        (3, 0.75, {1, 3}),
    ],
)
def test_top_k_and_top_p_exclude_exactly_what_they_should(top_k: int, top_p: float, kept: set[int]) -> None:
    # With both, the probabilities that top_p adds up are those among the k kept: 0.4 / 0.7 = 0.57 for k = 2.
    counts = frequencies(PROBABILITIES.log(), Sampling(max_new_tokens=1, top_k=top_k, top_p=top_p))
    assert set(counts.nonzero().flatten().tolist()) == kept
    expected = torch.where(counts > 0, PROBABILITIES.double(), 0.0)
    expected = 4000 * expected / expected.sum()
    torch.testing.assert_close(counts, expected, rtol=0, atol=4 * 4000**0.5 / 2)


def test_logprobs_of_a_draw_are_those_of_the_full_distribution_at_the_temperature() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(3))
    randoms = torch.rand(50, generator=torch.Generator().manual_seed(4))
    ids, logprobs = draw(logits, randoms, Sampling(max_new_tokens=1, temperature=0.7, top_k=3, top_p=0.8))
    expected = (logits / 0.7).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-6)
    greedy, greedy_logprobs = draw(logits, randoms, Sampling(max_new_tokens=1, temperature=0))
    assert torch.equal(greedy, logits.argmax(-1))
    torch.testing.assert_close(greedy_logprobs, logits.log_softmax(-1).max(-1).values, rtol=0, atol=1e-6)


def test_a_token_of_probability_zero_is_never_drawn_at_the_ends_of_the_range() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]).expand(2, -1)
    ids, logprobs = draw(logits, torch.tensor([0.0, 1 - 2**-24]), Sampling(max_new_tokens=1))
    assert ids.tolist() == [1, 3] and logprobs.isfinite().all()


def test_each_row_is_drawn_by_its_own_random_number() -> None:
    logits = torch.zeros(4, 4)
    ids, _ = draw(logits, torch.tensor([0.1, 0.3, 0.6, 0.9]), Sampling(max_new_tokens=1))
    assert ids.tolist() == [0, 1, 2, 3]
