"""What people ranked: tasks, judgements and people in a database."""
