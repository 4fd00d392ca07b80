"""The head of a column in one line, with all that was measured of its model folded below it."""

from __future__ import annotations

from ui.app_state import Badge, Timing
from ui.html import NO_VALUE, Html, Precision, duration, fixed, number, parts, size, tag

NOT_LOADED = "loads with the first question"
NOT_THERE = "not there yet"
#: What a page says before it has asked.
NOT_KNOWN = "…"
FAIR_HINT = "one answer alone, no run at work and no other column answering, on this machine"
FIRST_HINT = "on a CPU, what the model holds of the conversation is not read again"
SHARED_HINT = "the last answer that was written while other columns or a run used the machine too"


def column_head(
    precision: Precision, badge: Badge, reference: Badge | None = None, unknown: str = NOT_LOADED
) -> Html:
    """Draw the head of a column: `INT2  62 MB · 2.27 bit · 4.1x FP16`, and behind it the details.

    reference: what is known of FP16, whose speed the speed is a multiple of; unknown: what the line says where nothing
    is known of the model.
    """
    kind = precision.lower()
    bits = badge.get("bits_per_weight")
    facts = [
        size(badge["size_bytes"]) if "size_bytes" in badge else None,
        f"{bits:.3g} bit" if bits else None,
    ]
    line = " · ".join(filter(None, facts)) or unknown
    summary = tag(
        "summary",
        tag("h3", precision, class_=kind),
        tag("span", line, _speed(precision, badge, reference or {}), class_="line"),
    )
    return tag(
        "details",
        summary,
        _details(badge, unknown),
        class_=f"column-head {kind}",
        data_fold="head",
    )


def _speed(precision: Precision, badge: Badge, reference: Badge) -> Html | None:
    """Draw the speed alone: of FP16 in tokens/s, of the others as a multiple of FP16's where that is known."""
    rate = badge.get("fair", {}).get("tokens_per_s")
    other = reference.get("fair", {}).get("tokens_per_s")
    if not rate:
        return None
    words = f"{number(rate)} tok/s"
    if precision == "FP16" or not other:
        return tag("span", f" · {words}", title=f"{words}: {FAIR_HINT}")
    hint = f"{words} against {number(other)} of FP16: {FAIR_HINT}"
    return tag("span", f" · {rate / other:.1f}x FP16", title=hint)


def _details(badge: Badge, unknown: str) -> Html:
    bits = badge.get("bits_per_weight")
    facts = [
        parts.fact("stored", size(badge.get("size_bytes"))),
        parts.fact("in memory", size(badge.get("memory_bytes"))),
        parts.fact("weights", f"{fixed(bits, 2)} bit" if bits else NO_VALUE),
        _timing("speed alone", badge.get("fair"), FAIR_HINT),
        _timing("speed while sharing", badge.get("shared"), SHARED_HINT),
        parts.fact("loaded in", duration(badge.get("load_s"))),
    ]
    note = badge.get("note")
    return tag(
        "div",
        tag("dl", *facts),
        tag("p", badge.get("backend") or unknown, class_="backend"),
        tag("p", note) if note else None,
        class_="details",
    )


def _timing(name: str, timing: Timing | None, hint: str) -> Html:
    """Draw tokens/s, and the time to the first token."""
    if not timing:
        return tag("div", tag("dt", name, title=hint), tag("dd", NO_VALUE))
    speed = timing.get("tokens_per_s")
    rate = f"{number(speed)} tok/s" if speed else NO_VALUE
    first = None
    if "first_token_s" in timing:
        words = f"first token {duration(timing['first_token_s'])}"
        first = tag("small", words, title=FIRST_HINT)
    return tag("div", tag("dt", name, title=hint), tag("dd", rate, first))
