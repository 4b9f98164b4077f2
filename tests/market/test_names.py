"""Real spellings of models' names, and what is left of them when their provider's decorations are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.market.names import forms, policy_keys

PROVIDERS = (
    "anthropic",
    "azure_openai",
    "bedrock",
    "gemini",
    "openai",
    "openai_compatible",
    "openrouter",
    "xai",
    "a-plug-in",
)
ARN = "arn:aws:bedrock:us-east-1:123456789012:"

SPELLINGS = [
    ("openai", "gpt-5.1", "gpt-5.1"),
    ("openai", "gpt-5.1-2025-11-13", "gpt-5.1"),
    ("openai", "GPT-5.1", "gpt-5.1"),
    ("openai", "ft:gpt-4o-mini-2024-07-18:acme::BdQ1", "ft:gpt-4o-mini"),
    ("openai", "ft:gpt-3.5-turbo-0125:acme:tone:7p4l", "ft:gpt-3.5-turbo"),
    ("azure_openai", "gpt-4o-2024-08-06", "gpt-4o"),
    ("anthropic", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
    ("anthropic", "claude-3-5-haiku-latest", "claude-3-5-haiku"),
    ("bedrock", "anthropic.claude-opus-4-5-20251101-v1:0", "anthropic.claude-opus-4-5"),
    ("bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "anthropic.claude-haiku-4-5"),
    ("bedrock", "us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5"),
    ("bedrock", "global.anthropic.claude-opus-5-5", "anthropic.claude-opus-5-5"),
    ("bedrock", "amazon.nova-lite-v1:0:300k", "amazon.nova-lite"),
    ("bedrock", "mistral.mistral-7b-instruct-v0:2", "mistral.mistral-7b-instruct"),
    ("bedrock", f"{ARN}inference-profile/eu.amazon.nova-pro-v1:0", "amazon.nova-pro"),
    ("bedrock", "arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/amazon.nova-pro-v1:0", "amazon.nova-pro"),
    ("bedrock", f"{ARN}application-inference-profile/a1b2c3d4e5f6", f"{ARN}application-inference-profile/a1b2c3d4e5f6"),
    ("gemini", "models/gemini-2.5-pro", "gemini-2.5-pro"),
    ("gemini", "models/gemini-2.0-flash-001", "gemini-2.0-flash"),
    ("gemini", "gemini-2.5-pro-preview-06-05", "gemini-2.5-pro"),
    ("gemini", "gemini-2.5-flash-preview-09-2025", "gemini-2.5-flash"),
    ("openrouter", "anthropic/claude-haiku-4.5:nitro", "anthropic/claude-haiku-4.5"),
    ("openrouter", "openai/gpt-5.1-20251113", "openai/gpt-5.1"),
    ("openrouter", "qwen/qwen3-32b:free", "qwen/qwen3-32b:free"),
    ("openrouter", "anthropic/claude-3.7-sonnet:thinking", "anthropic/claude-3.7-sonnet:thinking"),
    ("xai", "grok-4-0709", "grok-4-0709"),
    ("openai_compatible", "meta-llama/Llama-3.3-70B-Instruct", "meta-llama/llama-3.3-70b-instruct"),
]


@pytest.mark.parametrize(("provider", "model", "bare"), SPELLINGS)
def test_a_real_spelling_comes_down_to_the_models_own_name(provider: str, model: str, bare: str) -> None:
    found = forms(provider, model)
    assert found[0] == model
    assert found[-1] == bare


def test_a_region_is_cut_last_so_that_its_own_price_is_found_first() -> None:
    found = forms("bedrock", "global.anthropic.claude-opus-4-5-20251101-v1:0")
    assert found.index("global.anthropic.claude-opus-4-5") < found.index("anthropic.claude-opus-4-5-20251101")


def test_a_number_that_is_no_date_stays() -> None:
    assert forms("openai", "my-model-12345678") == ("my-model-12345678",)


@given(st.sampled_from(PROVIDERS), st.text(max_size=60))
def test_any_text_has_forms_that_begin_with_itself_and_repeat_nothing(provider: str, model: str) -> None:
    found = forms(provider, model)
    assert found[:1] == ((model,) if model else ())
    assert len(set(found)) == len(found)
    assert "" not in found


def test_a_policys_exact_entry_goes_before_its_looser_one_and_the_providers_before_everyones() -> None:
    assert list(policy_keys("openai", "gpt-5.1-2025-11-13")) == [
        "openai/gpt-5.1-2025-11-13",
        "*/gpt-5.1-2025-11-13",
        "openai/gpt-5.1",
        "*/gpt-5.1",
    ]
