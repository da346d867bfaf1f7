"""What outlasts a run: its directory, metrics, timing and what is shown of them."""
