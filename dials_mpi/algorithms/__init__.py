"""What is learned in which order; SPMD, one file per method."""
