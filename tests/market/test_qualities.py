"""How good models are taken to be: the policy's word, the list's patterns, and what is known of whom."""

import itertools
import re
from importlib.resources import files

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import make

from patchbay_server.market import qualities
from patchbay_server.market.qualities import QualityList, QualityRow

NO_POLICY = make.policy()
BUNDLED = QualityList.bundled()
LIST = QualityList(
    [
        QualityRow(names=("big-*",), quality=0.6, why="judged: family"),
        QualityRow(names=("big-2*",), quality=0.9, why="judged"),
        QualityRow(names=("big-2-small*",), quality=0.4, why="judged"),
        QualityRow(names=("open*[:-]8b",), quality=0.3, anywhere=True, why="judged"),
    ]
)


def rows() -> list[QualityRow]:
    content = files(qualities.__package__).joinpath("qualities.toml").read_bytes()
    return msgspec.convert(msgspec.toml.decode(content)["models"], list[QualityRow])


@pytest.mark.parametrize(
    ("model", "quality"),
    [
        ("big-1", 0.6),
        ("big-2", 0.9),
        ("big-2.1", 0.9),
        ("big-2-small", 0.4),
        ("big_2_small-2026-01-31", 0.4),
        ("small", None),
    ],
)
def test_the_pattern_that_says_most_holds(model: str, quality: float | None) -> None:
    assert LIST.quality("openai", model, NO_POLICY) == quality


def test_the_order_of_rows_does_not_matter() -> None:
    backwards = QualityList(reversed(rows()))
    for row in rows():
        for name in row.names:
            model = re.sub(r"\[(.)[^\]]*\]", r"\1", name).replace("*", "")
            assert backwards.quality("openai", model, NO_POLICY) == BUNDLED.quality("openai", model, NO_POLICY)


@pytest.mark.parametrize("provider", ["openai_compatible", "a-plug-in"])
def test_a_private_server_is_believed_about_open_weights_only(provider: str) -> None:
    assert LIST.quality(provider, "org/Open-8B", NO_POLICY) == 0.3
    assert LIST.quality(provider, "big-2", NO_POLICY) is None


def test_the_policys_prior_wins_and_the_providers_before_everyones() -> None:
    policy = make.policy(quality_priors={"*/big-2": 0.1, "openai/big-2": 0.2, "*/unheard-of": 0.0})
    assert LIST.quality("openai", "big-2", policy) == 0.2
    assert LIST.quality("openai", "big-2-2026-01-31", policy) == 0.2
    assert LIST.quality("xai", "big-2", policy) == 0.1
    assert LIST.quality("a-plug-in", "unheard-of", policy) == 0.0


@given(st.sampled_from(["openai", "bedrock", "openrouter", "openai_compatible"]), st.text(max_size=60))
def test_any_name_has_a_quality_within_bounds_or_none(provider: str, model: str) -> None:
    quality = BUNDLED.quality(provider, model, NO_POLICY)
    assert quality is None or 0.0 <= quality <= 1.0


# --- the list that ships ----------------------------------------------------------------------------------------------


def test_every_row_gives_its_ground_and_a_public_score_gives_the_number() -> None:
    for row in rows():
        assert 0.0 <= row.quality <= 1.0, row
        score = re.fullmatch(r"score (\d+\.\d)", row.why)
        if score is None:
            assert row.why.startswith("judged: "), row
        else:
            assert row.quality == pytest.approx(round((float(score[1]) - 38) / 50 * 20) / 20), row


def test_no_pattern_stands_twice_and_each_is_written_as_names_are() -> None:
    patterns = [name for row in rows() for name in row.names]
    assert len(set(patterns)) == len(patterns)
    assert [name for name in patterns if re.search(r"[A-Z._/]", name)] == []


