"""What a process may use of this machine, and how it talks to people: capacity, threads, terminal, log."""
