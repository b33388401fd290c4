"""Mutants of `onebase/recipes`: options that are ignored, roles and cursors mixed up, wrong normalisers."""

from tests.mutants.mutant import Mutant

PPO = "onebase/recipes/ppo.py"
PPO_SETUP = "onebase/recipes/setup/ppo.py"
ROLLOUTS_SETUP = "onebase/recipes/setup/rollouts.py"
DPO = "onebase/recipes/dpo.py"
LISTS = "onebase/training/lists.py"
DPO_SETUP = "onebase/recipes/setup/dpo.py"
REWARD = "onebase/recipes/reward.py"
BEST_OF = "onebase/recipes/best_of.py"
SAMPLED_ROWS = "onebase/rollouts/sampled_rows.py"
ITERATE = "onebase/recipes/iterate.py"
SFT = "onebase/recipes/sft.py"
CACHE = "onebase/recipes/setup/reference_cache.py"

TEST_PPO = "tests/recipes/test_ppo.py"
TEST_OPTIONS = "tests/recipes/test_ppo_options.py"
TEST_DPO = "tests/recipes/test_dpo.py"
TEST_DPO_DATA = "tests/recipes/test_dpo_data.py"
TEST_REWARD = "tests/recipes/test_reward.py"
TEST_BEST_OF = "tests/recipes/test_best_of.py"
TEST_ITERATE = "tests/recipes/test_iterate.py"
TEST_SFT = "tests/recipes/test_sft.py"
TEST_PARITY = "tests/recipes/test_trl_parity.py"

WHOLE_UPDATE = f"{TEST_PPO}::test_a_whole_update_is_what_plain_loops_give"
SHAPED = f"{TEST_PPO}::test_a_reward_of_length_gives_what_the_penalties_take"
SCALED = f"{TEST_PPO}::test_running_scaling_divides_by_the_deviation_of_all_scores_so_far"
DRAWS = f"{TEST_OPTIONS}::test_every_rollout_draws_its_own_numbers_and_its_own_order"
WARM_UP = f"{TEST_PPO}::test_in_the_warm_up_the_critic_alone_trains"
FIRST_STEP = f"{TEST_DPO}::test_the_first_step_is_the_paper_s_loss_on_separate_rows"
MIXTURE = f"{TEST_DPO}::test_a_mixture_is_the_weighted_sum"
WRITTEN = f"{TEST_BEST_OF}::test_the_best_and_the_worst_by_score_are_written"
ROUNDS = f"{TEST_ITERATE}::test_rounds_of_dpo_raise_the_score_and_draw_other_prompts"
WEIGHTS = f"{TEST_DPO}::test_every_list_weighs_the_same_and_a_tie_nothing"
KTO = f"{TEST_DPO}::test_kto_reads_labels_and_pairs"
FIRST_LOSS = f"{TEST_REWARD}::test_the_first_loss_is_the_papers"

