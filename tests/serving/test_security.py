"""Keys, names, origins, and what the server writes down."""

from __future__ import annotations

import asyncio
import logging

import httpx
import openai
import pytest

from small_doge.serving.models import ModelList, local_folder, split_name
from small_doge.serving.security import admits, hash_key, read_keys
from small_doge.serving.server import check_settings
from small_doge.serving.settings import ServerSettings

KEY = "a-key-that-is-long-enough"
HELLO = [{"role": "user", "content": "a secret word"}]


def test_without_the_key_nothing_but_health_is_answered(start):
    server = start(api_key_hashes=(hash_key(KEY),))
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        response = httpx.get(server.url + path)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.url}/health").status_code == 200
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client(api_key=KEY + "x").chat.completions.create(model="echo", messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    reply = server.client(api_key=KEY).chat.completions.create(model="echo", messages=HELLO)
    assert reply.choices[0].message.content == "a secret word"


def test_a_look_at_health_is_answered_in_one_round_of_the_event_loop(server):
    # Among a crowd each round takes milliseconds: whoever needs several waits for all of them.
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    async def look() -> bool:
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": headers, "query_string": b""}
        call = asyncio.ensure_future(server.app(scope, receive, send))
        await asyncio.sleep(0)
        return call.done()

    assert asyncio.run(look())
    assert sent[0]["status"] == 200 and sent[1]["body"] == b'{"status":"ok"}'


def test_keys_come_from_a_file_and_the_environment_and_only_their_hashes_stay(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# the team's\n{KEY}\nsha256:{hash_key('another-key-of-ours')}\n")
    hashes = read_keys(file, "third-key-from-the-environment")
    assert KEY not in hashes
    assert all(admits(hashes, key) for key in (KEY, "another-key-of-ours", "third-key-from-the-environment"))
    assert not admits(hashes, "") and not admits(hashes, hashes[0])


@pytest.mark.parametrize("text", ["", "short"], ids=["an empty file", "a short key"])
def test_useless_keys_are_refused(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValueError, match="API key"):
        read_keys(file, "")


def test_other_machines_are_not_let_in_without_a_key():
    with pytest.raises(ValueError, match="--api-key-file"):
        check_settings(ServerSettings(host="0.0.0.0"), open_to_all=False)
    check_settings(ServerSettings(host="0.0.0.0", api_key_hashes=("x",)), open_to_all=False)
    check_settings(ServerSettings(host="0.0.0.0"), open_to_all=True)


def test_a_page_whose_name_was_pointed_here_is_turned_away(server):
    response = httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"})
    assert response.status_code == 421 and response.json()["error"]["code"] == "wrong_host"
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_no_origin_is_allowed_unless_named(start, server):
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/models", headers=asks).headers
    open_server = start(cors_origins=("https://page.example",))
    answer = httpx.options(f"{open_server.url}/v1/models", headers=asks)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    other = httpx.options(f"{open_server.url}/v1/models", headers={**asks, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("log_prompts", [False, True], ids=["kept out by default", "written if asked"])
def test_prompts_and_the_log(start, caplog, log_prompts):
    with caplog.at_level(logging.DEBUG):
        server = start(log_prompts=log_prompts)
        server.client().chat.completions.create(model="echo", messages=HELLO)
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("small_doge"))
    assert ("a secret word" in logged) == log_prompts


def test_only_safetensors_are_served(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="safetensors"):
        local_folder(str(tmp_path))


def test_models_are_named_after_their_folder_or_by_hand(tmp_path):
    assert split_name(str(tmp_path)) == (tmp_path.name, str(tmp_path))
    assert split_name(f"mine={tmp_path}") == ("mine", str(tmp_path))
    assert split_name("org/name") == ("org/name", "org/name")
    with pytest.raises(ValueError, match="NAME=PATH"):
        split_name("=x")
    with pytest.raises(ValueError, match="no model"):
        ModelList([])


def test_answers_carry_headers_that_keep_the_browser_at_home(server):
    headers = httpx.get(f"{server.url}/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "connect-src 'self'" in headers["content-security-policy"]
