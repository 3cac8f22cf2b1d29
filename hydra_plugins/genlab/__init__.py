"""The launcher and the sweeper of genlab, which Hydra looks up in this namespace."""
