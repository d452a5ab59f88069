"""Token estimates without a tokenizer.

Owns: the estimate of one request's tokens from its text's scripts, images, tools and schema; what a
call is charged against a limit; and Ratios, which correct the estimates from returned usage.
Serves ingest (about 5 µs a line), pacing and `check`. Starting values are characters per token by
Unicode block, as measured on common vocabularies; after some 20 answers the ratio of a template rules.
May not touch: limits themselves, storage, time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batch.domain.limits import Charge

COLD_OUTPUT_TOKENS = 256  # where no answer of the job was seen yet
MESSAGE_TOKENS = 4
IMAGE_TOKENS = {"low": 85, "high": 765}
FILE_TOKENS = 1_500
AUDIO_CHARS_PER_TOKEN = 4_267  # base64 of 16 kHz, 16 bit: 42.7 kB and 10 tokens a second

_LATIN, _CODE, _CYRILLIC, _ARABIC, _CJK, _INDIC, _EMOJI = range(1, 8)
CHARS_PER_TOKEN: Mapping[int, float] = {
    _LATIN: 4.0, _CODE: 3.2, _CYRILLIC: 2.75, _ARABIC: 2.5, _CJK: 1.3, _INDIC: 1.8, _EMOJI: 0.8,
}
_MAX_TOKENS_KEY = re.compile(rb'"max(?:_completion|_output)?_tokens":\s*([1-9]\d{0,8})(?![\d.eE])')
_COUNTED = tuple((script, chars) for script, chars in CHARS_PER_TOKEN.items() if script != _CODE)


def estimate(body: Mapping[str, Any], *, endpoint: str = "/v1/chat/completions") -> tuple[int, int]:
    """Estimate (input tokens, output tokens) of one chat, responses or embeddings body.

    Output is min(max_tokens, 256) per choice; embeddings have none.
    Never raises on odd shapes: the request rules judge those.
    """
    tokens = 4.0
    messages = body.get("messages")
    if type(messages) is list:
        for message in messages:
            if type(message) is dict:
                content = message.get("content")
                tokens += MESSAGE_TOKENS + (
                    text_tokens(content) if type(content) is str else _content_tokens(content)
                )
                if "tool_calls" in message:
                    tokens += _json_tokens(message["tool_calls"])
    else:
        tokens += _input_tokens(body)
    if "tools" in body:
        tokens += _json_tokens(body["tools"])
    if "response_format" in body or "text" in body:
        tokens += _json_tokens(body.get("response_format") or body.get("text"))
    return int(tokens + 0.5), 0 if endpoint == "/v1/embeddings" else expected_output(body)


def estimate_usage(request: bytes, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A `usage` for an answer that came without one (streams of providers that know no stream_options)."""
    prompt, _ = estimate(orjson.loads(request))
    completion = 0.0
    for choice in answer.get("choices") or ():
        message = choice.get("message") or {}
        texts = [text for key in ("content", "reasoning_content", "reasoning", "refusal") if (text := message.get(key))]
        completion += sum(map(_content_tokens, texts)) + _json_tokens(message.get("tool_calls"))
    written = int(completion + 0.5)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, "estimated": True,
    }  # fmt: skip


def text_tokens(text: str) -> float:
    """Estimated tokens of plain text, by the scripts that it is written in."""
    if text.isascii():
        return _ascii_tokens(text)
    # the high byte of each UTF-16 unit is its Unicode page: classified and counted at C speed
    pages = text.encode("utf-16-le", "surrogatepass")[1::2].translate(_CLASS_OF_PAGE)
    count = pages.count
    return sum([count(script) / chars for script, chars in _COUNTED])


