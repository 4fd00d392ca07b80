"""What the chat does in the browser itself: following the newest answer, copying, choosing a column on a phone."""

from __future__ import annotations

#: Copies the text that a button carries.
_COPY = """
const copy = (button) => {
  const words = button.textContent;
  navigator.clipboard?.writeText(button.dataset.text).then(() => {
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = words; }, 1500);
  });
};
"""

#: A column follows its newest answer unless somebody scrolled up; a new question and a new view make it follow again.
#: Buttons that copy work in the page, the others are told to the server. Of two linked runs of words both light up.
_PANE = """
const pane = element.closest('.pane');
const questions = () => pane.querySelectorAll('.message.user').length;
let follows = true, asked = questions();
const follow = () => { pane.scrollTop = pane.scrollHeight; };
pane.addEventListener('scroll', () => {
  follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
});
new MutationObserver(() => {
  if (questions() > asked && pane.offsetParent && innerWidth <= 640) {
    document.querySelector('#column-switch').scrollIntoView();
  }
  if (questions() !== asked) { asked = questions(); follows = true; }
  if (follows) follow();
}).observe(pane, { childList: true, subtree: true, characterData: true });
new ResizeObserver(() => { if (follows) follow(); }).observe(pane);  // it was hidden while the answer came
document.addEventListener('change', (event) => { if (event.target.closest('#view')) follows = true; });
pane.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  if (button.dataset.action === 'sides') {
    document.querySelector('#columns').classList.toggle('side-by-side');
    return;
  }
  if (button.dataset.action === 'copy') copy(button); else trigger('click', { action: button.dataset.action });
});
for (const [event, lit] of [['mouseover', true], ['focusin', true], ['mouseout', false], ['focusout', false]]) {
  pane.addEventListener(event, (which) => {
    const run = which.target.closest('mark[data-link]');
    const both = run ? run.closest('.ways').querySelectorAll(`mark[data-link="${run.dataset.link}"]`) : [];
    for (const one of both) one.classList.toggle('lit', lit);
  });
}
"""
PANE = _COPY + _PANE

#: On a narrow screen one column is shown, the one whose button is pressed.
SWITCH = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-column]');
  if (!button) return;
  document.querySelector('#columns').dataset.column = button.dataset.column;
  for (const other of element.querySelectorAll('button')) {
    other.setAttribute('aria-pressed', other === button);
  }
});
"""

#: What is written here is read aloud.
ANNOUNCED = """
element.setAttribute('role', 'status');
element.setAttribute('aria-live', 'polite');
"""

#: Keys press the buttons of the blind vote, unless somebody is typing; a button that was pressed waits for the answer.
#: Whoever goes on by keys finds the focus where it goes on: at the question, then at Next.
_VOTE = """
const TYPING = 'textarea, select, [contenteditable], input:not([type=radio], [type=checkbox], [type=button])';
const buttons = () => [...element.querySelectorAll('.blind-bar button[data-action]')];
let goesOn = false;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button?.dataset.action === 'copy') copy(button);
  if (!buttons().includes(button) || button.disabled) return;
  const pressed = buttons();
  for (const other of pressed) other.disabled = true;
  setTimeout(() => { for (const other of pressed) other.disabled = false; }, 5000);
  goesOn = true;
  trigger('click', { action: button.dataset.action });
});
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!element.getClientRects().length || event.target.closest?.(TYPING)) return;
  const button = buttons().find((other) => other.dataset.key === event.key);
  if (!button) return;
  event.preventDefault();
  button.click();
});
document.addEventListener('focusin', (event) => { goesOn = goesOn && element.contains(event.target); });
new MutationObserver(() => {
  if (goesOn && !element.contains(document.activeElement)) element.querySelector('[data-focus]')?.focus();
}).observe(element, { childList: true, subtree: true });
"""
VOTE = _COPY + _VOTE
