"""The run protocol, the executors, and the work on a shard."""
