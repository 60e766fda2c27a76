"""The page of the metric, laid out as that of every metric on the Hub."""

from evaluate.utils import launch_gradio_widget

import evaluate

launch_gradio_widget(evaluate.load("pck.py"))
