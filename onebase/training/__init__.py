"""What every recipe shares: the run's folder, the optimizer step, memory, metrics, rollouts."""
