"""The installed models: what `/api/tags` lists and what `/api/show` tells.

`/api/show` here tells everything that any Ollama has ever told, filled with text that must never leave a gateway: each
such value contains SECRET, so a test can look for one word.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.demo import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_MODELS = ("llama3.1:8b", "mistral:7b", "nomic-embed-text:latest")
SECRET = "operator-only"  # noqa: S105  # a word to look for, not a password


class Refused(Exception):
    """An answer with an error status, before the endpoint's family gives it its shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Family:
    architecture: str
    parameter_size: str
    parameters: int
    quantization: str
    context: int
    embedding: int  # dimensions of a vector
    capabilities: tuple[str, ...]


_CHAT = ("completion", "tools", "thinking")
_FAMILIES = {
    "llama3.1": Family("llama", "8.0B", 8030261312, "Q4_K_M", 131072, 4096, _CHAT),
    "mistral": Family("llama", "7.2B", 7248023552, "Q4_K_M", 32768, 4096, _CHAT),
    "nomic-embed-text": Family("nomic-bert", "137M", 136727040, "F16", 2048, 768, ("embedding",)),
}
_OTHER = Family("llama", "1.0B", 1000000000, "Q8_0", 8192, 1024, _CHAT)


@dataclass(frozen=True, slots=True)
class Model:
    name: str  # as `/api/tags` shows it
    namespace: str
    family: Family
    modified: datetime

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def details(self) -> dict[str, object]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family.architecture,
            "families": [self.family.architecture],
            "parameter_size": self.family.parameter_size,
            "quantization_level": self.family.quantization,
        }

    def listed(self) -> dict[str, object]:
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": _stamp(self.modified),
            "size": self.family.parameters * 6 // 10,
            "digest": self.digest,
            "details": self.details,
        }

    def card(self) -> dict[str, object]:
        """The OpenAI form."""
        return {
            "id": self.name,
            "object": "model",
            "created": int(self.modified.timestamp()),
            "owned_by": self.namespace,
        }

    def shown(self) -> dict[str, object]:
        architecture = self.family.architecture
        return {
            "license": f"{SECRET} licence terms",
            "modelfile": f"# Modelfile\nFROM /srv/{SECRET}/blobs/sha256-{self.digest}\nSYSTEM {SECRET}\n",
            "parameters": f'stop                           "<|{SECRET}|>"\nnum_ctx                        4096',
            "template": "{{ .System }} " + SECRET + " {{ .Prompt }}",
            "system": f"You know the {SECRET} password.",
            "renderer": SECRET,
            "parser": SECRET,
            "details": self.details,
            "messages": [{"role": "user", "content": f"a seeded {SECRET} message"}],
            "remote_model": f"{SECRET}-remote",
            "remote_host": f"https://{SECRET}.example:443",
            "model_info": {
                "general.architecture": architecture,
                "general.basename": SECRET,
                "general.description": f"trained on {SECRET} data",
                "general.file_type": 15,
                "general.parameter_count": self.family.parameters,
                "general.source.url": f"https://{SECRET}.example",
                f"{architecture}.attention.head_count": 32,
                f"{architecture}.context_length": self.family.context,
                f"{architecture}.embedding_length": self.family.embedding,
                "tokenizer.chat_template": SECRET,
                "tokenizer.ggml.model": SECRET,
                "tokenizer.ggml.tokens": [],
            },
            "projector_info": {"general.architecture": "clip", "general.name": SECRET},
            "tensors": [{"name": f"blk.0.{SECRET}.weight", "type": "Q4_K", "shape": [4096, 4096]}],
            "capabilities": list(self.family.capabilities),
            "modified_at": _stamp(self.modified),
            "requires": SECRET,
            "a_field_of_tomorrow": SECRET,  # a keep-list drops it; a strip-list would not know it
        }


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789Z"


class Library:
    """The models installed now. Replaced as a whole, never edited."""

    def __init__(self, installed: Iterable[str] = DEFAULT_MODELS) -> None:
        self._models: dict[tuple[str, ...], Model] = {}
        self.install(installed)

    def install(self, installed: Iterable[str]) -> None:
        """Raises ValueError on a name that no Ollama would take."""
        models: dict[tuple[str, ...], Model] = {}
        for order, raw in enumerate(installed):
            name = names.parse(raw)
            if name is None:
                raise ValueError(f"invalid model name {raw!r}")
            family = _FAMILIES.get(name.model.lower(), _OTHER)
            modified = datetime(2026, 8, 1, 10, 20, 59 - order % 60, 123456, tzinfo=UTC)
            models[name.identity] = Model(name.short, name.namespace, family, modified)
        self._models = models

    def newest(self) -> Sequence[Model]:
        """Most recently modified first, as Ollama lists them."""
        return sorted(self._models.values(), key=lambda model: model.modified, reverse=True)

    def find(self, raw: str, *, capability: str = "", verb: str = "") -> Model:
        """The model of that name. Raises Refused as Ollama's handlers answer: 400, or 404 for one not installed.

        A cloud name is always found: Ollama would send the request on to ollama.com, in the operator's name.
        """
        if not raw.strip():
            raise Refused(400, "model is required")
        name = names.parse(raw)
        if name is None:
            raise Refused(400, "invalid model name")
        model = self._models.get(name.identity)
        if name.cloud:
            model = Model(raw, name.namespace, _OTHER, datetime(2026, 8, 1, tzinfo=UTC))
        if model is None:
            raise Refused(404, f'model "{raw}" not found, try pulling it first')
        if capability and capability not in model.family.capabilities:
            raise Refused(400, f'"{raw}" does not support {verb}')
        return model
