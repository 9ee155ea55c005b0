"""The embedded stack (SeaweedFS and Prefect on loopback) and the demo that runs on it."""
