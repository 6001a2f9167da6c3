// The layer ruler: cells for layers, handles for cuts.
//
// A move is drawn at once and sent once per frame; ipywidgets keeps one message in flight and the latest
// value waiting. `cuts` is the truth of what is on display. A `state` that answers older cuts changes the
// figures, never the handles.

const HINT = "Drag a cut, or focus it and press ← →; double click or P pins a stage";
const STEP = 5;
const TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
// Pixels: the row titles' column, a letter, the thinnest cell, cells too small for a seam between them, and
// from where on a stage has room for words.
const GUTTER = 46;
const LETTER = 6.4;
const THINNEST = 2;
const SEAMLESS = 4;
const ROOMY = 58;

/** Return where a handle may go: first and last cut that leave its neighbours a layer each. */
export function limits(cuts, handle, layers) {
  return [(cuts[handle - 1] ?? 0) + 1, (cuts[handle + 1] ?? layers) - 1];
}

/**
 * Return the allowed cut nearest to `target`, and why it is not `target` itself.
 *
 * `distance(cut)` says how far a cut is from what was meant; `why` maps forbidden cuts to reasons. Where
 * nothing is allowed the handle stays.
 */
export function settle({ cuts, handle, layers, target, why, distance }) {
  const [low, high] = limits(cuts, handle, layers);
  let best = cuts[handle];
  let least = why.has(best) || best < low || best > high ? Infinity : distance(best);
  for (let cut = low; cut <= high; cut++) {
    if (!why.has(cut) && distance(cut) < least) [best, least] = [cut, distance(cut)];
  }
  let reason = "";
  if (why.has(target)) reason = `No cut before layer ${target}: ${why.get(target)}`;
  else if (target < low) reason = `Stage ${handle} keeps at least one layer`;
  else if (target > high) reason = `Stage ${handle + 1} keeps at least one layer`;
  return { cut: best, reason };
}

/**
 * Return where everything is, in pixels: left edge and width of every cell and of every stage's span, the
 * middle of every gap between two stages, and where that of a handle would be for any other cut.
 */
export function place(state, cuts, sizeBy, width) {
  const { cells, stages, kinds } = state;
  const gap = Math.max(3, Math.min(8, width / stages.length / 6));
  const count = cells.length + stages.reduce((sum, stage) => sum + stage.before.length + stage.after.length, 0);
  const room = width - gap * (stages.length - 1);
  // What is thin must still be seen, e.g. an embedding's time: every cell has as much, the rest is shared.
  const least = Math.min(THINNEST, room / count / 2);
  const sizes = kinds.map((kind) => least + (room - least * count) * kind[sizeBy]);
  const total = (list) => list.reduce((sum, kind) => sum + sizes[kind], 0);
  const sums = [0];
  cells.forEach((kind, layer) => sums.push(sums[layer] + sizes[kind]));
  // Cells keep their size, so a layer is as far right as those before it, and what stands beside them.
  const offsets = [];
  const put = { layers: [], beside: [], spans: [], gaps: [] };
  const box = (kind, stage, left, right) => ({ kind, stage, left: Math.round(left), width: Math.round(right) - Math.round(left) });
  let offset = 0;
  stages.forEach((stage, index) => {
    const [start, stop] = [cuts[index - 1] ?? 0, cuts[index] ?? cells.length];
    const first = sums[start] + offset;
    let x = first;
    for (const kind of stage.before) put.beside.push(box(kind, index, x, (x += sizes[kind])));
    offset += total(stage.before);
    for (let layer = start; layer < stop; layer++) {
      put.layers.push(box(cells[layer], index, sums[layer] + offset, sums[layer + 1] + offset));
    }
    x = sums[stop] + offset;
    for (const kind of stage.after) put.beside.push(box(kind, index, x, (x += sizes[kind])));
    put.spans.push(box(null, index, first, x));
    offset += total(stage.after) + gap;
    offsets.push(offset - gap / 2);
    put.gaps.push(x + gap / 2);
  });
  put.gaps.pop();
  return { ...put, gap, size: room / count, gapOf: (handle, cut) => sums[cut] + offsets[handle] };
}

