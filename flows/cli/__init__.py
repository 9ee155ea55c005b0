"""The `dreamgrid` command."""
