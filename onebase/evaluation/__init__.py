"""What a policy does on held-out prompts: scores, KL, intervals, samples, pictures."""
