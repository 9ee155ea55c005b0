"""Images and videos of unknown origin, read in child processes with few rights."""
