"""What every method stands on: the session of a run, its plan, its checkpoints, its evaluations."""
