"""Objects in S3: addresses, requests with retries, listings."""
