"""Times that move on the page between two polls: each tells its seconds when it was drawn, and the page counts on."""

from __future__ import annotations

from typing import Literal

from ui.html.markup import Html, tag
from upq.units import NO_VALUE, duration

#: Counts all clocks of the page on, once a second, in the words of upq.units.duration. One that is drawn anew begins
#: anew, also where the page kept its element and changed the seconds alone.
TICKING = """
const words = (seconds) => {
  const [minutes, hours] = [Math.floor(seconds / 60), Math.floor(seconds / 3600)];
  if (!minutes) return `${seconds} s`;
  if (minutes < 10 && seconds % 60) return `${minutes} min ${seconds % 60} s`;
  if (!hours) return `${minutes} min`;
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return days < 2 * 365 ? `${days} days` : `${Math.floor(days / 365)} years`;
};
setInterval(() => document.querySelectorAll('[data-clock]').forEach((clock) => {
  if (clock.countedFrom !== clock.dataset.seconds) {
    [clock.countedFrom, clock.drawnAt] = [clock.dataset.seconds, performance.now()];
  }
  const passed = (performance.now() - clock.drawnAt) / 1000;
  const way = clock.dataset.clock === 'down' ? -1 : 1;
  const text = words(Math.max(0, Math.round(Number(clock.dataset.seconds) + way * passed)));
  if (clock.textContent !== text) clock.textContent = text;
}), 1000);
"""


def clock(seconds: float | None, way: Literal["up", "down"]) -> Html:
    """Draw a duration that grows, or one that shrinks until it is 0."""
    if seconds is None:
        return tag("span", NO_VALUE)
    return tag("span", duration(seconds), data_clock=way, data_seconds=f"{seconds:.1f}")
