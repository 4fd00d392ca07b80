"""What the chat does in the browser itself: following the newest answer, copying, choosing a column on a phone."""

from __future__ import annotations

#: A column follows its newest answer unless somebody scrolled up; a new question and a new view make it follow again.
#: Buttons that copy work in the page, the others are told to the server. Of two linked runs of words both light up.
PANE = """
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
  if (button.dataset.action !== 'copy') { trigger('click', { action: button.dataset.action }); return; }
  const words = button.textContent;
  navigator.clipboard?.writeText(button.dataset.text).then(() => {
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = words; }, 1500);
  });
});
for (const [event, lit] of [['mouseover', true], ['focusin', true], ['mouseout', false], ['focusout', false]]) {
  pane.addEventListener(event, (which) => {
    const run = which.target.closest('mark[data-link]');
    const both = run ? run.closest('.ways').querySelectorAll(`mark[data-link="${run.dataset.link}"]`) : [];
    for (const one of both) one.classList.toggle('lit', lit);
  });
}
"""

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
