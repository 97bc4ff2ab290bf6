"""TensorRT as far as a worker imports it."""

import os
from pathlib import Path

__version__ = Path(os.environ["STUB_FOLDER"], "tensorrt").read_text()
