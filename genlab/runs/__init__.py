"""Run directories: their files, manifests, identity and locks (standard library only)."""
