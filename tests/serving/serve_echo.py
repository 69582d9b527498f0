"""A server process for the tests that kill it: `python serve_echo.py TOKENIZER_FOLDER PORT`."""

from __future__ import annotations

import sys

from engines import EchoEngine
from servers import LIMITS
from transformers import AutoTokenizer

from small_doge.serving.app import create_app
from small_doge.serving.metrics import Metrics
from small_doge.serving.models import ServedModel
from small_doge.serving.server import make_server
from small_doge.serving.settings import ServerSettings

if __name__ == "__main__":
    metrics = Metrics()
    engine = EchoEngine(AutoTokenizer.from_pretrained(sys.argv[1]), 0.01)
    model = ServedModel("echo", engine, 2048, len(engine.tokenizer), LIMITS, metrics.for_model("echo"))
    settings = ServerSettings(port=int(sys.argv[2]), batch=LIMITS)
    make_server(create_app([model], settings, metrics), settings).run()
