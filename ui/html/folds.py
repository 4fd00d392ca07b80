"""What a person unfolded stays open when its panel is drawn anew, and keeps the focus of the keyboard."""

from __future__ import annotations

#: A fold is known by the nearest element with an id, its summary, and its place among those of the same words; where
#: the words of the summary change, data-fold names it.
FOLDING = """
const opened = new Set();
let focused = null;
const nameOf = (fold) => {
  const home = fold.parentElement.closest('[id]');
  const words = (one) => one.dataset.fold ?? one.querySelector('summary')?.textContent;
  const alike = [...home.querySelectorAll('details')].filter((one) => words(one) === words(fold));
  return JSON.stringify([home.id, words(fold), alike.indexOf(fold)]);
};
document.addEventListener('toggle', (event) => {
  if (event.target.tagName !== 'DETAILS' || !event.target.isConnected) return;
  if (event.target.open) opened.add(nameOf(event.target)); else opened.delete(nameOf(event.target));
}, true);
document.addEventListener('focusin', (event) => {
  focused = event.target.tagName === 'SUMMARY' ? nameOf(event.target.parentElement) : null;
});
new MutationObserver((changes) => {
  if (!opened.size && !focused) return;
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    if (node.nodeType !== Node.ELEMENT_NODE || !node.isConnected) continue;
    for (const fold of [...(node.matches('details') ? [node] : []), ...node.querySelectorAll('details')]) {
      const name = nameOf(fold);
      if (opened.has(name)) fold.open = true;
      if (name === focused && document.activeElement === document.body) fold.querySelector('summary').focus();
    }
  }
}).observe(document.body, { childList: true, subtree: true });
"""
