"""Model names: one canonical form, as Ollama's own grammar would have it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.models import canonical, effective
from policy.rules.tenants import Key, Tenant, is_cloud


@pytest.mark.parametrize(
    ("sent", "short"),
    [
        ("llama3.1:8b", "llama3.1:8b"),
        ("llama3.1", "llama3.1:latest"),
        ("LLaMA3.1:8B", "llama3.1:8b"),
        ("  llama3.1:8b\n", "llama3.1:8b"),
        ("\u00a0llama3.1:8b\u3000", "llama3.1:8b"),
        ("library/llama3.1:8b", "llama3.1:8b"),
        ("registry.ollama.ai/library/llama3.1:8b", "llama3.1:8b"),
        ("Registry.Ollama.AI/Library/Llama3.1", "llama3.1:latest"),
        ("https://registry.ollama.ai/library/llama3.1:8b", "llama3.1:8b"),
        ("HTTP://registry.ollama.ai/library/llama3.1:8b", "llama3.1:8b"),
        ("ollama://registry.ollama.ai/library/llama3.1:8b", "llama3.1:8b"),
        ("registry.ollama.ai/someone/model", "someone/model:latest"),
        ("someone/model:q4_K_M", "someone/model:q4_k_m"),
        ("hf.co/Org/Model-GGUF:Q4_K_M", "hf.co/org/model-gguf:q4_k_m"),
        ("https://hf.co/org/model", "hf.co/org/model:latest"),
        ("hf.co/library/model", "hf.co/library/model:latest"),
        ("localhost:5000/team/model", "localhost:5000/team/model:latest"),
        ("localhost:5000/team/model:1b", "localhost:5000/team/model:1b"),
        ("llama3.1:8b:local", "llama3.1:8b"),
        ("gpt-oss:cloud", "gpt-oss:cloud"),
        ("gpt-oss:CLOUD", "gpt-oss:cloud"),
        ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
        ("library/gpt-oss:20b:Cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss-cloud", "gpt-oss-cloud:latest"),
        ("_private", "_private:latest"),
    ],
)
def test_one_model_has_one_name(sent: str, short: str) -> None:
    assert canonical(sent) == short


@pytest.mark.parametrize(
    "sent",
    [
        "",
        " ",
        ":8b",
        "llama3.1:",
        "llama3.1:8b:7b",
        "/llama3.1",
        "library//llama3.1",
        "a/b/c/d",
        "registry.ollama.ai/llama3.1",  # two parts: a namespace, which may hold no dot
        "https://llama3.1:8b",  # Ollama splits a scheme off a full name only
        "file://registry.ollama.ai/library/llama3.1",
        "llama3.1@sha256:0123456789abcdef",
        "sha256:" + "0" * 64 + "@x",
        "llama3.1 :8b",
        "llama3.1: 8b",
        "llama\x00:8b",
        "\x1fllama3.1:8b",
        "../../etc/passwd",
        "..",
        "-model",
        ".model",
        "lláma:8b",
        "llama3.1\uff1a8b",
        "\u212aimi:latest",  # KELVIN SIGN folds to k
        "llama3.1:local",  # the tag "local", or this machine's latest? Versions differ
        "gpt-oss:cloud:local",
        "gpt-oss:20b-cloud:cloud",
        "gpt-oss:20b-cloud-cloud",
        "gpt-oss:-cloud",
        "model:" + "t" * 81,
        "m" * 81,
        "x" * 201,
        " " * 200 + "m",
    ],
)
def test_what_is_no_name(sent: str) -> None:
    with pytest.raises(ValueError, match="model name") as refused:
        canonical(sent)
    assert len(sent.strip()) < 4 or sent.strip() not in str(refused.value)


_name = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,20}", fullmatch=True)
_namespace = st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,20}", fullmatch=True)
_plain_tag = _name.filter(lambda tag: tag not in ("cloud", "local") and not tag.endswith("-cloud"))


@given(_namespace, _name, _plain_tag, st.sampled_from(["", "https://", "http://", "ollama://"]), st.data())
def test_every_spelling_comes_down_to_one(
    namespace: str, model: str, tag: str, scheme: str, data: st.DataObject
) -> None:
    full = f"registry.ollama.ai/{namespace}/{model}:{tag}"
    spellings = [scheme + full, f"{namespace}/{model}:{tag}", f" {full.upper()}\t", f"{full}:local"]
    if namespace == "library":
        spellings.append(f"{model}:{tag}")
    if tag == "latest":
        spellings.append(f"{namespace}/{model}")
    expected = f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"
    assert canonical(data.draw(st.sampled_from(spellings))) == expected


@given(st.one_of(st.text(max_size=40), st.text(alphabet="aZ0_-.:/@ cloudlocal", max_size=30)))
def test_canonical_is_a_fixed_point_of_a_small_alphabet(text: str) -> None:
    try:
        short = canonical(text)
    except ValueError:
        return
    assert canonical(short) == short
    assert re.fullmatch(r"[a-z0-9_.:/-]+:[a-z0-9_][a-z0-9_.-]*", short)


@given(_name, _plain_tag, st.sampled_from(["{m}:cloud", "{m}:{t}-cloud", "{m}:{t}:cloud", " {m}:{t}:CLOUD "]))
def test_a_cloud_model_is_seen_under_every_spelling(model: str, tag: str, form: str) -> None:
    assert is_cloud(canonical(form.format(m=model, t=tag)))


def test_effective_is_discovered_and_allowed() -> None:
    tenant = Tenant(1, "acme", models=frozenset({"a:1b", "c:latest"}))
    key = Key(1, "nz_123456789", "", tenant)
    discovered = {"b:1b": 2, "a:1b": 1}
    assert effective(key, discovered) == {"a:1b": 1}
    assert list(effective(Key(1, "nz_123456789", "", Tenant(1, "acme", allow_all_models=True)), discovered)) == [
        "b:1b",
        "a:1b",
    ]


def test_all_models_never_means_the_operators_cloud_account() -> None:
    tenant = Tenant(1, "acme", allow_all_models=True)
    key = Key(1, "nz_123456789", "", tenant)
    cloud = canonical("gpt-oss:20b:cloud")
    assert effective(key, {cloud: 1, "a:1b": 2}) == {"a:1b": 2}
    named = Key(1, "nz_123456789", "", tenant, models=frozenset({cloud}))
    assert effective(named, {cloud: 1, "a:1b": 2}) == {cloud: 1}
