"""Mutants of reinforcement fine-tuning: its advantages, weights and losses, beside those of TRL."""

from tests.mutants.mutant import Mutant

ADVANTAGES = "onebase/objectives/advantages.py"
LENGTHS = "onebase/objectives/lengths.py"
RFT = "onebase/recipes/rft.py"

PARITY = "tests/recipes/test_trl_rl_parity.py::test_advantages_loss_and_gradients_are_trl_s"

MUTANTS = [
    Mutant(ADVANTAGES, "groups.std(1, keepdim=True) + DEVIATION_OFFSET",
           "groups.std(1, keepdim=True, correction=0) + DEVIATION_OFFSET",
           "a group's deviation is over K and not K - 1", f"{PARITY}[tree-grpo]"),
    Mutant(ADVANTAGES, "groups.std() + DEVIATION_OFFSET", "groups.std(1, keepdim=True) + DEVIATION_OFFSET",
           "deviation rollout is that of the group", f"{PARITY}[tree-grpo_batch]"),
    Mutant(ADVANTAGES, "- groups) / (num_per_prompt - 1)", "- groups) / num_per_prompt",
           "the mean of the others is over K", f"{PARITY}[tree-rloo]"),
    Mutant(LENGTHS, "1.0 / (lengths.numel() * lengths.double())", "1.0 / lengths.double()",
           "a loss over completions is their sum", f"{PARITY}[tree-grpo]"),
    Mutant(LENGTHS, "1.0 / (lengths.numel() * max_length)", "1.0 / int(lengths.sum())",
           "the constant normaliser depends on the lengths", f"{PARITY}[tree-dr_grpo]"),
    Mutant(RFT, 'reduction="mean" if kind == "gspo" else "sum"', 'reduction="mean"',
           "sequence_clip clips the mean ratio of the tokens", f"{PARITY}[tree-rloo]"),
    Mutant(RFT, "per_token = per_token + rft.kl_coefficient * kl", "per_token = per_token + kl",
           "the KL in the loss has no weight", f"{PARITY}[tree-grpo_kl]"),
]  # fmt: skip