const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const isCuts = (cuts, state) =>
  cuts.length === state.stages.length - 1 &&
  cuts.every((cut, index) => cut > (cuts[index - 1] ?? 0) && cut < state.cells.length);
const same = (a, b) => a.length === b.length && a.every((value, index) => value === b[index]);

function make(tag, name, parent, attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

/** Write only what differs: an untouched element costs the browser nothing. */
function write(element, values) {
  const last = (element.written ??= {});
  for (const [key, value] of Object.entries(values)) {
    if (last[key] === value) continue;
    last[key] = value;
    if (key === "text") element.textContent = value;
    else if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (key in element.style) element.style[key] = value;
    else if (value === null) element.removeAttribute(key);
    else element.setAttribute(key, value);
  }
}

/** Keep as many elements as are asked for, in order; they are reused, so that nothing accumulates. */
function pool(create) {
  const elements = [];
  return (count) => {
    while (elements.length < count) elements.push(create(elements.length));
    while (elements.length > count) elements.pop().remove();
    return elements;
  };
}

class RulerView {
  constructor(model, el) {
    this.model = model;
    this.frame = 0;
    this.isDirty = false;
    this.drag = null;
    this.refused = -1;
    this.build(el);
    this.watch();
    this.adopt();
    this.draw();
  }

  get state() {
    return this.model.get("state");
  }

  // --- what is on the page ----------------------------------------------------------------------------

  build(el) {
    // JupyterLab's own shortcuts must not take the arrows and letters that handles answer to.
    this.root = make("div", "pgplan-ruler", el, { "data-lm-suppress-shortcuts": "true" });
    const head = make("div", "pgplan-ruler-head", this.root);
    this.status = make("span", "pgplan-ruler-status", head, { role: "status", "aria-live": "polite" });
    make("span", "pgplan-ruler-hint", head).textContent = HINT;
    const sizes = make("span", "pgplan-ruler-sizes", head, { role: "group", "aria-label": "cells sized by" });
    make("span", "pgplan-ruler-faint", sizes, { "aria-hidden": "true" }).textContent = "sized by";
    this.sizes = ["weight", "time"].map((by) => {
      const button = make("button", "pgplan-ruler-size", sizes, { type: "button" });
      button.textContent = by;
      button.addEventListener("click", () => this.send("size_by", by));
      return button;
    });
    this.body = make("div", "pgplan-ruler-body", this.root);
    ["layer", "stage", "layers"].forEach((word, row) => {
      make("span", `pgplan-ruler-gutter pgplan-ruler-row${row}`, this.body, { "aria-hidden": "true" }).textContent = word;
    });
    this.track = make("div", "pgplan-ruler-track", this.body);
    this.strip = make("div", "pgplan-ruler-strip", this.track, { role: "img" });
    this.layers = pool(() => make("div", "pgplan-ruler-cell", this.strip));
    this.beside = pool(() => make("div", "pgplan-ruler-cell", this.strip));
    this.ticks = pool(() => make("span", "pgplan-ruler-tick", this.track, { "aria-hidden": "true" }));
    this.links = pool(() => make("div", "pgplan-ruler-link", this.track));
    this.labels = pool((index) => this.makeLabel(index));
    this.handles = pool((index) => this.makeHandle(index));
    this.legend = make("div", "pgplan-ruler-legend", this.root, { "aria-hidden": "true" });
    this.entries = pool(() => {
      const entry = make("span", "pgplan-ruler-entry", this.legend);
      entry.swatch = make("span", "pgplan-ruler-cell pgplan-ruler-swatch", entry);
      entry.words = make("span", "", entry);
      return entry;
    });
    this.track.addEventListener("dblclick", (event) => {
      const x = event.clientX - this.track.getBoundingClientRect().left;
      this.pin(this.placed.gaps.filter((gap) => gap < x).length);
    });
  }

  makeLabel(stage) {
    const label = make("div", "pgplan-ruler-label", this.track, { role: "button", tabindex: "-1" });
    label.lines = [0, 1, 2].map((line) => make("span", `pgplan-ruler-line${line}`, label));
    // A screen reader's press has no clicks to count; a mouse needs two.
    label.addEventListener("click", (event) => event.detail === 0 && this.pin(stage));
    return label;
  }

  makeHandle(index) {
    const handle = make("div", "pgplan-ruler-handle", this.track, {
      role: "slider",
      tabindex: "0",
      "aria-orientation": "horizontal",
      "aria-keyshortcuts": "Escape P Shift+P",
    });
    make("div", "pgplan-ruler-grip", handle);
    handle.addEventListener("keydown", (event) => this.press(event, index));
    handle.addEventListener("focus", () => (this.before = this.cuts[index]));
    handle.addEventListener("pointerdown", (event) => this.grab(event, index, handle));
    handle.addEventListener("pointermove", (event) => this.pull(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      handle.addEventListener(end, () => this.release());
    }
    handle.addEventListener("dblclick", (event) => event.stopPropagation());
    return handle;
  }

  // --- what the user does -----------------------------------------------------------------------------

  grab(event, handle, element) {
    if (event.button !== 0 || this.drag) return;
    event.preventDefault();
    element.focus({ preventScroll: true });
    element.setPointerCapture(event.pointerId);
    this.before = this.cuts[handle];
    // Where on the handle it was taken, so that it does not jump to the pointer.
    this.drag = { handle, pointer: event.pointerId, offset: event.clientX - this.screenX(this.placed.gaps[handle]) };
    this.schedule();
  }

  pull(event) {
    if (!this.drag || event.pointerId !== this.drag.pointer) return;
    const { handle, offset } = this.drag;
    const x = event.clientX - offset - this.screenX(0);
    const distance = (cut) => Math.abs(this.placed.gapOf(handle, cut) - x);
    let target = 0;
    for (let cut = 1; cut <= this.state.cells.length; cut++) {
      if (distance(cut) < distance(target)) target = cut;
    }
    this.move(handle, target, distance);
  }

  release() {
    if (!this.drag) return;
    this.drag = null;
    this.refused = -1;
    this.flush();
    this.adopt();
    this.schedule();
  }

  press(event, handle) {
    const now = this.cuts[handle];
    const [low, high] = limits(this.cuts, handle, this.state.cells.length);
    const step = event.shiftKey ? STEP : 1;
    const towards = {
      ArrowLeft: now - step,
      ArrowDown: now - step,
      ArrowRight: now + step,
      ArrowUp: now + step,
      PageDown: now - STEP,
      PageUp: now + STEP,
      Home: low,
      End: high,
      Escape: this.before,
    }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter") this.before = now;
    else if (event.key.toLowerCase() === "p") this.pin(handle + (event.shiftKey ? 1 : 0));
    else if (towards === undefined) return;
    else this.step(handle, towards, event.key);
    event.preventDefault();
    event.stopPropagation();
  }

  /** Move to `target`, or past it in the same direction where it is forbidden, or back where that ends. */
  step(handle, target, key) {
    const now = this.cuts[handle];
    if (key === "Escape" && this.drag) this.drag.handle = -1;
    const onward = Math.sign(target - now) * (key === "Home" || key === "End" ? -1 : 1);
    // Beyond the target is nearer than any cut on the way to it.
    const distance = (cut) => (cut - target) * onward >= 0 ? Math.abs(cut - target) : 1e6 + Math.abs(cut - target);
    this.move(handle, target, distance);
  }

  move(handle, target, distance) {
    if (handle < 0) return;
    const why = new Map(this.state.forbidden);
    const { cut, reason } = settle({ cuts: this.cuts, handle, layers: this.state.cells.length, target, why, distance });
    this.refused = reason ? handle : -1;
    this.say(reason);
    if (cut !== this.cuts[handle]) {
      this.cuts[handle] = cut;
      this.isDirty = true;
    }
    this.schedule();
  }

  pin(stage) {
    const pinned = this.model.get("pinned");
    const isPinned = pinned.includes(stage);
    const next = isPinned ? pinned.filter((other) => other !== stage) : [...pinned, stage].sort((a, b) => a - b);
    this.say(isPinned ? `Stage ${stage} is free again` : `Stage ${stage} is pinned: auto keeps its layers`);
    this.send("pinned", next);
  }

  // --- to the kernel and back -------------------------------------------------------------------------

  send(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
    this.schedule();
  }

  flush() {
    if (!this.isDirty) return;
    this.isDirty = false;
    this.send("cuts", [...this.cuts]);
  }

  watch() {
    const changed = () => {
      if (!this.isBusy()) this.adopt();
      this.schedule();
    };
    this.watched = ["state", "cuts", "pinned", "size_by"].map((name) => `change:${name}`);
    this.watched.forEach((event) => this.model.on(event, changed));
    this.changed = changed;
    this.resized = new ResizeObserver(() => this.schedule());
    this.resized.observe(this.body);
  }

  /** Tell whether the cuts on display are ahead of the model's. */
  isBusy() {
    return (this.drag !== null || this.isDirty) && isCuts(this.cuts, this.state);
  }

  adopt() {
    const state = this.state;
    if (!state.stages) return;
    const cuts = this.model.get("cuts");
    const next = isCuts(cuts, state) ? cuts : state.cuts;
    // With other stages there is nothing left to drag.
    if (next.length !== this.cuts?.length) this.drag = null;
    this.cuts = [...next];
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.flush();
      this.draw();
    });
  }

  close() {
    cancelAnimationFrame(this.frame);
    this.resized.disconnect();
    this.watched.forEach((event) => this.model.off(event, this.changed));
    this.root.remove();
  }

  // --- drawing ----------------------------------------------------------------------------------------

  say(words) {
    write(this.status, { text: words });
  }

  screenX(x) {
    return this.track.getBoundingClientRect().left + x;
  }

  draw() {
    const state = this.state;
    const width = this.body.clientWidth - GUTTER;
    if (!state.stages || width < 40) return;
    const sizeBy = this.model.get("size_by");
    const isDense = width / state.stages.length < ROOMY;
    this.placed = place(state, this.cuts, sizeBy, width);
    this.sizes.forEach((button) => write(button, { "aria-pressed": String(button.textContent === sizeBy) }));
    write(this.root, { class: `pgplan-ruler${isDense ? " pgplan-ruler-dense" : ""}` });
    write(this.strip, { "--pgplan-seam": this.placed.size < SEAMLESS ? "0" : "1px" });
    this.drawCells(state);
    this.drawTicks(state, width);
    this.drawLabels(state, width, isDense);
    this.drawHandles(state, width);
    this.drawLegend(state);
  }

  drawCells(state) {
    const { layers, beside } = this.placed;
    write(this.strip, { "aria-label": this.title(state) });
    const paint = (element, cell, words) => {
      const kind = state.kinds[cell.kind];
      write(element, {
        ...look(kind),
        left: `${cell.left}px`,
        width: `${cell.width}px`,
        title: `${words}: ${kind.words}`,
      });
    };
    this.layers(layers.length).forEach((element, index) =>
      paint(element, layers[index], `layer ${index}, ${state.kinds[layers[index].kind].label}`),
    );
    this.beside(beside.length).forEach((element, index) =>
      paint(element, beside[index], `${state.kinds[beside[index].kind].label} on stage ${beside[index].stage}`),
    );
  }

  title(state) {
    const split = this.counts(state).join(", ");
    return `${state.title}, layers per stage ${split}`;
  }

  counts(state) {
    const ends = [0, ...this.cuts, state.cells.length];
    return state.stages.map((_, stage) => ends[stage + 1] - ends[stage]);
  }

  drawTicks(state, width) {
    const { layers } = this.placed;
    const letters = String(layers.length).length;
    const step = TICKS.find((each) => (width / layers.length) * each > letters * LETTER + 10) ?? layers.length;
    const shown = [];
    for (let layer = 0; layer < layers.length; layer += step) {
      const x = layers[layer].left + layers[layer].width / 2;
      if (!shown.length || x - shown.at(-1).x > letters * LETTER + 4) shown.push({ layer, x });
    }
    this.ticks(shown.length).forEach((element, index) => {
      write(element, { text: String(shown[index].layer), left: `${shown[index].x}px` });
    });
    const linked = state.forbidden.filter(([cut]) => cut < layers.length && !this.cuts.includes(cut));
    this.links(linked.length).forEach((element, index) => {
      const [cut, why] = linked[index];
      write(element, { left: `${layers[cut].left}px`, title: `no cut before layer ${cut}: ${why}` });
    });
  }

  drawLabels(state, width, isDense) {
    const counts = this.counts(state);
    const pinned = this.model.get("pinned");
    const isOld = !same(state.cuts, this.cuts);
    const step = TICKS.find((each) => (width / counts.length) * each > 2 * LETTER + 4);
    this.labels(counts.length).forEach((element, stage) => {
      const span = this.placed.spans[stage];
      const room = span.width + this.placed.gap;
      const fits = (...texts) => texts.find((text) => text.length * LETTER <= room) ?? "";
      const { weights, time, gpu, bottleneck } = state.stages[stage];
      const isPinned = pinned.includes(stage);
      const marked = `${bottleneck ? "▶ " : ""}stage ${stage}`;
      const name = isDense
        ? String(stage % step ? "" : stage)
        : fits(isPinned ? `${marked}, pinned` : marked, marked, String(stage));
      const layers = plural(counts[stage], "layer");
      const figures = isDense ? "" : fits(`${weights} · ${time}`, weights);
      const start = stage ? this.cuts[stage - 1] : 0;
      write(element, {
        left: `${span.left}px`,
        width: `${span.width}px`,
        "aria-pressed": String(isPinned),
        "aria-label":
          `stage ${stage}: layers ${start} to ${start + counts[stage] - 1}, ` +
          (isOld ? "being planned" : `${weights} of weights per GPU, ${time} in ${state.phase}, on ${gpu}`),
        title: `stage ${stage} on ${gpu}: ${layers}, ${weights} of weights per GPU, ${time} in ${state.phase}; double click to pin`,
      });
      write(element.lines[0], { text: name });
      write(element.lines[1], { text: isDense ? fits(String(counts[stage])) : fits(layers, String(counts[stage])) });
      write(element.lines[2], { text: figures, class: `pgplan-ruler-line2${isOld ? " pgplan-ruler-old" : ""}` });
    });
  }

  drawHandles(state, width) {
    const { gaps, gap } = this.placed;
    const counts = this.counts(state);
    const pinned = this.model.get("pinned");
    this.handles(gaps.length).forEach((element, index) => {
      const cut = this.cuts[index];
      const [low, high] = limits(this.cuts, index, state.cells.length);
      const near = Math.min(gaps[index] - (gaps[index - 1] ?? 0), (gaps[index + 1] ?? width) - gaps[index]);
      const hit = Math.max(gap, Math.min(24, near));
      const has = (stage) => `stage ${stage} has ${plural(counts[stage], "layer")}${pinned.includes(stage) ? ", pinned" : ""}`;
      const isHeld = this.drag?.handle === index;
      write(element, {
        left: `${(gaps[index] - hit / 2).toFixed(2)}px`,
        width: `${hit.toFixed(2)}px`,
        "--pgplan-grip": `${Math.max(3, Math.min(6, gap)).toFixed(1)}px`,
        class: `pgplan-ruler-handle${isHeld ? " pgplan-ruler-held" : ""}${this.refused === index ? " pgplan-ruler-refused" : ""}`,
        "aria-label": `cut ${index + 1} of ${gaps.length}`,
        "aria-valuemin": String(low),
        "aria-valuemax": String(high),
        "aria-valuenow": String(cut),
        "aria-valuetext": `cut between layer ${cut - 1} and ${cut}: ${has(index)}, ${has(index + 1)}`,
      });
    });
  }

  drawLegend(state) {
    const kinds = state.kinds.filter(({ label }, index) => state.kinds.findIndex((kind) => kind.label === label) === index);
    this.entries(kinds.length).forEach((entry, index) => {
      write(entry.swatch, look(kinds[index]));
      write(entry.words, { text: kinds[index].label });
    });
  }
}

function look(kind) {
  return {
    "--pgplan-fill": kind.colour === "none" ? "transparent" : kind.colour,
    "data-hatch": kind.hatch,
    "data-moe": kind.moe ? "" : null,
  };
}

function render({ model, el }) {
  const view = new RulerView(model, el);
  return () => view.close();
}

export default { render };
