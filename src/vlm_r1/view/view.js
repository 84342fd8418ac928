// Reads values under the pointer (or the arrow keys) from the curves, where a click (or Enter) picks a step; joins
// answers with their boxes, and lets the arrow keys walk along a strip of images. Everything is found through the document, as the page is redrawn often.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const numbers = (text) => text.trim().split(/[\s,]+/).map(Number);
  const shown = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));

  function stepAt(chart, x) {
    const [low, high] = numbers(chart.dataset.axes);
    const [left, right] = numbers(chart.dataset.field);
    return Math.round(low + ((x - left) / (chart.viewBox.baseVal.width - left - right)) * (high - low));
  }

  function read(chart, x) {
    const [, , low, high] = numbers(chart.dataset.axes);
    const [, , top, bottom] = numbers(chart.dataset.field);
    const { width, height } = chart.viewBox.baseVal;
    const lines = [...chart.querySelectorAll("polyline")];
    if (!lines.length) return;
    const all = lines.map((line) => numbers(line.getAttribute("points")));
    let at = null;
    for (const points of all) for (let i = 0; i < points.length; i += 2) if (at === null || Math.abs(points[i] - x) < Math.abs(at - x)) at = points[i];
    clear(chart);
    const group = document.createElementNS(NS, "g");
    group.setAttribute("class", "vr-cursor");
    const rule = document.createElementNS(NS, "line");
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: top, y2: height - bottom })) rule.setAttribute(name, value);
    group.append(rule);
    const told = new Map();
    lines.forEach((line, place) => {
      const points = all[place];
      for (let i = 0; i < points.length; i += 2) {
        if (Math.abs(points[i] - at) > 0.01) continue;
        const value = low + ((height - bottom - points[i + 1]) / (height - top - bottom)) * (high - low);
        const colour = line.style.getPropertyValue("--c");
        const faint = line.classList.contains("vr-faint");
        const known = told.get(colour);
        told.set(colour, { label: line.dataset.label, value: known ? known.value : value, average: known ? value : undefined });
        if (faint) continue;
        const dot = document.createElementNS(NS, "circle");
        for (const [name, number] of Object.entries({ cx: at, cy: points[i + 1], r: 3.5 })) dot.setAttribute(name, number);
        dot.style.setProperty("--c", colour);
        group.append(dot);
      }
    });
    chart.append(group);
    chart.dataset.at = at;
    if (chart === document.activeElement && held) held.at = at;
    const box = document.createElement("div");
    box.className = "vr-tip";
    box.setAttribute("role", "status");
    const step = document.createElement("b");
    step.textContent = `step ${stepAt(chart, at)}`;
    box.append(step);
    for (const [colour, { label, value, average }] of told) {
      const row = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.setProperty("--c", colour);
      row.append(mark, `${label ? label + " " : ""}${shown(value)}${average === undefined ? "" : `, average ${shown(average)}`}`);
      box.append(row);
    }
    const figure = chart.parentElement;
    figure.append(box);
    const drawn = chart.getBoundingClientRect();
    const place = drawn.left - figure.getBoundingClientRect().left + (at / width) * drawn.width;
    const beside = place + 12 + box.offsetWidth > figure.clientWidth ? place - 12 - box.offsetWidth : place + 12;
    box.style.left = `${Math.max(0, Math.min(beside, figure.clientWidth - box.offsetWidth))}px`;
  }

  function clear(chart) {
    chart.querySelector(".vr-cursor")?.remove();
    chart.parentElement.querySelector(".vr-tip")?.remove();
    delete chart.dataset.at;
  }

  function light(place) {
    const answer = place?.closest?.(".vr-detail [data-answer]");
    for (const old of document.querySelectorAll(".vr-on, .vr-picked")) old.classList.remove("vr-on", "vr-picked");
    if (!answer) return;
    const side = answer.closest(".vr-two");
    side.querySelector("svg.vr-pic")?.classList.add("vr-picked");
    for (const one of side.querySelectorAll(`[data-answer="${answer.dataset.answer}"]`)) one.classList.add("vr-on");
  }

  // The chart that has the focus, and where the pointer is: both are found again when the page was redrawn.
  let held = null;
  let pointer = null;

  function readAt(chart, clientX) {
    const place = chart.getBoundingClientRect();
    read(chart, ((clientX - place.left) / place.width) * chart.viewBox.baseVal.width);
  }

  function redrawn() {
    if (held && document.activeElement === document.body) {
      const again = [...document.querySelectorAll("svg.vr-chart")].find((chart) => chart.getAttribute("aria-label") === held.label);
      const at = held.at;
      again?.focus({ preventScroll: true });
      if (again && at !== undefined) read(again, Number(at));
    }
    if (pointer && !document.querySelector(".vr-tip")) {
      const under = document.elementFromPoint(pointer.x, pointer.y)?.closest("svg.vr-chart");
      if (under) readAt(under, pointer.x);
    }
  }
  document.addEventListener("DOMContentLoaded", () => new MutationObserver(redrawn).observe(document.body, { childList: true, subtree: true }));

  document.addEventListener("pointerleave", () => (pointer = null));
  document.addEventListener("pointermove", (event) => {
    pointer = { x: event.clientX, y: event.clientY };
    const chart = event.target.closest?.("svg.vr-chart");
    for (const other of document.querySelectorAll("svg.vr-chart[data-at]")) if (other !== chart && other !== document.activeElement) clear(other);
    if (chart) readAt(chart, event.clientX);
    light(event.target.closest?.(".vr-detail [data-answer]") ? event.target : document.activeElement);
  });
  document.addEventListener(
    "click",
    (event) => {
      const thumb = event.target.closest?.(".vr-thumb");
      if (thumb) {
        for (const other of thumb.parentElement.children) other.removeAttribute("aria-current");
        thumb.setAttribute("aria-current", "true");
      }
      const chart = event.target.closest?.("#training svg.vr-chart");
      if (chart) {
        if (event.detail) readAt(chart, event.clientX);
        if ("at" in chart.dataset) chart.dataset.pick = `step:${stepAt(chart, Number(chart.dataset.at))}`;
      }
    },
    true,
  );
  document.addEventListener("focusin", (event) => {
    light(event.target);
    held = event.target.matches?.("svg.vr-chart") ? { label: event.target.getAttribute("aria-label") } : null;
  });
  document.addEventListener("focusout", (event) => {
    if (!event.target.isConnected) return;
    held = null;
    if (event.target.matches?.("svg.vr-chart")) clear(event.target);
  });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const chart = event.target.closest?.("svg.vr-chart");
    if (chart && event.key === "Enter") chart.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    if (!by) return;
    if (chart) {
      const places = [...chart.querySelectorAll("polyline")].flatMap((line) => numbers(line.getAttribute("points")).filter((_, i) => i % 2 === 0));
      const known = [...new Set(places)].sort((a, b) => a - b);
      const now = "at" in chart.dataset ? known.indexOf(Number(chart.dataset.at)) : by > 0 ? -1 : known.length;
      read(chart, known[Math.min(known.length - 1, Math.max(0, now + by))]);
      event.preventDefault();
    }
    const thumb = event.target.closest?.(".vr-thumb");
    if (thumb) {
      (by > 0 ? thumb.nextElementSibling : thumb.previousElementSibling)?.focus();
      event.preventDefault();
    }
  });
})();
