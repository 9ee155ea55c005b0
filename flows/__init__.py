"""Everything that uses S3 or Prefect: jobs, plans, shards, manifests, the flow and the command line."""

import os

# Must be set before pyarrow is loaded. Arrow's own allocator keeps memory that is no longer used: 60 MiB more for a
# million photographs.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
