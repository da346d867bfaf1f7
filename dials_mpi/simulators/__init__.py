"""The world: transition, reward and observation functions. Knows numpy, not torch, MPI or learning."""
