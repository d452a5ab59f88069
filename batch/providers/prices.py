"""What tokens cost: prices per model and the price of one answer.

Owns: Price, where prices come from (the genai-prices package, offline data) and the arithmetic.
Unknown is None, never zero. The provider's own figure (providers/adapter.py) wins over all of this.
May not touch: the network; the package's own updater is never started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batch.domain.outcome import Usage


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. A missing `cached` is `input`. `tiers` are (input tokens above which it
    holds, price): the highest tier that is exceeded prices all tokens, as vendors do.
    """

    input: float
    output: float
    cached: float | None = None
    tiers: tuple[tuple[int, Price], ...] = ()

    def of(self, usage: Usage) -> float:
        """Dollars for one call's usage. Cached tokens are part of input, reasoning tokens of output."""
        price = self
        for start, tier in self.tiers:
            if usage.input_tokens > start:
                price = tier
        cached = min(usage.cached_tokens, usage.input_tokens)
        return (
            (usage.input_tokens - cached) * price.input
            + cached * (price.input if price.cached is None else price.cached)
            + usage.output_tokens * price.output
        ) / 1e6


def package_price(provider_id: str, model: str) -> Price | None:
    """The price in genai-prices, or None. `provider_id` is that package's id, e.g. "x-ai"."""
    import genai_prices  # noqa: PLC0415 - 160 ms of import that only a priced provider pays

    try:
        found = genai_prices.calc_price(genai_prices.Usage(input_tokens=1), model, provider_id=provider_id)
    except (LookupError, ValueError):
        return None
    return _from_package(found.model_price)


def package_context(provider_id: str, model: str) -> int | None:
    """The context window in tokens as genai-prices states it, or None."""
    from genai_prices import data_snapshot  # noqa: PLC0415 - as above

    try:
        _, info = data_snapshot.get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError:
        return None
    return info.context_window or None


def _from_package(found: Any) -> Price | None:
    rates = {"input": found.input_mtok, "output": found.output_mtok, "cached": found.cache_read_mtok}
    if rates["input"] is None or rates["output"] is None:
        return None
    starts = sorted({tier.start for rate in rates.values() for tier in getattr(rate, "tiers", ())})
    return Price(
        **{name: _rate(rate, 0) for name, rate in rates.items()},  # type: ignore[arg-type]
        tiers=tuple(
            (start, Price(**{name: _rate(rate, start + 1) for name, rate in rates.items()}))  # type: ignore[arg-type]
            for start in starts
        ),
    )


def _rate(rate: Any, input_tokens: int) -> float | None:
    """One rate at so many input tokens: a number, or the package's TieredPrices."""
    if rate is None:
        return None
    if not hasattr(rate, "tiers"):
        return float(rate)
    value = rate.base
    for tier in rate.tiers:
        if input_tokens > tier.start:
            value = tier.price
    return float(value)
