"""Seconds by phase from work and rates, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onebase.config.rft import RFTGroup
from onebase.planning.machines import MACHINES, this_cpu
from onebase.planning.operations import Shape, Tokens, forward_operations, tokens_of, trained_operations
from onebase.planning.rates import LOAD_GB, OPEN_SECONDS, START_SECONDS, Rate, Rates, stated_rates
from onebase.planning.run import Adapter, rollout_passes
from onebase.planning.time import (
    bill,
    kilowatt_hours,
    loaded_bytes,
    samples_of,
    saved_bytes,
    steps_of,
    times_of,
    tokens_by_phase,
)
from onebase.planning.work import (
    KINDS,
    Work,
    decode_work,
    forward_work,
    padding,
    train_work,
    tree_tokens,
    work_of,
)
from tests.planning.planned import BASE, BOTH, rollouts, supervised

OPERATIONS_ALONE = Rates("one operation a second", 100.0, dict.fromkeys(KINDS, Rate(0.0, 0.0, 1.0, 0.0)))
PASSES_ALONE = Rates("a second a pass", 100.0, dict.fromkeys(KINDS, Rate(1.0, 0.0, 0.0, 0.0)))


def test_the_figure_of_a_hundred_samples_in_four_hundred_seconds() -> None:
    """On a machine at $7.09 an hour, as ml.g5.12xlarge was."""
    cost = bill(400, 7.09, samples=100)
    assert cost.total == pytest.approx(0.7878, abs=5e-5)
    assert cost.per_sample is not None and round(cost.per_sample, 4) == 0.0079
    assert cost.per_1k_tokens is None


def test_reward_and_ppo_share_a_runs_money_by_their_seconds_and_each_by_its_own_tokens() -> None:
    run = rollouts()
    seconds, tokens = times_of(run, OPERATIONS_ALONE).seconds, tokens_by_phase(run)
    parts = {phase: bill(seconds[phase], 7.09, tokens=tokens.get(phase, 0)) for phase in seconds}
    assert sum(part.total for part in parts.values()) == pytest.approx(bill(sum(seconds.values()), 7.09).total)
    # Reward, policy, reference and critic read 12 trees of 14 tokens; policy and critic train on them twice.
    assert (tokens["score"], tokens["update"]) == (4 * 12 * 14, 2 * 2 * 12 * 14)
    assert tokens["generate"] == 12 * 6 + 12 * 2 * 4
    score = parts["score"].per_1k_tokens
    assert score == pytest.approx(1000 * seconds["score"] / 3600 * 7.09 / (4 * 12 * 14))
    assert parts["update"].per_1k_tokens > score  # type: ignore[operator]


def test_energy_is_power_times_time() -> None:
    assert kilowatt_hours(3600, 700) == pytest.approx(0.7)


def test_training_passes_are_those_of_the_formula() -> None:
    run = supervised()
    tokens = tokens_of(6, [4])
    update = 24 * trained_operations(Shape(BASE, BOTH), tokens, output_layer=True)
    times = times_of(run, OPERATIONS_ALONE)
    assert times.seconds["update"] == pytest.approx(update)
    evaluated = 2 * 3 * forward_operations(Shape(BASE, BOTH), tokens, adapter=True, output_layer=True)
    assert times.seconds["evaluate"] == pytest.approx(evaluated)
    assert times.step == pytest.approx(update / 6) and steps_of(run) == 6
    assert times.seconds["load"] == START_SECONDS + OPEN_SECONDS + BASE.parameters * 2 / (LOAD_GB * 1e9)


def test_a_reference_measured_once_is_scoring_before_the_steps_and_one_in_every_step_is_part_of_them() -> None:
    one_pass = forward_operations(Shape(BASE), tokens_of(6, [4]), adapter=False, output_layer=True)
    cached = times_of(supervised("dpo", reference="cached"), OPERATIONS_ALONE)
    live = times_of(supervised("dpo", reference="live"), OPERATIONS_ALONE)
    assert cached.seconds["score"] == pytest.approx(12 * one_pass) and "score" not in cached.of_step
    assert live.seconds["score"] == pytest.approx(24 * one_pass)
    assert live.of_step["score"] == pytest.approx(4 * one_pass)


def test_microbatches_split_a_minibatch_by_whole_examples() -> None:
    assert times_of(supervised(), PASSES_ALONE).of_step["update"] == 1
    # 25 tokens hold two examples of ten.
    assert times_of(supervised(microbatch_tokens=25), PASSES_ALONE).of_step["update"] == 2
    assert times_of(supervised(microbatch_tokens=3), PASSES_ALONE).of_step["update"] == 4


def test_decoding_takes_a_step_for_every_token_but_the_first_of_the_longest_row() -> None:
    times = times_of(rollouts(), PASSES_ALONE)
    # 12 prompts x 2 in rollouts of 8 rows, at most 5 tokens; and one prefill for each rollout.
    assert times.seconds["generate"] == pytest.approx(3 * 4 + 3)
    assert times.of_step["generate"] == pytest.approx(5)
    work = decode_work(
        Shape(BASE), rows=8, at_once=4, prompt=6, new_tokens=3, longest=5, number_bytes=4, weight_bytes=4
    )
    assert (work.passes, work.layers) == (8, 16)
    pairs, drawn = 8 * 2 * 7.5, 8 * 2
    weights = Shape(BASE).trunk_parameters + Shape(BASE).head_parameters
    assert work.moved == pytest.approx(8 * weights * 4 + pairs * 2 * 2 * 1 * 2 * 4 + drawn * 10 * 60)
    expected = forward_operations(Shape(BASE), Tokens(drawn, pairs, drawn), adapter=False, output_layer=True)
    assert work.operations == expected


def test_what_a_pass_moves() -> None:
    tokens = tokens_of(6, [4])
    forward = forward_work(Shape(BASE), tokens, passes=2, number_bytes=4, weight_bytes=4, output_layer=True)
    weights = 4 * (Shape(BASE).trunk_parameters + 40)
    activations, logits = 10 * 2 * (24 * 4 + 8 * 6) * 4, 4 * 10 * 24
    assert forward.moved == 2 * weights + activations + logits and (forward.passes, forward.layers) == (2, 4)
    train = train_work(Shape(BASE, BOTH), tokens, passes=1, number_bytes=4, weight_bytes=4, output_layer=False)
    weights = 4 * (Shape(BASE).trunk_parameters + Shape(BASE, BOTH).lora_parameters)
    assert train.moved == weights + 4 * Shape(BASE).trunk_parameters + 3 * activations
    upper = train_work(
        Shape(BASE, Adapter(3, (1,), BOTH.modules)),
        tokens,
        passes=1,
        number_bytes=4,
        weight_bytes=4,
        output_layer=False,
    )
    assert upper.moved < train.moved and upper.operations < train.operations
    again = train_work(
        Shape(BASE, BOTH), tokens, passes=1, number_bytes=4, weight_bytes=4, output_layer=False, recomputes=True
    )
    assert again.operations - train.operations == forward_operations(
        Shape(BASE, BOTH), tokens, adapter=True, output_layer=False
    )


def test_the_optimizer_reads_and_writes_what_trains_once_a_step() -> None:
    bytes_alone = Rates("a byte a second", 1.0, dict.fromkeys(KINDS, Rate(0.0, 0.0, 0.0, 1.0)))
    run = supervised()
    few = times_of(replace(run, roles=(replace(run.roles[0], trains=False),)), bytes_alone).seconds["update"]
    assert times_of(run, bytes_alone).seconds["update"] - few == 6 * run.trained_parameters * 40


def test_a_prompt_is_read_for_every_completion_where_rows_are_separate() -> None:
    assert tree_tokens(rollouts()) == Tokens(14, 6 * 7 / 2 + 2 * (4 * 6 + 10), 8)
    assert tree_tokens(rollouts(layout="separate")) == Tokens(20, 2 * (10 * 11 / 2), 8)


def test_uneven_lengths_have_more_pairs_and_pad() -> None:
    uneven = supervised(lengths=replace(supervised().lengths, deviation=5.0))
    assert tree_tokens(uneven).pairs == pytest.approx(tree_tokens(supervised()).pairs * 1.25)
    assert padding(supervised()) == 1.0 and 1.0 < padding(uneven) <= 1.3


def test_nf4_moves_less_at_rest_and_more_in_a_pass() -> None:
    bytes_alone = Rates("a byte a second", 1.0, dict.fromkeys(KINDS, Rate(0.0, 0.0, 0.0, 1.0)))
    plain, small = (times_of(supervised(quantization=q), bytes_alone).step for q in ("none", "nf4"))
    assert small > plain


def test_processes_share_the_work_and_corrections_multiply_it() -> None:
    alone, two = (times_of(rollouts(processes=n), OPERATIONS_ALONE) for n in (1, 2))
    assert two.step == pytest.approx(alone.step / 2)
    corrected = times_of(rollouts(), OPERATIONS_ALONE, {"generate": 2.0, "update": 0.5})
    assert corrected.of_step["generate"] == pytest.approx(2 * alone.of_step["generate"])
    assert corrected.of_step["update"] == pytest.approx(alone.of_step["update"] / 2)
    assert corrected.of_step["score"] == alone.of_step["score"]
    assert corrected.seconds["evaluate"] > alone.seconds["evaluate"]


def test_rounds_are_the_sum_of_their_parts() -> None:
    parts = (rollouts(verb="best-of"), supervised("dpo"))
    whole = rollouts(verb="iterate", parts=parts)
    assert len(work_of(whole)) == sum(len(work_of(part)) for part in parts)
    total = sum(times_of(part, OPERATIONS_ALONE).seconds["update"] for part in parts)
    assert times_of(whole, OPERATIONS_ALONE).seconds["update"] == pytest.approx(total)
    assert loaded_bytes(whole) == 2 * loaded_bytes(parts[0])
    assert saved_bytes(whole) == sum(map(saved_bytes, parts))
    opened = sum(times_of(part, OPERATIONS_ALONE).seconds["load"] - START_SECONDS for part in parts)
    assert times_of(whole, OPERATIONS_ALONE).seconds["load"] == pytest.approx(START_SECONDS + opened)


def test_samples_are_completions_or_examples_seen() -> None:
    assert samples_of(rollouts()) == 24 and samples_of(supervised()) == 24
    assert loaded_bytes(supervised(starts_new=True)) == 0


def test_a_data_sheets_rates_are_shares_of_its_peaks() -> None:
    rates = stated_rates(MACHINES["h100"], "bfloat16")
    assert rates.of("train", "bfloat16").seconds(Work(operations=989e12)) == pytest.approx(1 / 0.4)
    assert rates.of("forward", "bfloat16").seconds(Work(operations=989e12)) == pytest.approx(1 / 0.5)
    assert rates.of("decode", "bfloat16").seconds(Work(moved=3350e9)) == pytest.approx(1 / 0.6)
    in_float32 = stated_rates(MACHINES["h100"], "float32")
    assert in_float32.of("train", "float32").seconds(Work(operations=67e12)) == pytest.approx(1 / 0.4)


def test_a_cpu_is_counted_from_its_cores_clock_and_instructions() -> None:
    old, new, newest = (
        this_cpu(cores=4, gigahertz=2.5, instructions=frozenset(flags), memory_gb=16, name="a CPU")
        for flags in (["avx2"], ["avx2", "avx512f"], ["avx2", "avx512f", "avx512_bf16", "amx_bf16"])
    )
    assert old.float32_teraflops == pytest.approx(4 * 2.5e9 * 32 / 1e12) and old.teraflops < old.float32_teraflops
    assert new.float32_teraflops == 2 * old.float32_teraflops
    assert newest.teraflops == pytest.approx(4 * 2.5e9 * 1024 / 1e12) and not newest.is_gpu


def test_every_machine_says_where_its_figures_are_from() -> None:
    for machine in MACHINES.values():
        assert machine.source and machine.memory_gb > 0 and machine.bandwidth_gb > 0
        assert 0 < machine.float32_teraflops <= machine.teraflops and machine.watts > 0


def test_a_policy_that_learns_in_one_step_is_not_measured_again() -> None:
    run = rollouts()
    measured, sampled = (
        rollout_passes(
            run.roles,
            run.lengths,
            prompts=12,
            samples_per_prompt=2,
            epochs=1,
            elsewhere=False,
            evaluated=5,
            as_sampled=kind,
        )
        for kind in (False, True)
    )
    (left_out,) = set(measured) - set(sampled)
    assert (left_out.phase, left_out.role, left_out.in_steps) == ("score", "policy", True)
    assert any(each.phase == "score" and each.role == "policy" for each in sampled)  # on held-out prompts


@pytest.mark.parametrize(("keys", "once"), [({}, True), ({"num_epochs": 2}, False), ({"minibatch_prompts": 8}, False)])
def test_one_step_is_one_epoch_in_one_minibatch(keys: dict[str, int], once: bool) -> None:
    assert RFTGroup(**keys).learns_in_one_step is once
