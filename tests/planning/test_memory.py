"""Peak memory by part: closed forms by hand, what the engines really keep, and the alternatives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onebase.engines.budget import saved_bytes_per_token
from onebase.models.adapters import lora_config
from onebase.planning.activations import activation_bytes_per_token, kv_bytes_per_token
from onebase.planning.alternatives import alternatives, four_in_full, in_full, weights_and_moments
from onebase.planning.architecture import from_config, read_architecture
from onebase.planning.batch_sizes import microbatch_tokens, trained_tokens
from onebase.planning.memory import MEASURED, held_parts, loading_parts, peak_memory
from onebase.planning.run import Adapter, PlannedRole, Span
from onebase.planning.weights import weight_bytes
from tests.planning.planned import BASE, BOTH, LENGTHS, rollouts, supervised
from tests.tiny_models import tiny_base

PLENTY = 64e9


def sizes(parts: object) -> dict[str, float]:
    return {part.name: part.size for part in parts}  # type: ignore[attr-defined]


def test_seven_billion_parameters_in_full_are_seventy_gigabytes() -> None:
    figure = weights_and_moments(7e9)
    assert figure.size == 70e9
    assert figure.formula.startswith("(2 + 8) x 7 B")


def test_weights_take_their_format_and_in_four_bits_only_linear_layers_shrink() -> None:
    base = read_architecture("llama-2-7b")
    assert weight_bytes(base, "bfloat16", "none") == 2 * 6_738_415_616
    assert weight_bytes(base, "float32", "none") == 4 * 6_738_415_616
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert weight_bytes(base, "bfloat16", "nf4") == 0.5625 * linear + 2 * (6_738_415_616 - linear)


def test_four_models_apart_take_thirty_six_bytes_a_parameter_in_sixteen_bits() -> None:
    run = rollouts(dtype="bfloat16", architecture=read_architecture("llama-2-7b"))
    assert four_in_full(run).size == 36 * 6_738_415_616
    assert in_full(run).size == 16 * 6_738_415_616
    assert [part.name for part in alternatives(run)][0] == "four models, with adapters"
    assert len(alternatives(supervised())) == 2


@pytest.mark.parametrize(("rank", "layers"), [(1, (0, 1, 2, 3)), (8, (2, 3))])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_planned_activations_are_what_autograd_keeps(rank: int, layers: tuple[int, ...], kind: str) -> None:
    base = tiny_base(kind, num_hidden_layers=4, hidden_size=64, intermediate_size=160)
    assert base.packs
    adapter = lora_config(base.model, r=rank, alpha=4, layers=list(layers))
    base.add_role("policy", adapter=adapter, trains=True)
    role = PlannedRole("policy", Adapter(rank, layers), trains=True)
    run = supervised(architecture=from_config(base.model.config.to_dict(), kind), roles=(role,))
    # Beside the layers there are states read, angles and masks; the last layer keeps only what is read.
    assert activation_bytes_per_token(run, role) == pytest.approx(saved_bytes_per_token(base, "policy"), rel=0.15)


def test_layers_below_the_lowest_adapter_keep_nothing() -> None:
    upper, whole = (replace(BOTH, layers=layers) for layers in ((1,), (0, 1)))
    of_upper, of_whole = (
        activation_bytes_per_token(supervised(), PlannedRole("policy", adapter, trains=True))
        for adapter in (upper, whole)
    )
    assert 2 * of_upper == of_whole


def test_checkpointing_keeps_a_state_for_each_layer_and_one_layer_whole() -> None:
    run = supervised(checkpointing=True)
    one = activation_bytes_per_token(supervised(), run.roles[0]) / BASE.layers
    assert activation_bytes_per_token(run, run.roles[0]) == BASE.layers * BASE.hidden * 4 + one


def test_keys_and_values_take_two_numbers_for_every_layer_head_and_place() -> None:
    assert kv_bytes_per_token(rollouts()) == 2 * 2 * 1 * 2 * 4
    assert kv_bytes_per_token(rollouts(dtype="bfloat16")) == 2 * 2 * 1 * 2 * 2


def test_what_trains_has_moments_and_gradients_in_its_format() -> None:
    run = supervised()
    count = BOTH.parameters(BASE)
    assert sizes(held_parts(run))["optimizer"] == 2 * 4 * count
    full = supervised(roles=(PlannedRole("policy", trains=True, in_full=True),), dtype="bfloat16")
    assert sizes(held_parts(full))["optimizer"] == 2 * 2 * BASE.parameters
    update = next(phase for phase in peak_memory(full, PLENTY).phases if phase.name == "update")
    assert sizes(update.parts)["gradients"] == 2 * BASE.parameters


def test_every_role_has_its_adapter_and_only_scalar_ones_a_head() -> None:
    parts = sizes(held_parts(rollouts()))
    assert parts["adapter reward"] == parts["adapter policy"] == 4 * BOTH.parameters(BASE)
    assert parts["head critic"] == 4 * BASE.hidden
    assert "adapter reference" not in parts and "head policy" not in parts


def test_weights_that_read_the_same_are_laid_together_while_loading_unless_they_stay_mapped_or_in_four_bits() -> None:
    base = tiny_base("llama")
    joined = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    counted = sum(p.numel() for name, p in base.model.named_parameters() if name.split(".")[-2] in joined)
    assert from_config(base.model.config.to_dict(), "llama").joined_parameters == counted > 0
    laid = sizes(loading_parts(supervised()))
    assert laid["laid together"] == 4 * BASE.joined_parameters > 2 * BASE.parameters and "file" not in laid
    for unchanged in (supervised(dtype="bfloat16"), supervised(quantization="nf4")):
        parts = sizes(loading_parts(unchanged))
        assert parts["file"] == 2 * BASE.parameters and "laid together" not in parts
    assert "laid together" in sizes(loading_parts(supervised(starts_new=True)))
    assert list(sizes(loading_parts(supervised(device="cuda")))) == ["framework", "base"]


def test_a_spread_base_is_shared_by_its_processes() -> None:
    alone = sizes(held_parts(supervised(device="cuda")))["base (float32)"]
    spread = sizes(held_parts(supervised(device="cuda", processes=4, spread=True)))["base (float32)"]
    assert alone == 4 * spread


def test_a_microbatch_holds_whole_trees_and_the_longest_one_in_any_case() -> None:
    lengths = replace(LENGTHS, tree=Span(100.0, 100), deviation=0.0)
    run = supervised(lengths=lengths, microbatch_tokens=250)
    assert trained_tokens(run, 250) == 208  # two trees of 100 tokens, padded to a usual size
    assert trained_tokens(run, 40) == 112
    assert trained_tokens(run, 10_000) == 416  # a minibatch has four


def test_a_budget_that_is_not_set_is_what_the_run_would_choose() -> None:
    run = supervised()
    per_token = activation_bytes_per_token(run, run.roles[0])
    assert microbatch_tokens(run, 2000 * per_token) == 1000
    assert microbatch_tokens(run, 1e12) == 4096
    assert microbatch_tokens(run, 0.0) == LENGTHS.tree.longest
    assert microbatch_tokens(replace(run, microbatch_tokens=77), 1e12) == 77


def test_the_peak_is_that_of_the_highest_phase() -> None:
    peak = peak_memory(rollouts(), PLENTY)
    assert [phase.name for phase in peak.phases] == ["load", "generate", "score", "update", "save"]
    assert peak.size == max(phase.size for phase in peak.phases) > MEASURED["cpu"].framework
    assert peak.rows == 10  # five held-out prompts, two completions each


def test_a_server_that_draws_needs_no_memory_here() -> None:
    assert "generate" not in [phase.name for phase in peak_memory(rollouts(elsewhere=True), PLENTY).phases]


def test_an_untrained_run_has_no_update() -> None:
    run = rollouts(verb="best-of", roles=(PlannedRole("policy"),))
    assert [phase.name for phase in peak_memory(run, PLENTY).phases] == ["load", "generate", "score"]


def test_rounds_come_one_after_the_other_and_each_is_as_large_as_alone() -> None:
    parts = (rollouts(verb="best-of", roles=(PlannedRole("policy"),)), supervised("dpo"))
    peak = peak_memory(replace(parts[0], verb="iterate", parts=parts), PLENTY)
    alone = {f"{part.verb}: {phase.name}": phase.size for part in parts for phase in peak_memory(part, PLENTY).phases}
    assert {phase.name: phase.size for phase in peak.phases} == alone
