"""This machine and its processes: capacity, worker processes, prefetching, proxies, progress, terminal and log."""
