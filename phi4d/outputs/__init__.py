"""The outputs room: one writer for each format, and the one atomic write."""
