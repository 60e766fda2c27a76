"""The parts of scripts/benchmark.py: how it measures, what it measures, and the plain pipeline beside which it
measures."""
