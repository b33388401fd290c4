"""Sources of scores, all behind `records.RewardSource`: the reward role, a Python callable, another model."""
