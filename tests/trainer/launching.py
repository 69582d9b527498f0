"""Stages through accelerate's own command line, on CPU processes that exchange by gloo."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes/accelerate_configs"


def start(config: str, argv: list[str], kind: str = "pt") -> subprocess.Popen[str]:
    """Start the config's processes with a stage and its options."""
    script = str(ROOT / f"src/small_doge/trainer/doge/{kind}.py")
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    command += ["--main_process_port", str(free_port()), script, *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], stdout=pipe, stderr=pipe, text=True, env=environment)


def free_port() -> int:
    """A port below those that connections get by themselves: one of theirs may be taken before it is listened on."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", port)):
                return port


def launch(config: str, argv: list[str], kind: str = "pt") -> None:
    """Run the processes to their end."""
    process = start(config, argv, kind)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
