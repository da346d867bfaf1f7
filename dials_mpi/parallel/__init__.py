"""Who runs what and how it travels: arrays and ranks, no reinforcement learning."""
