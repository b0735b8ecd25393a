# SPDX-License-Identifier: Apache-2.0
"""Prompts: parsing inverts writing, and whatever a person types is understood or refused."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from idlora.data.prompt import Prompt, advice, parse_prompt
from idlora.errors import InputError

_PARTS = st.text(max_size=40)


@given(visual=_PARTS, speech=_PARTS, sounds=_PARTS)
def test_parsing_inverts_writing(visual: str, speech: str, sounds: str) -> None:
    assume((visual + speech + sounds).split())
    prompt = Prompt(visual, speech, sounds)
    assert parse_prompt(prompt.text()) == prompt


@given(text=st.text(max_size=80))
def test_any_text_gives_a_prompt_that_is_stable_or_is_refused(text: str) -> None:
    try:
        prompt = parse_prompt(text)
    except InputError:
        assert not text.strip() or "[" in text
        return
    assert parse_prompt(prompt.text()) == prompt


@pytest.mark.parametrize("order", itertools.permutations(["visual", "speech", "sounds"]))
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
def test_order_case_and_colon_do_not_matter(order: tuple[str, ...], case: "staticmethod[[str], str]") -> None:
    words = {"visual": "a woman in a garden", "speech": "one two", "sounds": "rain, a calm voice"}
    text = "\n".join(f"[{case(tag)}]: {words[tag]}" for tag in order)
    assert parse_prompt(text) == Prompt(**words)


def test_parts_may_be_missing_and_empty_parts_are_not_written() -> None:
    prompt = parse_prompt("[SPEECH] seven blue")
    assert prompt == Prompt(speech="seven blue")
    assert prompt.text() == "[SPEECH] seven blue"


def test_words_before_the_first_tag_are_visual_and_a_repeated_tag_adds() -> None:
    assert parse_prompt("A man. [speech] one [sounds] rain [speech] two") == Prompt("A man.", "one two", "rain")


@pytest.mark.parametrize(
    "text", ['She says "red  nine" and then "two".', "She says \u201cred nine\u201d and \u201ctwo\u201d."]
)
def test_free_english_is_visual_and_what_it_quotes_is_spoken(text: str) -> None:
    prompt = parse_prompt(text)
    assert prompt.visual == " ".join(text.split())
    assert prompt.speech == "red nine two"


def test_apostrophes_quote_nothing() -> None:
    assert parse_prompt("It's the man's dog, isn't it").speech == ""


@pytest.mark.parametrize("text", ["", " \n\t", "[VISUAL]", "[visual] [speech]: [sounds]"])
def test_nothing_said_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="empty"):
        parse_prompt(text)


def test_a_part_that_would_not_read_back_is_refused() -> None:
    with pytest.raises(InputError, match="speech part holds a tag"):
        Prompt(speech="one [ Sounds ] two")


def test_a_good_prompt_needs_no_advice() -> None:
    assert advice(Prompt("a man", "one two three", "calm"), 2.0) == ()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt("a man", "", "calm"), "no [SPEECH]:"),
        (Prompt("a man"), "no [SPEECH], [SOUNDS]:"),
        (Prompt("", "one two", "calm"), "no [VISUAL]:"),
        (Prompt("", "one two", "calm"), "begins with the speech"),
        (parse_prompt('"one two" says a man [SOUNDS] calm'), "begins with the speech"),
        (parse_prompt('"Hello there" says a man at a desk'), "begins with the speech"),
        (Prompt("a man", "one two three four five six", "calm"), "6 words need about 2.4 s at 2.5 words a second"),
    ],
)
def test_what_goes_wrong_is_told(prompt: Prompt, words: str) -> None:
    assert any(words in line for line in advice(prompt, 2.0))


@given(words=st.integers(1, 40), seconds=st.floats(0.5, 20), pace=st.floats(0.1, 10))
def test_the_clip_that_advice_asks_for_is_long_enough(words: int, seconds: float, pace: float) -> None:
    prompt = Prompt("a man", "word " * words, "calm")
    told = advice(prompt, seconds, pace)
    kept = min(max(pace, 1.5), 4.0)
    assert bool(told) == (words > kept * seconds)
    assert not advice(prompt, words / kept + 1e-6, pace)
