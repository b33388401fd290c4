"""Reward sources, all behind `records.RewardSource`: the reward role, a Python function, a classifier."""