def max_output_tokens(body: Mapping[str, Any]) -> int | None:
    """The limit that the request sets on one choice's output; None when it sets none."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = body.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def sent_max_tokens(body: bytes) -> int | None:
    """max_output_tokens() of a body that is already encoded, without decoding it.

    A quoted key inside a text has its quotes escaped, so that only real keys match.
    """
    found = _MAX_TOKENS_KEY.search(body)
    return int(found[1]) if found else None


def expected_output(body: Mapping[str, Any]) -> int:
    """Output tokens expected of all choices before any answer of the job was seen."""
    n = body.get("n")
    limit = max_output_tokens(body) or COLD_OUTPUT_TOKENS
    return min(limit, COLD_OUTPUT_TOKENS) * (n if type(n) is int and n > 0 else 1)


def charged_tokens(charge: Charge, input_tokens: int, output_tokens: int, max_tokens: int | None) -> tuple[int, int]:
    """(total, output part) that a provider counts at admission for one call, by its way of charging.

    `output_tokens` is the expectation, `max_tokens` the limit that the call sends, for all its choices.
    """
    if charge == "input_only":
        return input_tokens, 0
    if charge in {"reserve_max", "reserve_refund"} and max_tokens is not None:
        return input_tokens + max_tokens, max_tokens
    return input_tokens + output_tokens, output_tokens


# A quarter of the mean absolute deviation above the mean is about the 60th percentile of a bell curve.
_P60 = 0.32
TRUSTED_AFTER = 20


@dataclass(slots=True)
class Ratio:
    """An exponentially weighted ratio of truth to estimate, with its mean relative error. It rules after 20 answers;
    until then it is blended with its parent's."""

    value: float = 1.0
    spread: float = 0.0  # EWMA of |ratio - value|, to plan on a percentile
    error: float = 0.0   # EWMA of |corrected estimate - truth| / truth
    seen: int = 0
    parent: Ratio | None = None

    def observe(self, estimated: float, actual: float) -> None:
        if estimated <= 0 or actual <= 0:
            return
        ratio = min(50.0, max(0.02, actual / estimated))
        self.seen += 1
        alpha = max(0.1, 1.0 / self.seen)
        off = self.value * estimated / actual - 1.0
        self.error += alpha * (abs(off) - self.error)
        self.spread += alpha * (abs(ratio - self.value) - self.spread)
        self.value += alpha * (ratio - self.value)
        if self.parent is not None:
            self.parent.observe(estimated, actual)

    def blended(self) -> tuple[float, float]:
        """(value, spread)"""
        value, spread = self.parent.blended() if self.parent is not None else (1.0, 0.0)
        share = min(1.0, self.seen / TRUSTED_AFTER)
        return self.value * share + value * (1 - share), self.spread * share + spread * (1 - share)

    def to_json(self) -> list[float]:
        return [round(self.value, 4), round(self.spread, 4), round(self.error, 4), self.seen]

    @classmethod
    def from_json(cls, data: Any) -> Ratio:
        if isinstance(data, list) and len(data) == 4 and all(isinstance(x, int | float) for x in data):
            return cls(float(data[0]), float(data[1]), float(data[2]), int(data[3]))
        return cls()


class Ratios:
    """What returned usage taught about estimates: for a lane, and, as its child, for one template (batch) within it."""

    def __init__(self, parent: Ratios | None = None) -> None:
        self.prompt: Ratio = Ratio(parent=parent.prompt if parent else None)
        self.answer: Ratio = Ratio(parent=parent.answer if parent else None)

    def observe(self, *, est_input: float, est_output: float, input_tokens: int, output_tokens: int) -> None:
        """Learn from one call's usage; estimates are the uncorrected ones."""
        self.prompt.observe(est_input, input_tokens)
        self.answer.observe(est_output, output_tokens)

    def input(self, estimated: float) -> int:
        """Input tokens to plan with: the 60th percentile, so that limits are not overrun half of the time."""
        value, spread = self.prompt.blended()
        return max(1, int(estimated * (value + _P60 * spread) + 0.5)) if estimated > 0 else 0

    def output(self, estimated: float) -> int:
        """Output tokens to plan with: the mean, which is what a token budget feels over many calls."""
        value, _ = self.answer.blended()
        return max(1, int(estimated * value + 0.5)) if estimated > 0 else 0

    @property
    def input_error(self) -> float | None:
        """Mean relative error of corrected input estimates; None before the first answer."""
        return self.prompt.error if self.prompt.seen else None

    @property
    def output_error(self) -> float | None:
        return self.answer.error if self.answer.seen else None

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt.to_json(), "answer": self.answer.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Ratios:
        """From `lanes.learned["tokens"]`; anything unreadable starts anew."""
        ratios = cls()
        if isinstance(data, dict):
            ratios.prompt, ratios.answer = Ratio.from_json(data.get("prompt")), Ratio.from_json(data.get("answer"))
        return ratios