MUTANTS = [
    # -------------------------------------------------------------------------------------------------------- ppo
    Mutant(PPO, "return -ppo.ptx_coefficient * logprobs.sum() / num_tokens",
           "return -logprobs.sum() / num_tokens",
           "ppo.ptx_coefficient is ignored",
           f"{TEST_OPTIONS}::test_ptx_adds_its_coefficient_times_the_loss_on_texts"),
    Mutant(PPO, "        state.updates_done += 1\n", "",
           "every step reads the same PTX texts",
           f"{TEST_OPTIONS}::test_ptx_reads_all_texts_before_it_reads_one_again"),
    Mutant(PPO_SETUP, "ppo.critic_learning_rate or learning_rate", "learning_rate",
           "ppo.critic_learning_rate is ignored",
           f"{TEST_OPTIONS}::test_policy_and_critic_learn_at_their_own_rates"),
    Mutant(PPO, "rewards = scale_to_unit_variance(rewards, mask)", "rewards = whiten(rewards, mask)",
           "ppo.whiten_rewards drops the mean", f"{TEST_OPTIONS}::test_whitened_rewards_keep_their_mean"),
    Mutant(ROLLOUTS_SETUP, 'base.scalar_role("critic").head.weight.div_(base.scalar_role("reward").moments.std or 1.0)',
           "pass",
           "the critic's head is not rescaled under reward.normalize: held_out",
           f"{TEST_OPTIONS}::test_a_reward_role_scores_and_starts_the_critic"),
    Mutant(PPO, "    if ppo.score_scaling == \"running\":\n",
           "    if ppo.score_clip is not None:\n        scores = scores.clamp(-ppo.score_clip, ppo.score_clip)\n"
           "    if ppo.score_scaling == \"running\":\n",
           "ppo.score_clip also clips before scaling",
           f"{TEST_OPTIONS}::test_scores_are_clipped_once_after_they_are_scaled"),
    Mutant(PPO, "> ppo.max_kl:", "> 2 * ppo.max_kl:",
           "ppo.max_kl is doubled",
           f"{TEST_OPTIONS}::test_the_epochs_end_behind_the_step_that_passes_max_kl"),
    Mutant(PPO, 'samples_per_prompt, f"rollout-{index}"', 'samples_per_prompt, "rollout"',
           "every rollout has the same random numbers", DRAWS),
    Mutant(PPO, "seed = rollout_seed(config.seed, index)\n", "seed = config.seed\n",
           "every rollout has the same order of minibatches", DRAWS),
    Mutant(PPO, "setup.order.minibatch(index, config.ppo.rollout_prompts)",
           "setup.order.minibatch(0, config.ppo.rollout_prompts)",
           "every rollout has the same prompts",
           f"{TEST_PPO}::test_without_a_number_of_steps_every_prompt_is_read_once"),
    Mutant(PPO, "if ppo.whiten_advantages:", "if True:",
           "ppo.whiten_advantages is ignored", WHOLE_UPDATE),
    Mutant(PPO, "gamma=ppo.gamma, lam=ppo.lam", "gamma=ppo.lam, lam=ppo.gamma",
           "gamma and lambda are swapped", WHOLE_UPDATE),
    Mutant(PPO, 'state.kl.coefficient if ppo.kl_placement == "reward" else 0.0', "state.kl.coefficient",
           "KL is paid in the reward and in the loss", WHOLE_UPDATE),
    Mutant(PPO, "per_token = per_token + state.kl.coefficient * kl", "per_token = per_token + kl",
           "KL in the loss ignores its coefficient", WHOLE_UPDATE),
    Mutant(PPO, "(per_token - ppo.entropy_coefficient * entropy)", "(per_token + ppo.entropy_coefficient * entropy)",
           "entropy is punished", WHOLE_UPDATE),
    Mutant(PPO, "return ppo.value_coefficient * per_token.sum() / num_tokens", "return per_token.sum() / num_tokens",
           "ppo.value_coefficient is ignored", WHOLE_UPDATE),
    Mutant(PPO, "clipped_value_loss(values, old_values, returns, clip_range=ppo.value_clip)\n        metrics",
           "clipped_value_loss(values, old_values, returns, clip_range=None)\n        metrics",
           "ppo.value_clip is ignored", WHOLE_UPDATE),
    Mutant(PPO, "**clip, dual_clip=ppo.dual_clip", "**clip, dual_clip=None",
           "ppo.dual_clip is ignored", WHOLE_UPDATE),
    Mutant(PPO, "scores - ppo.score_baseline", "scores + ppo.score_baseline",
           "the baseline is added to the scores", SHAPED),
    Mutant(PPO, "0.0 if sample.ended else 1.0", "1.0 if sample.ended else 0.0",
           "completions that ended pay the penalty of those that did not", SHAPED),
    Mutant(PPO, "ppo.length_penalty * lengths", "ppo.length_penalty * lengths.mean()",
           "every completion pays for the mean length", SHAPED),
    Mutant(PPO, "scores = scores / state.moments.scale", "scores = scores / scores.std(unbiased=False)",
           "running scaling knows one rollout alone", SCALED),
    Mutant(PPO, "if index >= config.ppo.critic_warmup_rollouts:", "if True:",
           "the KL coefficient follows the warm-up of the critic",
           f"{TEST_PPO}::test_the_warm_up_of_the_critic_leaves_the_kl_coefficient"),
    Mutant(PPO, "only_critic = index < ppo.critic_warmup_rollouts", "only_critic = index <= ppo.critic_warmup_rollouts",
           "the warm-up takes a rollout too many", WARM_UP),
    Mutant(PPO, "states = states.detach()  # the trunk", "pass  # the trunk",
           "the warm-up of a head on the policy's trunk trains the trunk", WARM_UP),
    Mutant(PPO, "torch.cat([per_prompt[chosen[i]] for i in indices])", "torch.cat([per_prompt[i] for i in indices])",
           "a minibatch takes the targets of the first prompts", WHOLE_UPDATE),
    Mutant(PPO_SETUP, "if not kl <= kl_budget:", "if kl > kl_budget:",
           "a KL that is no number is within the budget",
           f"{TEST_PPO}::test_a_kl_that_is_no_number_is_over_the_budget"),
    Mutant(ROLLOUTS_SETUP, 'copy_of="policy" if start_from is not None else None', 'copy_of=None',
           "the reference of a trained policy is the base",
           f"{TEST_PPO}::test_the_reference_is_what_the_policy_started_from"),
    Mutant(ROLLOUTS_SETUP, '"reward" if reward.role is not None else "policy"', '"policy"',
           "the critic never starts from the reward role",
           f"{TEST_PPO}::test_the_critic_starts_from_the_reward_role_where_there_is_one"),
    Mutant(ROLLOUTS_SETUP, "temperature=generation.temperature,", "",
           "generation.temperature is ignored in sampling", WHOLE_UPDATE),
    Mutant(ROLLOUTS_SETUP, "return num_epochs * sum(", "return sum(",
           "the schedule ends with the first epoch of PPO",
           f"{TEST_PPO}::test_the_schedule_counts_every_step_of_every_epoch"),
    Mutant(PPO_SETUP, 'self.updates_done = state["updates_done"]', "pass",
           "the cursor of PTX texts begins anew on resume",
           "tests/recipes/test_resume.py::test_interrupted_equals_uninterrupted[ppo]"),
    # -------------------------------------------------------------------------------------------------------- dpo
    Mutant(DPO, "start=torch.zeros(())) / len(examples)", "start=torch.zeros(())) / len(indices)",
           "every microbatch of preferences weighs the same",
           f"{TEST_DPO}::test_the_split_into_microbatches_changes_nothing"),
    Mutant(DPO, "[weight * list_loss(name, lists, group) for", "[list_loss(name, lists, group) for",
           "the weights of a mixture are ignored", MIXTURE),
    Mutant(DPO, "[cached[i] for i in minibatches.indices(step)]", "list(cached[: len(examples)])",
           "cached reference log-probs are those of the first rows", FIRST_STEP),
    Mutant(DPO, "values * lists.pairs.weight * ~lists.pairs.tie", "values * ~lists.pairs.tie",
           "lists weigh by their number of comparisons", WEIGHTS),
    Mutant(DPO, "values * lists.pairs.weight * ~lists.pairs.tie", "values * lists.pairs.weight",
           "ties are learnt as preferences", WEIGHTS),
    Mutant(LISTS, "grades.index(max(grades))", "grades.index(min(grades))",
           "nll learns the worst answer",
           f"{TEST_DPO}::test_every_loss_over_pairs_learns_the_order"),
    Mutant(DPO, "group.beta or LOSSES[loss].beta", "LOSSES[loss].beta",
           "preference.beta is ignored", FIRST_STEP),
    Mutant(DPO, '"gamma": group.gamma}', '"gamma": 0.0}',
           "preference.gamma is ignored", f"{TEST_PARITY}::test_all_rows_have_trl_s_loss_gradient_and_metrics"),
    Mutant(DPO, "desirable_weight=group.desirable_weight,", "",
           "the weights of KTO are ignored", f"{TEST_PARITY}::test_kto_has_trl_s_loss_kl_and_gradient"),
    Mutant(DPO, "if list(other.prompt_ids) != prompt)", "if list(other.prompt_ids) == prompt)",
           "KTO's mismatched answers are to the same prompt",
           f"{TEST_DPO}::test_ktos_mismatched_answer_is_one_to_another_prompt"),
    Mutant(DPO, "to_device(good[indices]", "to_device(~good[indices]",
           "KTO learns the bad answers", KTO),
    Mutant(DPO, "sign = 1 if example.row and example.row.columns[\"label\"] else -1", "sign = 1",
           "a bad answer that rises counts as right", KTO),
    Mutant(DPO_SETUP, "for k, good in ((best, True), (worst, False))", "for k, good in ((best, False), (worst, True))",
           "KTO reads pairs the wrong way round",
           f"{TEST_DPO_DATA}::test_kto_takes_the_best_and_the_worst_of_a_list"),
    Mutant(DPO_SETUP, 'base.add_role("reference", copy_of="policy")', 'base.add_role("reference")',
           "DPO's reference of a trained policy is the base", FIRST_STEP),
    Mutant(DPO_SETUP, 'load_role(base, "reference", config.reference_role, kinds=("policy",))',
           'base.add_role("reference", copy_of="policy")',
           "reference_role is ignored",
           f"{TEST_DPO}::test_a_reference_of_its_own_is_what_the_margins_are_measured_from"),
    Mutant(CACHE, "weight.contiguous().view(torch.uint8).numpy().tobytes()", "b''",
           "another reference's cached log-probs are used",
           f"{TEST_DPO}::test_the_references_log_probs_are_kept_and_read_again_where_nothing_changed"),
    # ----------------------------------------------------------------------------------------------- reward, sft
    Mutant(REWARD, "return per_pair.sum() / len(examples) + centering",
           "return per_pair.sum() / len(indices) + centering",
           "every microbatch of comparisons weighs the same",
           f"{TEST_REWARD}::test_the_split_into_microbatches_changes_nothing"),
    Mutant(REWARD, "/ sum(len(e.completions) for e in examples)", "/ len(examples)",
           "centering is a mean over prompts", FIRST_LOSS),
    Mutant(REWARD, "centering_coefficient * centering_loss(scores)", "centering_loss(scores)",
           "ranking.centering_coefficient is ignored", FIRST_LOSS),
    Mutant(REWARD, "everything.std(unbiased=False)", "everything.std()",
           "the held-out deviation of scores is that of a sample",
           f"{TEST_REWARD}::test_pairs_are_learned_and_the_role_knows_its_held_out_scores"),
    Mutant(REWARD, "scores[pair.better] > scores[pair.worse]", "scores[pair.better] >= scores[pair.worse]",
           "held-out answers of equal scores count as right",
           f"{TEST_REWARD}::test_a_role_that_cannot_tell_answers_apart_is_right_about_none"),
    Mutant(REWARD, 'base.scalar_role("reward").pooling = config.ranking.pooling', "pass",
           "ranking.pooling is ignored",
           f"{TEST_REWARD}::test_mean_pooling_scores_the_mean_of_the_answers_states"),
    Mutant("onebase/rewards/learned.py", "(scores - self._role.moments.mean) / self._role.moments.std",
           "scores / self._role.moments.std",
           "normalised scores are not centred",
           "tests/rewards/test_learned.py::test_normalised_scores_are_deviations_from_the_held_out_mean"),
    Mutant(SFT, "minibatches.examples(step)", "minibatches.examples(0)",
           "SFT reads the same minibatch in every step", f"{TEST_SFT}::test_an_epoch_reads_every_row_once"),
    Mutant(DPO, "minibatches.examples(step)", "minibatches.examples(0)",
           "DPO reads the same minibatch in every step", f"{TEST_DPO}::test_an_epoch_reads_every_row_once"),
    Mutant(REWARD, "minibatches.examples(step)", "minibatches.examples(0)",
           "reward reads the same minibatch in every step", f"{TEST_REWARD}::test_an_epoch_reads_every_row_once"),
    # ------------------------------------------------------------------------------------------- best-of, iterate
    Mutant(SAMPLED_ROWS, "key=lambda k: -scores[k])", "key=lambda k: scores[k])",
           "the worst answer is written as the best", WRITTEN),
    Mutant(BEST_OF, "self._seeds[first * self._count : (first + len(asked)) * self._count]",
           "self._seeds[: len(asked) * self._count]",
           "later prompts are sampled with the first ones' random numbers",
           f"{TEST_BEST_OF}::test_every_prompt_draws_its_own_numbers_also_beyond_the_first_sampled_together"),
    Mutant(BEST_OF, "own = part.samples[i * count : (i + 1) * count]", "own = part.samples[i::len(asked)]",
           "answers are written to other prompts", WRITTEN),
    Mutant(SAMPLED_ROWS, "first, last = ranked[0], ranked[-1]\n", "first, last = ranked[0], ranked[1]\n",
           "the second best answer is the rejected one", WRITTEN),
    Mutant(SAMPLED_ROWS, "if text.strip() and text.strip() != chosen.text.strip()", "if text.strip()",
           "the data's own answer is rejected against itself",
           f"{TEST_BEST_OF}::test_the_datas_own_answer_is_never_its_own_rejected_one"),
    Mutant(ITERATE, "number - 1, num_examples=len(rows)", "0, num_examples=len(rows)",
           "every round samples the same prompts", ROUNDS),
    Mutant(ITERATE, 'mixed_seed("round", config.seed, number)', 'mixed_seed("round", config.seed)',
           "every round has the same seed",
           f"{TEST_ITERATE}::test_every_round_samples_and_learns_with_a_seed_of_its_own"),
    Mutant(ITERATE, 'policy = str(folder / "learn" / "policy")', "pass",
           "every round begins with the first policy",
           f"{TEST_ITERATE}::test_a_kept_reference_is_the_first_policy_and_a_renewed_one_the_last"),
    Mutant(ITERATE, 'None if config.reference == "renewed"', 'None if config.reference != "renewed"',
           "a kept reference is renewed",
           f"{TEST_ITERATE}::test_a_kept_reference_is_the_first_policy_and_a_renewed_one_the_last"),
]  # fmt: skip
