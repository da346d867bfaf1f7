"""What a run takes: costs measured here, and a model of any number of ranks and machines."""