def _ascii_tokens(text: str) -> float:
    size = len(text)
    if size < 24:
        return size / CHARS_PER_TOKEN[_LATIN]
    marks = size - len(text.encode().translate(None, b'{";(='))
    return size / CHARS_PER_TOKEN[_CODE if marks * 33 > size else _LATIN]  # 3 % of such marks: code or JSON


def _content_tokens(content: Any) -> float:
    """A list of content parts; base64 data never counts as text."""
    if type(content) is str:
        return text_tokens(content)
    if type(content) is not list:
        return 0.0
    tokens = 0.0
    for part in content:
        if type(part) is str:
            tokens += text_tokens(part)
        elif type(part) is dict:
            tokens += _part_tokens(part)
    return tokens


def _part_tokens(part: dict[str, Any]) -> float:
    text = part.get("text")
    if type(text) is str:
        return text_tokens(text)
    if "content" in part:  # a message item of /v1/responses
        return MESSAGE_TOKENS + _content_tokens(part["content"])
    kind = part.get("type")
    if type(kind) is not str:
        return 0.0
    if kind in {"image_url", "input_image", "image"}:
        image = part.get("image_url")
        detail = image.get("detail") if type(image) is dict else part.get("detail")
        return IMAGE_TOKENS["low"] if detail == "low" else IMAGE_TOKENS["high"]
    if kind == "input_audio":
        audio = part.get("input_audio")
        data = audio.get("data") if type(audio) is dict else None
        return len(data) / AUDIO_CHARS_PER_TOKEN if type(data) is str else 0.0
    if kind in {"file", "input_file"}:
        return FILE_TOKENS
    return 0.0


def _input_tokens(body: Mapping[str, Any]) -> float:
    """`input` and `instructions` of /v1/responses, `input` of /v1/embeddings (token ids count as given)."""
    tokens = 0.0
    instructions = body.get("instructions")
    if type(instructions) is str:
        tokens += text_tokens(instructions)
    given = body.get("input")
    if type(given) is list and given and type(given[0]) is int:
        return tokens + len(given)
    if type(given) is list and given and type(given[0]) is list:
        return tokens + sum(len(ids) for ids in given if type(ids) is list)
    return tokens + _content_tokens(given)


def _json_tokens(value: Any) -> float:
    if not value:
        return 0.0
    try:
        return len(orjson.dumps(value)) / CHARS_PER_TOKEN[_CODE]
    except TypeError:
        return 0.0


def _class_of_page(page: int) -> int:
    """Script class of the 256 code points whose UTF-16 high byte is `page`."""
    if page in (0x03, 0x04, 0x05, 0x10, 0x1C, 0x1F, 0x2D):  # Greek, Cyrillic, Armenian, Hebrew, Georgian
        return _CYRILLIC
    if page in (0x06, 0x07, 0x08) or 0xFB <= page <= 0xFE:  # Arabic, Syriac and presentation forms
        return _ARABIC
    if 0x09 <= page <= 0x0F or page in (0x12, 0x13, 0x17, 0x18, 0x19, 0x1A, 0x1B):  # Indic, Thai, Lao, Khmer …
        return _INDIC
    if page == 0x11 or 0x2E <= page <= 0xD7 or 0xF9 <= page <= 0xFA or page == 0xFF:  # CJK, kana, hangul
        return _CJK
    if 0xD8 <= page <= 0xDF:  # surrogates: two units a character; emoji, rare ideographs
        return _EMOJI
    return _LATIN


_CLASS_OF_PAGE = bytes(_class_of_page(page) for page in range(256))
