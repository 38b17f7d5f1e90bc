"""Data on the host: records, the decoded cache, samplers and batches."""
