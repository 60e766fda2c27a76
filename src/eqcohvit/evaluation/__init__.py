"""What features know: one extractor, probes and tasks on it, and reports."""
