"""Writers: what a live run leaves on disk, its timing, and what is shown of it meanwhile."""
