"""What one application holds: no state lives outside it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from small_doge.serving.metrics import Metrics
from small_doge.serving.models import ModelList
from small_doge.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


@dataclass
class Service:
    """The models, options and counters of one application."""

    models: ModelList
    settings: ServerSettings
    metrics: Metrics
    stopping: bool = False
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        """Let the models work."""
        for model in self.models:
            model.batcher.start()

    def begin_shutdown(self) -> None:
        """Refuse new requests; those under way may go on for `grace_seconds`, and then end with an error."""
        if self.stopping:
            return
        self.stopping = True
        for model in self.models:
            model.batcher.refuse_new()
        task = asyncio.get_running_loop().create_task(self._end_what_is_left())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_what_is_left(self) -> None:
        await asyncio.sleep(self.settings.grace_seconds)
        for model in self.models:
            model.batcher.abort()

    def close(self) -> None:
        """End all threads."""
        for model in self.models:
            model.close()

    def log_text(self, what: str, text: str) -> None:
        """Write a prompt or an answer to the log, if the person who started the server wants that."""
        if self.settings.log_prompts:
            logger.info("%s: %s", what, text)


async def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]
