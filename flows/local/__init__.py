"""The embedded servers (SeaweedFS and Prefect on loopback) and the demo that uses them."""
