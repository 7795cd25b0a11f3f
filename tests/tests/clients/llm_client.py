"""The command line program `llm` with a model of its file extra-openai-models.yaml. Called by api_clients.rs with the server's
base URL; it serves kimi-tiny."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE = f"{sys.argv[1]}/v1"
MODELS = f"""
- model_id: kimi
  model_name: kimi-tiny
  api_base: {BASE}
  supports_tools: true
  supports_schema: true
"""
WEATHER = '''
def get_weather(city: str) -> str:
    """Get the current weather for a city"""
    return '{"temperature": 7, "condition": "rain"}'
'''


def llm(*arguments, piped=""):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "extra-openai-models.yaml").write_text(MODELS)
        command = [sys.executable, "-m", "llm", "-m", "kimi", "-o", "temperature", "0", "-o", "max_tokens", "600", *arguments]
        env = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, input=piped, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_question():
    assert "kimi-tiny" in llm("Hello! What are you?")
    assert "kimi-tiny" in llm("--no-stream", "Hello! What are you?")


def piped_text():
    assert "Rust program" in llm(piped="What is kimi?")


def a_schema():
    dog = json.loads(llm("--schema", "name, age int", "Invent a dog"))
    assert isinstance(dog["name"], str) and isinstance(dog["age"], int), dog


def a_tool():
    assert "7 degrees" in llm("--functions", WEATHER, "What is the weather in Oslo?")


TESTS = [a_question, piped_text, a_schema, a_tool]
for test in TESTS:
    test()
    print(test.__name__, flush=True)
print(f"all {len(TESTS)}")
