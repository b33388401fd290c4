"""Mutants of `onebase/training` and `onebase/evaluation`: optimizer steps, resuming, rollouts, figures."""

from tests.mutants.mutant import Mutant

UPDATE = "onebase/training/update.py"
CHECKPOINT = "onebase/training/checkpoint.py"
LOOP = "onebase/training/loop.py"
RUN = "onebase/training/run.py"
ROLLOUT = "onebase/rollouts/collect.py"
AVERAGES = "onebase/training/averages.py"
METRICS = "onebase/runs/metrics.py"
MEMORY = "onebase/engines/budget.py"
COMPARISONS = "onebase/training/comparisons.py"
LANGUAGE = "onebase/training/language.py"
INTERVALS = "onebase/reporting/intervals.py"
HELD_OUT = "onebase/evaluation/held_out.py"
PASS_RATES = "onebase/evaluation/pass_rates.py"

TEST_UPDATE = "tests/training/test_update.py"
TEST_CHECKPOINT = "tests/training/test_checkpoint.py"
TEST_RUN = "tests/training/test_run.py"
TEST_ROLLOUT = "tests/rollouts/test_collect.py"
TEST_METRICS = "tests/runs/test_metrics.py"
TEST_MEMORY = "tests/engines/test_budget.py"
TEST_INTERVALS = "tests/reporting/test_intervals.py"
TEST_HELD_OUT = "tests/evaluation/test_held_out.py"
TEST_PASS_RATES = "tests/evaluation/test_pass_rates.py"

SCHEDULE = f"{TEST_UPDATE}::test_the_schedule_has_the_values_computed_by_hand"
SPLIT = f"{TEST_UPDATE}::test_the_split_into_microbatches_never_changes_parameters_or_metrics"
REFUSED = f"{TEST_UPDATE}::test_a_step_that_is_not_finite_leaves_every_byte_as_it_was"
FROM_ITS_STATE = f"{TEST_UPDATE}::test_an_update_goes_on_from_its_state_with_every_byte"
OUT_OF_MEMORY = f"{TEST_UPDATE}::test_out_of_memory_halves_the_microbatch_and_changes_nothing_else"
STOPPED = f"{TEST_CHECKPOINT}::test_a_stopped_run_ends_as_one_that_nobody_stopped"
MEASURED = f"{TEST_ROLLOUT}::test_everything_measured_is_what_a_separate_computation_gives"
FIGURES = f"{TEST_HELD_OUT}::test_every_figure_is_what_a_separate_computation_gives"

