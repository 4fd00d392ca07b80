"""The Results tab: runs compared, and the report."""
