"""Settings, the method as a module, optimizer, checkpoints, and what one sees of a run."""
