"""Mutants of `onebase/objectives`: signs, normalisers, masks and what gradients flow through."""

from tests.mutants.mutant import Mutant

ADVANTAGES = "onebase/objectives/advantages.py"
KL = "onebase/objectives/kl.py"
MASKED = "onebase/objectives/masked.py"
MOMENTS = "onebase/objectives/moments.py"
POLICY = "onebase/objectives/policy.py"
PREFERENCE = "onebase/objectives/preference.py"
RANKED = "onebase/objectives/ranked.py"
REFERENCE_FREE = "onebase/objectives/reference_free.py"
REWARD = "onebase/objectives/reward.py"
UNPAIRED = "onebase/objectives/unpaired.py"

TEST_ADVANTAGES = "tests/objectives/test_advantages.py"
TEST_KL = "tests/objectives/test_kl.py"
TEST_MASKED = "tests/objectives/test_masked.py"
TEST_MOMENTS = "tests/objectives/test_moments.py"
TEST_POLICY = "tests/objectives/test_policy.py"
TEST_PREFERENCE = "tests/objectives/test_preference.py"
TEST_RANKED = "tests/objectives/test_ranked.py"
TEST_REFERENCE_FREE = "tests/objectives/test_reference_free.py"
TEST_REWARD = "tests/objectives/test_reward.py"
TEST_UNPAIRED = "tests/objectives/test_unpaired.py"

