"""Dreams of single photographs, and of noise, on this machine without a run."""
