"""Which heads and neurons to compute: one file a method."""
