"""Token estimates: scripts, images, tools, calibration. Truths are counts of common tokenizers, rounded."""

from __future__ import annotations

import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.completions.tokens import (
    COLD_OUTPUT_TOKENS,
    Ratio,
    Ratios,
    charged_tokens,
    estimate,
    max_output_tokens,
    sent_max_tokens,
    text_tokens,
)


def chat(content, **extra):
    return {"model": "m", "messages": [{"role": "user", "content": content}], **extra}


@pytest.mark.parametrize(
    ("text", "chars_per_token"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 4.0),
        ('{"name": "x", "items": [1, 2, {"a": "b"}]}; if (a == b) { return c; } ' * 10, 3.2),
        ("Съешь же ещё этих мягких французских булок " * 20, 2.9),
        ("نص عربي طويل للتلخيص والترجمة ", 2.7),
        ("これは日本語の文章です中文字符也一样한국어도", 1.3),
        ("हिन्दी में एक वाक्य ", 2.0),
    ],
)
def test_each_script_has_its_own_weight(text, chars_per_token):
    """Spaces count as Latin, so mixed texts lie between; 15 % is close enough for a start."""
    assert text_tokens(text) == pytest.approx(len(text) / chars_per_token, rel=0.15)


def test_a_mixed_text_is_the_sum_of_its_parts():
    latin, chinese = "hello world " * 10, "你好世界" * 10
    assert text_tokens(latin + chinese) == pytest.approx(text_tokens(latin) + text_tokens(chinese), rel=0.05)


def test_base64_images_count_as_images_not_as_text():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000, "detail": "low"}}
    tokens, _ = estimate(chat([{"type": "text", "text": "What is this?"}, image]))
    assert 85 <= tokens < 120


def test_an_image_without_detail_counts_as_high():
    tokens, _ = estimate(chat([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]))
    assert tokens > 700


def test_tools_and_schema_are_billed_too():
    plain, _ = estimate(chat("hi"))
    tools, _ = estimate(chat("hi", tools=[{"type": "function", "function": {"name": "f", "description": "d" * 320}}]))
    schema, _ = estimate(chat("hi", response_format={"type": "json_schema", "json_schema": {"name": "n" * 320}}))
    assert tools - plain > 100
    assert schema - plain > 100


def test_output_is_the_smaller_of_max_tokens_and_256_times_n():
    assert estimate(chat("hi"))[1] == COLD_OUTPUT_TOKENS
    assert estimate(chat("hi", max_tokens=50))[1] == 50
    assert estimate(chat("hi", max_completion_tokens=9_000))[1] == COLD_OUTPUT_TOKENS
    assert estimate(chat("hi", max_tokens=50, n=3))[1] == 150


def test_embeddings_have_no_output_and_token_ids_count_as_given():
    body = {"model": "m", "input": [[1, 2, 3], [4, 5]]}
    assert estimate(body, endpoint="/v1/embeddings") == (9, 0)


def test_responses_input_is_read_in_both_forms():
    text, _ = estimate({"model": "m", "input": "word " * 100, "instructions": "Be brief."})
    content = [{"type": "input_text", "text": "word " * 100}]
    items, _ = estimate({"model": "m", "input": [{"role": "user", "content": content}]})
    assert text == pytest.approx(130, abs=10)
    assert items == pytest.approx(133, abs=10)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["messages", "content", "type", "text", "image_url", "input", "tools", "n", "max_tokens", "x"]),
        inner, max_size=4),
    max_leaves=25,
))  # fmt: skip
def test_odd_bodies_never_raise(body):
    """The request rules judge shapes; the estimate only has to survive them."""
    tokens, output = estimate(body if isinstance(body, dict) else {"messages": body})
    assert tokens >= 0
    assert output >= 0


@given(st.text(max_size=400))
def test_text_tokens_are_bounded_by_the_text(text):
    units = len(text.encode("utf-16-le", "surrogatepass")) / 2
    assert 0 <= text_tokens(text) <= units * 1.25 + 1e-9


def test_charges_follow_the_providers_way():
    assert charged_tokens("reserve_max", 100, 40, 500) == (600, 500)
    assert charged_tokens("reserve_refund", 100, 40, None) == (140, 40)
    assert charged_tokens("actual", 100, 40, 500) == (140, 40)
    assert charged_tokens("input_only", 100, 40, 500) == (100, 0)


def test_max_tokens_is_read_from_encoded_bodies_but_not_from_prompts():
    prompt = 'say {"max_tokens": 9}'
    assert sent_max_tokens(orjson.dumps(chat(prompt))) is None
    assert sent_max_tokens(orjson.dumps(chat(prompt, max_tokens=50))) == 50
    assert sent_max_tokens(b'{"max_completion_tokens" : 7}') is None
    assert sent_max_tokens(b'{"max_completion_tokens": 7}') == 7


def test_max_output_tokens_reads_every_name():
    assert max_output_tokens({"max_output_tokens": 5}) == 5
    assert max_output_tokens({"max_tokens": True}) is None


def test_a_template_is_learned_within_twenty_answers():
    """Estimates 40 % too low, answers a third of the expectation, 5 % noise: afterwards within a few per cent."""
    rng = random.Random(7)
    lane = Ratios()
    batch = Ratios(parent=lane)
    for _ in range(20):
        size = rng.randint(100, 1_000)
        batch.observe(
            est_input=size, est_output=300,
            input_tokens=round(size * 1.4 * rng.gauss(1, 0.05)), output_tokens=rng.randint(90, 110),
        )  # fmt: skip
    assert batch.input(1_000) == pytest.approx(1_400, rel=0.06)
    assert batch.output(300) == pytest.approx(100, rel=0.1)
    assert batch.input_error is not None
    assert batch.input_error < 0.12


def test_a_new_template_starts_from_its_lane():
    lane = Ratios()
    for _ in range(30):
        lane.observe(est_input=100, est_output=100, input_tokens=200, output_tokens=50)
    assert Ratios(parent=lane).input(100) == pytest.approx(200, rel=0.05)


def test_ratios_survive_storage_and_damage():
    ratios = Ratios()
    ratios.observe(est_input=100, est_output=100, input_tokens=150, output_tokens=80)
    again = Ratios.from_json(ratios.to_json())
    assert again.input(100) == ratios.input(100)
    assert Ratios.from_json({"prompt": ["x"], "answer": None}).input(100) == 100
    assert Ratios.from_json(None).output(7) == 7


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(1, 1e5)), min_size=1, max_size=60))
def test_one_wild_answer_never_makes_the_ratio_leave_its_bounds(pairs):
    ratio = Ratio()
    for estimated, actual in pairs:
        ratio.observe(estimated, actual)
    assert 0.02 <= ratio.value <= 50
    assert ratio.error >= 0
