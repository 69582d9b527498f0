from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from small_doge.ops.swiglu import naive_swiglu


def test_the_first_half_gates_the_second():
    joint = torch.tensor([[0.0, 100.0, -100.0, 3.0, 4.0, 5.0]])
    torch.testing.assert_close(naive_swiglu(joint), torch.tensor([[0.0, 400.0, 0.0]]))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_equal_the_definition_in_the_interpreter():
    script = Path(__file__).with_name("interpreted.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    # Not (x < y): NaN must fail.
    assert len(errors) == 2 and not {name: found for name, found in errors.items() if not max(found) < 1e-6}
