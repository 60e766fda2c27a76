"""Metrics as `evaluate` modules, one folder each; `evaluate.load(FOLDER)` works offline.

The mathematics of a metric is in a separate file that does not import `evaluate`, because the tasks share it.
`push_to_hub --metric` adds the page and uploads a metric as a Space.
"""
