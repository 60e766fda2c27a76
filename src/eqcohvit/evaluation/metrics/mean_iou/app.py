from evaluate.utils import launch_gradio_widget

import evaluate

launch_gradio_widget(evaluate.load("mean_iou.py"))
