import asyncio
import base64
import io
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.asgi import JSON, Answer, answer, ask
from viditq_jax.cli import main
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.serve import app as app_module
from viditq_jax.serve import studio as studio_module
from viditq_jax.serve.app import MOST_WAITING, make_app
from viditq_jax.serve.studio import Painted, Studio, Wish

RECIPE = "w8a8-dynamic"
WISH = {"prompt": "a red apple", "seed": 3, "recipe": RECIPE}


def body(**fields: Any) -> bytes:
    return json.dumps({**WISH, **fields}).encode()


def pixels(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(tiny.pipeline(depth=1), [RECIPE, "w8a8"])


@pytest.fixture(scope="module")
def painted(studio: Studio) -> Answer:
    return ask(make_app(studio, "tiny"), "POST", "/paint", body())


def test_it_paints_what_the_pipeline_paints_in_floats_and_quantized(studio: Studio, painted: Answer) -> None:
    assert painted.status == 200
    pictures = painted.json()["pictures"]
    assert [each["label"] for each in pictures] == ["float", RECIPE]
    plain = tiny.pipeline(depth=1)
    small = tiny.quantized(plain, load_recipe(RECIPE))
    wanted = [pipeline([WISH["prompt"]], seed=WISH["seed"])[0] for pipeline in (plain, small)]
    for each, sample in zip(pictures, wanted, strict=True):
        np.testing.assert_array_equal(pixels(each["uri"]), sample)
        assert each["seconds"] > 0
        assert each["compiled"]
    assert painted.json()["psnr_db"] == psnr(wanted[1], wanted[0])


def test_the_page_holds_all_that_it_needs_and_may_ask_this_server_alone(studio: Studio) -> None:
    found = ask(make_app(studio, "runs/<b>"), "GET", "/", b"", {"host": "localhost:8000"})
    page = found.body.decode()
    assert found.status == 200
    assert "<b>" not in page
    assert "runs/&lt;b&gt;" in page
    assert f'<option value="{RECIPE}">{RECIPE}</option>' in page
    assert "w8a8 (calibrates first" in page
    assert "src=" not in page
    assert "connect-src 'self'" in found.headers["content-security-policy"]


def test_a_page_of_this_server_may_ask(
    studio: Studio, painted: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {**JSON, "origin": f"http://{JSON['host']}", "content-type": "application/json; charset=utf-8"}
    monkeypatch.setattr(studio_module, "_paint", _blank)
    assert ask(make_app(studio, "tiny"), "POST", "/paint", body(), headers).status == 200


def test_a_server_for_others_is_called_by_any_name(studio: Studio) -> None:
    app = make_app(studio, "tiny", hosts=None)
    assert ask(app, "GET", "/", b"", {"host": "machine.example"}).status == 200
    assert ask(app, "GET", "/", b"", {}).status == 403


def _blank(label: str, pipeline: Any, wish: Wish) -> Painted:
    return Painted(label, np.zeros((2, 2, 3), np.uint8), 0.0)


def test_one_picture_is_painted_at_a_time_and_few_may_wait(
    studio: Studio, painted: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests arrive before the first is painted."""
    count, running, most = MOST_WAITING + 3, 0, 0
    arrived = threading.Event()

    def paint(label: str, pipeline: Any, wish: Wish) -> Painted:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert arrived.wait(20)
        running -= 1
        return _blank(label, pipeline, wish)

    async def all_at_once() -> list[Answer]:
        app = make_app(studio, "tiny")
        asked = [asyncio.create_task(answer(app, "POST", "/paint", body(seed=i))) for i in range(count)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status for task in done} == {503}
        arrived.set()
        return await asyncio.gather(*asked)

    monkeypatch.setattr(studio_module, "_paint", paint)
    statuses = [each.status for each in asyncio.run(all_at_once())]
    assert sorted(statuses) == [200] * (1 + MOST_WAITING) + [503] * 2
    assert most == 1


def test_painting_that_fails_is_one_line_and_the_next_is_painted(
    studio: Studio, painted: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(label: str, pipeline: Any, wish: Wish) -> Painted:
        raise ValueError("samples [0] of 1 are not finite;\nlower the guidance")

    app = make_app(studio, "tiny")
    monkeypatch.setattr(studio_module, "_paint", fail)
    found = ask(app, "POST", "/paint", body())
    assert found.status == 500
    assert found.json() == {
        "error": "painting failed (ValueError: samples [0] of 1 are not finite; lower the guidance)"
    }
    monkeypatch.setattr(studio_module, "_paint", _blank)
    assert ask(app, "POST", "/paint", body()).status == 200


def test_a_request_that_does_not_arrive_is_given_up(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "SECONDS_TO_SEND", 0.01)
    found = ask(make_app(studio, "tiny"), "POST", "/paint", stalls=True)
    assert found.status == 408
    assert found.json() == {"error": "the request did not arrive in 0.01 s."}


def test_a_quantized_model_is_painted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny.quantized(tiny.pipeline(depth=1), load_recipe(RECIPE))
    studio = Studio(small)
    assert not studio.compares
    monkeypatch.setattr(studio_module, "_paint", _blank)
    found = ask(make_app(studio, "tiny"), "POST", "/paint", body()).json()
    assert [each["label"] for each in found["pictures"]] == [RECIPE]
    assert found["psnr_db"] is None
    with pytest.raises(ValueError, match="quantized already, to w8a8-dynamic"):
        Studio(small, ["w8a8"])


def test_a_class_conditional_model_takes_numbers() -> None:
    studio = Studio(tiny.video("latte"), [RECIPE])
    assert studio.wish('{"label": 4, "seed": 0, "recipe": "w8a8-dynamic"}') == Wish(4, 0, RECIPE)
    with pytest.raises(ValueError, match="the label is no whole number from 0 to 4"):
        studio.wish('{"label": 5, "seed": 0, "recipe": "w8a8-dynamic"}')
    page = ask(make_app(studio, "latte"), "GET", "/", b"", {"host": "localhost"}).body.decode()
    assert 'id="condition" type="number"' in page


def test_two_recipes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two recipes are called 'w8a8'"):
        Studio(tiny.pipeline(depth=1), ["w8a8", "w8a8"])


def test_the_command_says_what_is_wrong_before_it_serves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err
    assert main(["serve", "--port", "70000"]) == 1
    assert "--port is 70000" in capsys.readouterr().err
    assert main(["serve", "--port", "0", "--model", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    assert "pip install 'viditq-jax[serve]'" in capsys.readouterr().err