MUTANTS = [
    # ----------------------------------------------------------------------------------------------------- update
    Mutant(UPDATE, "return (step + 1) / warmup_steps", "return step / warmup_steps",
           "the first step of the warm-up has no learning rate", SCHEDULE),
    Mutant(UPDATE, "if step < warmup_steps:", "if step <= warmup_steps:",
           "the warm-up overshoots by a step", SCHEDULE),
    Mutant(UPDATE, "/ max(1, total_steps - warmup_steps)", "/ max(1, total_steps)",
           "the schedule does not reach its end", SCHEDULE),
    Mutant(UPDATE, "0.5 * (1.0 + math.cos(", "0.5 * (1.0 - math.cos(",
           "the cosine schedule rises", SCHEDULE),
    Mutant(UPDATE, "return max(0.0, 1.0 - done)", "return 1.0 - done",
           "the linear schedule turns negative behind its end", SCHEDULE),
    Mutant(UPDATE, '"weight_decay": weight_decay if decayed else 0.0', '"weight_decay": weight_decay',
           "vectors decay too", f"{TEST_UPDATE}::test_weights_decay_only_where_they_are_matrices"),
    Mutant(UPDATE, '"lr": group.learning_rate', '"lr": groups[0].learning_rate',
           "all groups have the first one's learning rate",
           f"{TEST_UPDATE}::test_groups_keep_their_own_learning_rates"),
    Mutant(UPDATE, "        self.schedule.step()\n",
           "        if not self._refused_in_a_row:\n            self.schedule.step()\n",
           "a refused step stalls the schedule",
           f"{TEST_UPDATE}::test_a_refused_step_takes_its_place_in_the_schedule"),
    Mutant(UPDATE, "if math.isfinite(norm) and math.isfinite(loss):", "if math.isfinite(norm):",
           "a step with a loss that is not finite is taken", REFUSED),
    Mutant(UPDATE, "if math.isfinite(norm) and math.isfinite(loss):", "if math.isfinite(loss):",
           "a step with a gradient that is not finite is taken", REFUSED),
    Mutant(UPDATE, "self.optimizer.step()\n            self._refused_in_a_row = 0", "self.optimizer.step()",
           "refused steps add up though others stood between",
           "tests/recipes/test_resume.py::test_steps_refused_in_a_row_are_counted_across_a_stop " + TEST_UPDATE),
    Mutant(UPDATE, "self.schedule.step()\n        self.optimizer.zero_grad(set_to_none=True)", "self.schedule.step()",
           "gradients add up over steps", TEST_UPDATE),
    Mutant(UPDATE, 'self.schedule.load_state_dict(state["schedule"])', "pass",
           "the schedule begins anew on resume", FROM_ITS_STATE),
    Mutant(UPDATE, 'self.optimizer.load_state_dict(state["optimizer"])', "pass",
           "the optimizer forgets its moments on resume", FROM_ITS_STATE),
    Mutant(UPDATE, "losses.append(held.pop().detach())", "losses = [held.pop().detach()]",
           "the loss of a step is that of its last microbatch", SPLIT),
    Mutant(UPDATE, "[[mine[i] for i in some] for some in",
           "[list(range(len(some))) for some in",
           "every microbatch holds the first examples", SPLIT),
    Mutant(UPDATE, "forget = partial(self.optimizer.zero_grad, set_to_none=True)", "forget = partial(int)",
           "gradients of what ran out of memory stay", OUT_OF_MEMORY),
    Mutant(UPDATE, "with self._base.dropout() if self._dropout else nullcontext():", "with nullcontext():",
           "adapters train without their dropout",
           f"{TEST_UPDATE}::test_dropout_is_on_in_the_passes_that_train_and_nowhere_else"),
    # ------------------------------------------------------------------------------------- checkpoint, loop, run
    Mutant(CHECKPOINT, 'torch.set_rng_state(state["torch"])', "pass",
           "torch's random numbers begin anew on resume",
           f"{TEST_CHECKPOINT}::test_random_numbers_go_on_where_they_were"),
    Mutant(CHECKPOINT, "parameter.copy_(weight)", "parameter.copy_(weight.bfloat16())",
           "weights are rounded on resume", f"{TEST_CHECKPOINT}::test_weights_lose_no_bit_in_any_dtype"),
    Mutant(CHECKPOINT, '{STATE_FILE: "", **sums}.items()', "sums.items()",
           "a state that no checksum covers is believed",
           f"{TEST_CHECKPOINT}::test_of_a_damaged_checkpoint_it_is_said_and_the_one_before_is_used"),
    Mutant(CHECKPOINT, "there[first + keep :]", "there[first + keep + 1 :]",
           "one checkpoint too many stays",
           f"{TEST_CHECKPOINT}::test_no_more_checkpoints_stay_than_asked_for"),
    Mutant(CHECKPOINT, "item.counted, item.grades, item.margin, row", "item.grades, item.margin, row",
           "data that counts other tokens passes for the same",
           f"{TEST_CHECKPOINT}::test_the_data_is_known_by_all_that_is_learnt_from"),
    Mutant(CHECKPOINT, "if not role.trains:", "if role.trains:",
           "another reference passes for the same on resume",
           f"{TEST_CHECKPOINT}::test_a_role_that_does_not_train_is_known_by_its_adapter_its_head_and_its_moments"),
    Mutant(LOOP, "self.done % due.every_steps < steps", "self.done % due.every_steps == 0",
           "many steps at once jump over a checkpoint",
           f"{TEST_CHECKPOINT}::test_steps_done_many_at_once_do_not_jump_over_a_checkpoint"),
    Mutant(LOOP, '"parts": self._small', '"parts": {name: part.state_dict() for name, part in self._parts.items()}',
           "a checkpoint behind a failed step holds what that step moved",
           f"{TEST_CHECKPOINT}::test_a_step_that_failed_before_it_changed_anything_is_done_again"),
    Mutant(LOOP, "part.load_state_dict(state[\"parts\"][name])", "pass",
           "controllers and random numbers begin anew on resume", STOPPED),
    Mutant(LOOP, 'self._weights.load_state_dict(state["weights"])', "pass",
           "the weights begin anew on resume", STOPPED),
    Mutant(LOOP, 'max(state["best"], self._kept_best())', "-math.inf",
           "a worse role replaces the best one after resuming",
           f"{TEST_CHECKPOINT}::test_a_worse_one_does_not_replace_the_best_after_going_on"),
    Mutant(LOOP, '-1 if metric.startswith("-") else 1', "1",
           "the role with the highest loss is kept as the best",
           f"{TEST_CHECKPOINT}::test_the_best_by_a_held_out_metric_is_kept"),
    Mutant(RUN, "torch.manual_seed(seed)", "pass",
           "the seed does not reach torch", f"{TEST_RUN}::test_the_seed_fixes_every_source_of_random_numbers"),
    # ---------------------------------------------------------------------------------------- rollout and metrics
    Mutant(ROLLOUT, 'role=roles.reference, temperature=temperature', 'role=roles.reference',
           "the reference is measured at temperature one", MEASURED),
    Mutant(ROLLOUT, 'role=roles.reference, temperature=temperature', 'role=roles.policy, temperature=temperature',
           "the reference is the policy", MEASURED),
    Mutant(ROLLOUT, "source_states(base, batch, role=roles.policy)", "source_states(base, batch, role=roles.reference)",
           "the policy's log-probs are the reference's", MEASURED),
    Mutant(ROLLOUT, "token_values(base, batch, role=critic)", "token_values(base, batch, role=critic).detach() * 0",
           "values are zero with a critic of its own", MEASURED),
    Mutant(ROLLOUT, '{"logprobs": logprobs, "entropy": entropy}', '{"logprobs": entropy, "entropy": logprobs}',
           "log-probs, entropies and values are mixed up", MEASURED),
    Mutant(ROLLOUT, "completions[sample.prompt].append(sample.ids)", "completions[0].append(sample.ids)",
           "all samples go to the first prompt", f"{TEST_ROLLOUT}::test_samples_go_to_their_own_prompts"),
    Mutant(AVERAGES, "count: Tensor | int = values.numel()", "count: Tensor | int = 1",
           "metrics are sums over microbatches", TEST_METRICS),
    Mutant(AVERAGES, 'values.sum(dtype=torch.float64)', "values.sum()",
           "long sums in half precision lose their digits", TEST_METRICS),
    Mutant(METRICS, 'if row["step"] <= keep', 'if row["step"] < keep',
           "the last step before a checkpoint is lost from the record",
           f"{TEST_CHECKPOINT}::test_the_record_is_cut_back_to_the_checkpoint"),
    Mutant(MEMORY, "return max(longest, min(fits, ", "return min(longest, min(fits, ",
           "the microbatch is no larger than the longest tree", TEST_MEMORY),
    Mutant(MEMORY, "saved_bytes_per_token(base, role) + longest * mask_bytes_per_pair(base, role)",
           "saved_bytes_per_token(base, role)",
           "the attention masks are left out of the memory", TEST_MEMORY),
    Mutant(COMPARISONS, "offset += len(example.completions)", "offset += len(pairs)",
           "comparisons of later lists point at other answers",
           "tests/recipes/test_reward.py::test_the_first_loss_is_the_papers"),
    Mutant(COMPARISONS, 'comparison_seed(seed, *visit)', 'comparison_seed(seed, 0, visit[1])',
           "every visit of a list draws the same comparisons",
           "tests/recipes/test_reward.py::test_no_more_than_max_pairs_of_a_list_are_compared"),
    Mutant(COMPARISONS, "0.0 if example.margin is None else example.margin", "0.0",
           "margins of the data are ignored", "tests/recipes/test_reward.py::test_the_first_loss_is_the_papers"),
    Mutant(LANGUAGE, 'role="policy").sum() / total', 'role="policy").mean()',
           "every microbatch weighs the same",
           "tests/training/test_language.py::test_the_loss_is_the_mean_over_the_counted_tokens_of_the_minibatch"),
    # ------------------------------------------------------------------------------------------------- evaluation
    Mutant(INTERVALS, "numpy.percentile(means, [2.5, 97.5])", "numpy.percentile(means, [5, 95])",
           "the interval holds 90 of 100", TEST_INTERVALS),
    Mutant(INTERVALS, "generator.integers(0, array.size, size=array.size)",
           "generator.integers(0, array.size - 1, size=array.size, endpoint=array.size == 1)",
           "the last value is never resampled", TEST_INTERVALS),
    Mutant(INTERVALS, "[b - a for a, b in zip(before, after, strict=True)]",
           "[a - b for a, b in zip(before, after, strict=True)]",
           "a rise is a fall", TEST_INTERVALS),
    Mutant(HELD_OUT, "(own - ref).sum()) / samples_per_prompt", "(own - ref).sum())",
           "the held-out KL is a sum over samples", FIGURES),
    Mutant(HELD_OUT, "scores=per_prompt.mean(1).tolist()", "scores=per_prompt[:, 0].tolist()",
           "the held-out score is that of the first sample", FIGURES),
    Mutant(HELD_OUT, "Roles(policy=role, reference=reference)", "Roles(policy=reference, reference=reference)",
           "the held-out KL is of the reference to itself", FIGURES),
    Mutant(HELD_OUT, 'stream="held-out")', 'stream=f"held-out-{role}")',
           "two roles are compared on different random numbers",
           f"{TEST_HELD_OUT}::test_two_roles_that_are_the_same_draw_the_same_samples"),
    # -------------------------------------------------------------------------------------------------- pass rates
    Mutant(PASS_RATES, "(all_draws - comb(num_samples - num_right, k)) / all_draws",
           "1 - (1 - num_right / num_samples) ** k",
           "pass@k draws with replacement, which biases it", TEST_PASS_RATES),
    Mutant(PASS_RATES, "        if answer is not None:", "        if True:",
           "samples without an answer vote", TEST_PASS_RATES),
    Mutant(PASS_RATES, "if len(rights) == most]", "if len(rights) == most][:1]",
           "of answers that tie the first counts alone", TEST_PASS_RATES),
    Mutant(PASS_RATES, "rng.sample(samples, k)", "samples[:k]",
           "maj@k reads the first k samples alone", TEST_PASS_RATES),
]  # fmt: skip
