"""The other routes: completions, embeddings, models, health and metrics."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import openai
import pytest


def test_a_completion_goes_on_from_the_prompt_without_a_template(client):
    reply = client.completions.create(model="org/tiny", prompt="The quick", max_tokens=5, temperature=0)
    assert reply.object == "text_completion" and reply.choices[0].finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens <= 5


def test_several_prompts_and_choices_come_in_order(client, tokenizer):
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    reply = client.completions.create(model="echo", prompt=[ids, ids[:1]], n=2, max_tokens=len(ids))
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    first = tokenizer.decode(ids[:1])
    assert [choice.text for choice in reply.choices] == ["abc", "abc", first, first]
    assert [choice.finish_reason for choice in reply.choices] == ["length", "length", "stop", "stop"]
    assert reply.usage.prompt_tokens == len(ids) + 1


def test_a_completion_streams(client):
    stream = client.completions.create(
        model="echo", prompt="abc def", stream=True, stream_options={"include_usage": True}, max_tokens=30
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "abc def"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.total_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_log_probabilities_have_the_older_shape(client, stream):
    answer = client.completions.create(model="echo", prompt="abc def", logprobs=2, temperature=0, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    assert "".join(tokens) == "<|begin_of_text|>abc def<|end_of_text|>"
    assert offsets == [0, *np.cumsum([0, *[len(token) for token in tokens[1:-1]]]).tolist()]
    assert all(value <= 0 for part in parts for value in part.token_logprobs)
    assert all(len(top) == 2 for part in parts for top in part.top_logprobs)


def test_the_same_seed_draws_the_same_text_and_another_one_another(client):
    def draw(seed, **options):
        return (
            client.completions.create(
                model="org/tiny", prompt="The", max_tokens=12, temperature=1, seed=seed, **options
            )
            .choices[0]
            .text
        )

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, presence_penalty=0.5) == draw(1, presence_penalty=0.5) != draw(2, presence_penalty=0.5)


def test_embeddings_are_the_mean_of_the_last_hidden_states(server, client):
    import torch

    reply = client.embeddings.create(model="org/tiny", input=["one text", "another, longer text"])
    engine = server.models["org/tiny"].engine
    ids = server.models["org/tiny"].codec.encode("one text")
    with torch.inference_mode():
        expected = engine.model.model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(reply.data[0].embedding, expected, rtol=1e-5, atol=1e-6)
    assert [item.index for item in reply.data] == [0, 1] and reply.usage.prompt_tokens > len(ids)


def test_embeddings_in_base64_are_the_same_numbers(server):
    def embed(form):
        body = {"model": "org/tiny", "input": "one text", "encoding_format": form}
        return httpx.post(f"{server.url}/v1/embeddings", json=body).json()["data"][0]["embedding"]

    decoded = np.frombuffer(base64.b64decode(embed("base64")), dtype="<f4")
    np.testing.assert_allclose(decoded, embed("float"), rtol=1e-6)


def test_models_are_listed_and_found_by_ids_with_slashes(client):
    assert [model.id for model in client.models.list()] == ["echo", "org/tiny"]
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_metrics_count_tokens_and_requests(server, client):
    client.completions.create(model="echo", prompt="abc", max_tokens=3)
    text = httpx.get(f"{server.url}/metrics").text
    assert 'small_doge_generated_tokens_total{model="echo"}' in text
    assert 'small_doge_requests_total{path="/v1/completions",status="200"}' in text


def test_paths_that_clients_make_up_get_no_counter_of_their_own(server):
    httpx.get(f"{server.url}/made/up/path")
    assert "made/up" not in httpx.get(f"{server.url}/metrics").text
