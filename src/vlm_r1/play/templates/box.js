// A true box drawn on the image: drag with a mouse, or click (tap) two opposite corners.
// Sends [x, y] for a first corner and [x1, y1, x2, y2] for a box, in pixels of the image.
const NEAR = 4;
const outline = document.createElement('div');
outline.className = 'true-box';
let first = null, start = null, source = '';

const image = event => event.target.closest && event.target.closest('#image img');

function place(img, event) {
  const frame = img.getBoundingClientRect();
  const scale = Math.min(frame.width / img.naturalWidth, frame.height / img.naturalHeight);
  const left = frame.left + (frame.width - img.naturalWidth * scale) / 2;
  const top = frame.top + (frame.height - img.naturalHeight * scale) / 2;
  const inside = (value, most) => Math.round(Math.max(0, Math.min(most, value)));
  const x = inside((event.clientX - left) / scale, img.naturalWidth);
  const y = inside((event.clientY - top) / scale, img.naturalHeight);
  return { x, y, left, top, scale, at: [event.clientX, event.clientY] };
}

function show(a, b) {
  const holder = document.querySelector('#image'), frame = holder.getBoundingClientRect();
  holder.append(outline);
  outline.style.left = `${b.left + Math.min(a.x, b.x) * b.scale - frame.left}px`;
  outline.style.top = `${b.top + Math.min(a.y, b.y) * b.scale - frame.top}px`;
  outline.style.width = `${Math.max(2, Math.abs(a.x - b.x) * b.scale)}px`;
  outline.style.height = `${Math.max(2, Math.abs(a.y - b.y) * b.scale)}px`;
}

function forget() {
  first = start = null;
  outline.remove();
}

function finish(a, b) {
  if (a.x === b.x || a.y === b.y) return forget();
  show(a, b);
  first = null;
  trigger('select', { box: [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)] });
}

const far = (a, b) => Math.hypot(a.at[0] - b.at[0], a.at[1] - b.at[1]) > NEAR;

document.addEventListener('pointerdown', event => {
  const img = image(event);
  start = img && event.button === 0 ? place(img, event) : null;
});
document.addEventListener('pointermove', event => {
  const img = document.querySelector('#image img');
  if (!img || event.pointerType !== 'mouse' || (!start && !first)) return;
  const here = place(img, event);
  if (start ? far(start, here) : image(event)) show(start && far(start, here) ? start : first || start, here);
});
document.addEventListener('pointerup', event => {
  const img = document.querySelector('#image img');
  if (!img || !start) return;
  const here = place(img, event), from = start;
  start = null;
  if (far(from, here)) return finish(from, here);
  if (first) return finish(first, here);
  first = here;
  show(here, here);
  trigger('select', { box: [here.x, here.y] });
});
document.addEventListener('pointercancel', () => { start = null; });
document.addEventListener('dragstart', event => { if (image(event)) event.preventDefault(); });
document.addEventListener('input', event => { if (event.target.closest('#truth')) forget(); });
window.addEventListener('resize', forget);
new MutationObserver(() => {
  const img = document.querySelector('#image img');
  if ((img ? img.src : '') !== source) {
    source = img ? img.src : '';
    forget();
  }
}).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ['src'] });
