"""Pictures, videos and charts as arrays and files (no torch)."""
