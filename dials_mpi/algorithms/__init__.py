"""What is learned in which order; SPMD, one file per algorithm. Evaluation alone needs no MPI library."""
