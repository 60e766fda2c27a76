from evaluate.utils import launch_gradio_widget

import evaluate

launch_gradio_widget(evaluate.load("r2.py"))
