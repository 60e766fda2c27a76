"""Evaluation of frozen features: extraction, probes, tasks, label propagation through videos, reports."""