MUTANTS = [
    # ------------------------------------------------------------------------------------------------- advantages
    Mutant(ADVANTAGES, "rewards[:, t] + gamma * next_value", "rewards[:, t] + next_value",
           "the next value is not discounted", TEST_ADVANTAGES),
    Mutant(ADVANTAGES, "delta + gamma * lam * next_advantage", "delta + lam * next_advantage",
           "the next advantage is not discounted", TEST_ADVANTAGES),
    Mutant(ADVANTAGES, "torch.where(real, values[:, t], next_value)", "values[:, t]",
           "the value of a masked column is bootstrapped from", TEST_ADVANTAGES),
    Mutant(ADVANTAGES, "torch.where(mask, advantages + values, 0)", "torch.where(mask, advantages, 0)",
           "returns are advantages", TEST_ADVANTAGES),
    Mutant(ADVANTAGES, "torch.where(real, next_advantage, 0)", "next_advantage",
           "masked columns hold an advantage", TEST_ADVANTAGES),
    Mutant(ADVANTAGES, "/ masked_variance(returns, mask)", "/ masked_variance(values, mask)",
           "explained variance is a share of the variance of values", TEST_ADVANTAGES),
    # --------------------------------------------------------------------------------------------------------- kl
    Mutant(KL, "difference = logprobs - reference_logprobs", "difference = reference_logprobs - logprobs",
           "the KL has the other direction", TEST_KL),
    Mutant(KL, "return 0.5 * difference.square()", "return difference.square()",
           "k2 without its half", TEST_KL),
    Mutant(KL, "torch.expm1(-difference) + difference", "torch.expm1(difference) - difference",
           "k3 of the other direction", TEST_KL),
    Mutant(KL, "mask & (real_tokens_from_here == 1)", "mask & (mask.cumsum(1) == 1)",
           "the score stands on the first token", TEST_KL),
    Mutant(KL, "torch.where(mask, -kl_coefficient * kl, 0)", "torch.where(mask, kl_coefficient * kl, 0)",
           "KL is rewarded", TEST_KL),
    Mutant(KL, "penalty + torch.where(is_last, scores.unsqueeze(1), 0)",
           "torch.where(is_last, scores.unsqueeze(1), penalty)",
           "the last token pays no KL", TEST_KL),
    Mutant(KL, "kl / self.target - 1, -0.2", "1 - kl / self.target, -0.2",
           "the adaptive coefficient falls where KL is too high", TEST_KL),
    Mutant(KL, "1 + error * num_samples / self.horizon", "1 + error / self.horizon",
           "the adaptive coefficient moves by rollouts rather than samples", TEST_KL),
    # ----------------------------------------------------------------------------------------------------- masked
    Mutant(MASKED, "torch.where(mask, values, 0).sum() / mask.sum()",
           "torch.where(mask, values, 0).sum() / mask.numel()",
           "the masked mean divides by all entries", TEST_MASKED),
    Mutant(MASKED, "(masked_mean(centred.square(), mask) + EPSILON).rsqrt()",
           "(masked_mean(centred.square(), mask) + EPSILON).reciprocal()",
           "whitening divides by the variance", TEST_MASKED),
    Mutant(MASKED, "whiten(values, mask) + masked_mean(values, mask), 0)", "whiten(values, mask), 0)",
           "scaling to unit variance drops the mean", TEST_MASKED),
    Mutant(MASKED, "sums / counts.clamp_min(1)", "sums / counts.max().clamp_min(1)",
           "the mean of a completion divides by the longest", TEST_MASKED),
    Mutant(MASKED, "device=values.device) < counts.unsqueeze(1)", "device=values.device) <= counts.unsqueeze(1)",
           "the mask of padded completions has a column too many", TEST_MASKED),
    Mutant(MASKED, "counts = torch.bincount(completion_index, minlength=num_completions)  # [N]",
           "counts = torch.bincount(completion_index).repeat(num_completions)[:num_completions]",
           "completions without a token take the length of others", TEST_MASKED),
    # ---------------------------------------------------------------------------------------------------- moments
    Mutant(MOMENTS, "shift * shift * self._count * values.numel() / count", "shift * shift * self._count / count",
           "the shift between two batches is weighted by one alone", TEST_MOMENTS),
    Mutant(MOMENTS, "self._mean += shift * values.numel() / count", "self._mean += shift / 2",
           "the running mean forgets how much it has seen", TEST_MOMENTS),
    Mutant(MOMENTS, "math.sqrt(self._squared_deviations / self._count)", "self._squared_deviations / self._count",
           "the running deviation is the variance", TEST_MOMENTS),
    Mutant(MOMENTS, 'self._mean = float(state["mean"])', "self._mean = 0.0",
           "the running mean is lost on resume", TEST_MOMENTS),
    # ----------------------------------------------------------------------------------------------------- policy
    Mutant(POLICY, "loss = torch.maximum(unclipped, clipped)", "loss = torch.minimum(unclipped, clipped)",
           "the policy loss is the optimistic one of two", TEST_POLICY),
    Mutant(POLICY, "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)",
           "the two clips of the ratio are swapped", TEST_POLICY),
    Mutant(POLICY, "torch.where(advantages < 0, torch.minimum", "torch.where(advantages > 0, torch.minimum",
           "the dual clip bounds positive advantages", TEST_POLICY),
    Mutant(POLICY, "torch.exp(logprobs - old_logprobs.detach())", "torch.exp(logprobs - old_logprobs)",
           "gradients flow through the old log-probs", TEST_POLICY),
    Mutant(POLICY, "advantages = advantages.detach()", "advantages = advantages",
           "gradients flow through the advantages", TEST_POLICY),
    Mutant(POLICY, '"policy/approxkl": 0.5 * (', '"policy/approxkl": (',
           "the approximate KL is twice what it is", TEST_POLICY),
    Mutant(POLICY, '"policy/clipfrac": (clipped > unclipped)', '"policy/clipfrac": (clipped >= unclipped)',
           "tokens inside the clip count as clipped", TEST_POLICY),
    Mutant(POLICY, "return 0.5 * torch.maximum(unclipped, clipped)", "return 0.5 * torch.minimum(unclipped, clipped)",
           "the value loss is the optimistic one of two", TEST_POLICY),
    Mutant(POLICY, "return 0.5 * torch.maximum(unclipped, clipped)", "return torch.maximum(unclipped, clipped)",
           "the value loss without its half", TEST_POLICY),
    Mutant(POLICY, "_value_errors(values, old_values.detach(), returns.detach(), clip_range)",
           "_value_errors(values, old_values.detach(), returns, clip_range)",
           "gradients flow through the returns", TEST_POLICY),
    # ------------------------------------------------------------------------------------------------- preference
    Mutant("onebase/objectives/_pairs.py", "label_smoothing * F.logsigmoid(-margin)",
           "label_smoothing * F.logsigmoid(margin)",
           "the smoothed label is the same label", TEST_PREFERENCE),
    Mutant(PREFERENCE, "beta * (logprobs - reference_logprobs.detach())", "beta * (logprobs - reference_logprobs)",
           "gradients flow through the reference", TEST_PREFERENCE),
    Mutant(PREFERENCE, "beta * (logprobs - reference_logprobs.detach())", "logprobs - reference_logprobs.detach()",
           "beta is left out of the implicit rewards", TEST_PREFERENCE),
    Mutant(PREFERENCE, "smoothed(beta * lead, label_smoothing)", "smoothed(lead, label_smoothing)",
           "beta is left out of the length-normalised loss", TEST_PREFERENCE),
    Mutant(PREFERENCE, "/ (1 - 2 * label_smoothing)", "/ (1 - label_smoothing)",
           "the robust loss divides by the wrong share of flips", TEST_PREFERENCE),
    Mutant(PREFERENCE, "F.relu(1 - _reward_margin(", "F.relu(-_reward_margin(",
           "the hinge asks for no lead", TEST_PREFERENCE),
    Mutant(PREFERENCE, "(lead - 1 / (2 * beta)).square()", "(lead - 1 / beta).square()",
           "IPO aims at twice its target", TEST_PREFERENCE),
    Mutant(PREFERENCE, "(rejected - reference_rejected.detach()) / rejected_lengths",
           "(rejected - reference_rejected.detach()) / chosen_lengths",
           "the rejected answer is normalised by the chosen one's length", TEST_PREFERENCE),
    # ----------------------------------------------------------------------------------------------------- ranked
    Mutant(RANKED, "mean_logprobs.unsqueeze(0) - mean_logprobs.unsqueeze(1)",
           "mean_logprobs.unsqueeze(1) - mean_logprobs.unsqueeze(0)",
           "RRHF pushes the worse answer up", TEST_RANKED),
    Mutant(RANKED, "same_list & (grades.unsqueeze(1) > grades.unsqueeze(0))",
           "grades.unsqueeze(1) > grades.unsqueeze(0)",
           "answers compete across lists", TEST_RANKED),
    Mutant(RANKED, "grades.unsqueeze(1) > grades.unsqueeze(0)", "grades.unsqueeze(1) >= grades.unsqueeze(0)",
           "equal grades compete", TEST_RANKED),
    Mutant(RANKED, "rivals.logsumexp(1)", "rivals.logsumexp(0)",
           "Plackett-Luce sums over the wrong axis", TEST_RANKED),
    # --------------------------------------------------------------------------------------------- reference-free
    Mutant(REFERENCE_FREE, "(chosen_mean - rejected_mean) - gamma)", "(chosen_mean - rejected_mean) + gamma)",
           "SimPO's margin has the wrong sign", TEST_REFERENCE_FREE),
    Mutant(REFERENCE_FREE, "mean - torch.log(-torch.expm1(mean))", "mean + torch.log(-torch.expm1(mean))",
           "ORPO multiplies by the complement instead of dividing", TEST_REFERENCE_FREE),
    Mutant(REFERENCE_FREE, "chosen / chosen_lengths, rejected / rejected_lengths",
           "chosen / chosen_lengths, rejected / chosen_lengths",
           "the rejected mean is taken over the chosen one's length", TEST_REFERENCE_FREE),
    # ----------------------------------------------------------------------------------------------------- reward
    Mutant(REWARD, "difference if margin is None else difference - margin",
           "difference if margin is None else difference + margin",
           "the margin of a comparison has the wrong sign", TEST_REWARD),
    Mutant(REWARD, "torch.where(tie, difference, led)", "led",
           "a margin applies to ties", TEST_REWARD),
    Mutant(REWARD, "0.5 * (ranked + F.logsigmoid(-led))", "(ranked + F.logsigmoid(-led))",
           "a tie counts twice", TEST_REWARD),
    Mutant(REWARD, "[1 / len(comparisons) for _ in comparisons]", "[1.0 for _ in comparisons]",
           "long lists outweigh pairs", TEST_REWARD),
    Mutant(REWARD, "(difference > 0) & counted", "(difference >= 0) & counted",
           "equal scores count as right", TEST_REWARD),
    Mutant(REWARD, "torch.randperm(len(comparisons), generator=generator)[:max_pairs]",
           "torch.arange(len(comparisons))[:max_pairs]",
           "the first comparisons of a list are taken every time", TEST_REWARD),
    Mutant(REWARD, "scores.square()", "scores.abs()",
           "the centering loss is absolute", TEST_REWARD),
    # --------------------------------------------------------------------------------------------------- unpaired
    Mutant(UNPAIRED, ".mean().clamp_min(0)", ".mean()",
           "KTO's reference point falls below zero", TEST_UNPAIRED),
    Mutant(UNPAIRED, "- beta * kl_estimate.detach()", "- kl_estimate.detach()",
           "KTO's reference point is not scaled by beta", TEST_UNPAIRED),
    Mutant(UNPAIRED, "desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)",
           "undesirable_weight * torch.sigmoid(-gain), desirable_weight * torch.sigmoid(gain)",
           "KTO's two weights are swapped", TEST_UNPAIRED),
    Mutant(UNPAIRED, "desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)",
           "desirable_weight * torch.sigmoid(gain), undesirable_weight * torch.sigmoid(-gain)",
           "KTO pushes desirable answers down", TEST_UNPAIRED),
]  # fmt: skip
