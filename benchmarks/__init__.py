"""Time and memory of Dreamgrid, beside the same step in plain torch. Run `python -m benchmarks`."""

import flows  # noqa: F401 - chooses Arrow's allocator before pyarrow is loaded, as in a real run