@pytest.mark.parametrize(
    "same",
    [
        {
            "anthropic": "claude-haiku-4-5-20251001",
            "bedrock": "us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "openrouter": "anthropic/claude-haiku-4.5:nitro",
        },
        {"openai": "gpt-5.1-2025-11-13", "azure_openai": "gpt-5.1", "openrouter": "openai/gpt-5.1-20251113"},
        {"gemini": "models/gemini-2.5-pro-preview-06-05", "openrouter": "google/gemini-2.5-pro"},
        {"xai": "grok-4.6", "openrouter": "x-ai/grok-4.6-20260810"},
        {
            "bedrock": "meta.llama3-3-70b-instruct-v1:0",
            "openrouter": "meta-llama/llama-3.3-70b-instruct",
            "openai_compatible": "meta-llama/Llama-3.3-70B-Instruct",
        },
        {"bedrock": "mistral.mistral-large-3-675b-instruct", "openrouter": "mistralai/mistral-large-2512"},
        {
            "bedrock": "deepseek.r1-v1:0",
            "openrouter": "deepseek/deepseek-r1",
            "openai_compatible": "deepseek-ai/DeepSeek-R1",
        },
        {"bedrock": "qwen.qwen3-32b-v1:0", "openrouter": "qwen/qwen3-32b", "openai_compatible": "qwen3:32b"},
        {"bedrock": "amazon.nova-pro-v1:0", "openrouter": "amazon/nova-pro-v1"},
    ],
)
def test_one_model_is_as_good_wherever_it_is_asked(same: dict[str, str]) -> None:
    found = {BUNDLED.quality(provider, model, NO_POLICY) for provider, model in same.items()}
    assert len(found) == 1
    assert found != {None}


@pytest.mark.parametrize(
    ("provider", "better_first"),
    [
        ("anthropic", ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5"]),
        (
            "openai",
            [
                "gpt-6-astra",
                "gpt-6-sol",
                "gpt-6-luna",
                "gpt-5",
                "gpt-5-mini",
                "gpt-5-nano",
                "gpt-4o-mini",
                "gpt-3.5-turbo",
            ],
        ),
        (
            "gemini",
            ["gemini-4-argon", "gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-2.5-flash", "gemini-1.5-flash"],
        ),
        ("xai", ["grok-4.6", "grok-4.3", "grok-3", "grok-2"]),
        (
            "bedrock",
            ["amazon.nova-2-pro-v1:0", "amazon.nova-premier-v1:0", "amazon.nova-pro-v1:0", "amazon.nova-micro-v1:0"],
        ),
        (
            "bedrock",
            ["meta.llama3-3-70b-instruct-v1:0", "meta.llama3-8b-instruct-v1:0", "meta.llama3-2-1b-instruct-v1:0"],
        ),
    ],
)
def test_a_makers_models_stand_in_the_makers_order(provider: str, better_first: list[str]) -> None:
    found = [BUNDLED.quality(provider, model, NO_POLICY) for model in better_first]
    assert None not in found
    assert all(
        better is not None and worse is not None and better > worse for better, worse in itertools.pairwise(found)
    )


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-opus-7"),
        ("anthropic", "claude-sonnet-7-2"),
        ("anthropic", "claude-haiku-7"),
        ("openai", "gpt-8-luna"),
        ("openai", "gpt-6.9"),
        ("openai", "gpt-7-mini"),
        ("gemini", "gemini-5-pro"),
        ("gemini", "gemini-5-flash-lite"),
        ("xai", "grok-6"),
        ("bedrock", "meta.llama5-70b-instruct-v1:0"),
        ("openrouter", "mistralai/mistral-large-4"),
        ("openrouter", "deepseek/deepseek-v5"),
        ("openrouter", "qwen/qwen3-new"),
        ("bedrock", "amazon.nova-3-pro-v1:0"),
    ],
)
def test_a_version_that_is_not_out_yet_has_its_familys_quality(provider: str, model: str) -> None:
    assert BUNDLED.quality(provider, model, NO_POLICY) is not None


@pytest.mark.parametrize(
    ("provider", "model"),
    [("azure_openai", "team-chat"), ("openai_compatible", "default"), ("openai_compatible", "gpt-4o")],
)
def test_a_name_that_says_nothing_has_no_quality(provider: str, model: str) -> None:
    assert BUNDLED.quality(provider, model, NO_POLICY) is None
