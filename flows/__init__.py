"""Everything that knows S3 or Prefect: jobs, plans, shards, manifests, the flow and the command line."""
