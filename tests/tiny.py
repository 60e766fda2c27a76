"""What tests share: the flags of a tiny run, and the commands and scripts as modules."""

import importlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMANDS = ("pretrain", "evaluate", "finetune", "push_to_hub")
# A tiny model on views of 16 pixels.
SIZES = "--image_size 16 --patch_size 8 --feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16"
# A run of seconds on a CPU; the number of steps is the test's.
TINY = f"{SIZES} --per_device_train_batch_size 4 --warmup_steps 2 --probe_samples 0".split()
TWO_PROCESSES = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()]


def png(image: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def load_script(name: str) -> ModuleType:
    """The command or script as a module, so that its `cli(argv)` runs in this process."""
    if name in COMMANDS:
        return importlib.import_module(f"eqcohvit.commands.{name}")
    if str(SCRIPTS) not in sys.path:  # as when Python runs the script
        sys.path.append(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
