"""What Hydra finds in its own namespace alone: the launcher and the sweeper of genlab."""
