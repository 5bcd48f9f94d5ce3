"""The model that comes with the server, for the first run and for tests."""

from pathlib import Path


def demo_model_path() -> Path:
    """Return the path of the embedded GGUF file."""
    return Path(__file__).with_name("demo.gguf")
