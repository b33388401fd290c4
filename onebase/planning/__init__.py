"""What a run will need before it runs: how large, how long, how much."""
