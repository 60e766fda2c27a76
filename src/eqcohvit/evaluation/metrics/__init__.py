"""Metrics as `evaluate` modules: one folder each, laid out as its Space on the Hub; `evaluate.load(FOLDER)` works
offline.

A module's mathematics lies in a file of its own beside it, which imports no `evaluate`: the tasks share it.
"""
