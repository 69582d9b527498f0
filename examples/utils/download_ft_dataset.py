"""The name that the training guide gives `download_ft_datasets.py`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("download_ft_datasets.py")), run_name="__main__")
