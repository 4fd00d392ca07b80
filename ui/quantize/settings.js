// The advanced settings in the page: sections fold, a search shows what matches, and what differs from the preset is
// marked. `element` holds the list of differences, which the server draws; `trigger` sends a reset to the server.
const form = element.closest('#new-run');
const fields = () => form.querySelectorAll('#advanced .setting');

const setOpen = (head, open) => {
  head.setAttribute('aria-expanded', open);
  document.getElementById(head.dataset.section)?.classList.toggle('open', open);
};

const search = (text) => {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const field of fields()) {
    const told = `${field.id.slice('set-'.length).replaceAll('-', '.')} ${field.textContent}`.toLowerCase();
    field.classList.toggle('hidden-by-search', !words.every((word) => told.includes(word)));
  }
  for (const head of form.querySelectorAll('.settings-head button')) {
    const section = document.getElementById(head.dataset.section);
    const found = section.querySelectorAll('.setting:not(.hidden-by-search)').length;
    head.closest('.settings-head').classList.toggle('hidden-by-search', !found);
    section.classList.toggle('searched', words.length > 0 && found > 0);
  }
  const found = form.querySelectorAll('#advanced .setting:not(.hidden-by-search)').length;
  const line = form.querySelector('#settings-found');
  if (line) line.textContent = words.length ? `${found} of ${fields().length} settings` : '';
};

const mark = () => {
  const preset = new Map([...element.querySelectorAll('[data-setting][data-preset]')].map(
    (one) => [one.dataset.setting, one.dataset.preset]));
  for (const field of fields()) {
    const path = field.id.slice('set-'.length).replaceAll('-', '.');
    const changed = preset.has(path);
    field.classList.toggle('changed', changed);
    let button = field.querySelector('.reset');
    if (!changed) button?.remove();
    if (!changed) continue;
    if (!button) {
      button = document.createElement('button');
      button.type = 'button';
      button.className = 'reset';
      button.dataset.reset = path;
      field.append(button);
    }
    const words = `changed; back to ${preset.get(path) || 'empty'}`;
    if (button.textContent !== words) button.textContent = words;
  }
  for (const head of form.querySelectorAll('.settings-head button')) {
    const section = document.getElementById(head.dataset.section);
    const count = section ? section.querySelectorAll('.setting.changed').length : 0;
    const words = count ? `${count} changed` : '';
    const place = head.querySelector('.count');
    if (place.textContent !== words) place.textContent = words;
  }
};

form.addEventListener('input', (event) => {
  if (event.target.id === 'search-settings') search(event.target.value);
});
form.addEventListener('click', (event) => {
  const head = event.target.closest('.settings-head button');
  if (head) setOpen(head, head.getAttribute('aria-expanded') !== 'true');
  const reset = event.target.closest('button[data-reset]');
  if (reset) trigger('click', { setting: reset.dataset.reset });
  const copy = event.target.closest('button[data-copy]');
  if (copy) {
    const box = copy.parentElement.querySelector('.command');
    const selected = () => getSelection().selectAllChildren(box);
    const done = navigator.clipboard?.writeText(box.textContent).catch(selected) ?? selected();
    Promise.resolve(done).then(() => { copy.textContent = 'Copied'; });
  }
  requestAnimationFrame(mark);
});
new MutationObserver(mark).observe(element, { childList: true, subtree: true });
mark();
