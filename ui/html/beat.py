"""The clock of the page: when it asks the server what is new.

A page that nobody sees does not ask, and asks at once when it is seen again: after another tab, a locked screen, or
the browser's button back. One that is seen asks once a second while something is at work, or while somebody does
something on it; else every fourth second is enough.
"""

from __future__ import annotations

#: Beats for whoever listens to `tick` of its component, more slowly while what it shows is marked `data-rests`.
BEATING = """
const isSeen = () => document.visibilityState === 'visible';
let beats = 0, stirredAt = -Infinity;
for (const kind of ['click', 'keydown']) {
  document.addEventListener(kind, () => { stirredAt = performance.now(); }, true);
}
setInterval(() => {
  beats += 1;
  const rests = element.querySelector('[data-rests]') && performance.now() - stirredAt > 5000;
  if (isSeen() && (!rests || beats % 4 === 0)) trigger('tick');
}, 1000);
document.addEventListener('visibilitychange', () => { if (isSeen()) trigger('tick'); });
window.addEventListener('pageshow', (event) => { if (event.persisted) trigger('tick'); });
"""
