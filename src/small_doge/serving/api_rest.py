"""The models, embeddings, the server's health and its metrics."""

from __future__ import annotations

import base64

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from small_doge.serving.models import ServedModel
from small_doge.serving.preparation import prepare_inputs
from small_doge.serving.responses import EmbeddingResponse, Health, Model, ModelList
from small_doge.serving.schemas import EmbeddingRequest
from small_doge.serving.service import Served
from small_doge.serving.streaming import while_connected

router = APIRouter()


@router.get("/v1/models", response_model=ModelList, summary="List the models")
async def list_models(service: Served) -> ModelList:
    """The models that the server was started with; there are no others."""
    return ModelList(data=[_described(model) for model in service.models])


@router.get("/v1/models/{model:path}", response_model=Model, summary="Look at a model")
async def get_model(model: str, service: Served) -> Model:
    """One of the models; its id may have slashes."""
    return _described(service.models[model])


def _described(model: ServedModel) -> Model:
    return Model(id=model.name, created=model.created)


@router.post("/v1/embeddings", response_model=EmbeddingResponse, summary="Embed texts")
async def embeddings(body: EmbeddingRequest, request: Request, service: Served) -> Response:
    """The mean of the last hidden states over the tokens of each input."""
    model = service.models[body.model]
    inputs = await model.in_text_thread(lambda: prepare_inputs(model, body))
    vectors = await while_connected(request, model.embed(inputs), lambda: None)
    tokens = sum(map(len, inputs))
    wanted = [
        base64.b64encode(vector.astype("<f4").tobytes()).decode()
        if body.encoding_format == "base64"
        else vector.tolist()
        for vector in vectors
    ]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(wanted)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})


@router.get("/health", response_model=Health, summary="Is the server well?", responses={503: {"model": Health}})
async def health(service: Served) -> Response:
    """200 while requests can be answered; needs no key."""
    alive = all(model.batcher.alive for model in service.models)
    status = "stopping" if service.stopping else "ok" if alive else "failing"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(service: Served) -> Response:
    """Counters in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
