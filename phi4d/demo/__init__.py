"""The trained tiny checkpoint and sample files, for trying the plumbing and for tests."""
