// The ruler on the page: elements are made once, reused and written to only where something differs.

const HINT = "Drag a cut, or focus it and press ← →; double click or P pins a stage";
const TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
// Pixels: the column of row titles, a letter, a cell too small for a seam, a stage with room for words, and
// the widest target of a handle.
const GUTTER = 46;
const LETTER = 6.4;
const SEAMLESS = 4;
const ROOMY = 58;
const TARGET = 24;

function make(tag, name, parent, attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

/** Write text, styles and attributes, but only those that differ from the last time. */
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

/** Return a function that keeps as many elements as it is asked for, so that nothing accumulates. */
function pool(create) {
  const elements = [];
  return (count) => {
    while (elements.length < count) elements.push(create(elements.length));
    while (elements.length > count) elements.pop().remove();
    return elements;
  };
}

function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Return how a cell of a kind looks; the textures themselves are in the style sheet. */
function look({ colour, hatch, moe }) {
  return {
    "--pgplan-fill": colour === "none" ? "transparent" : colour,
    "data-hatch": hatch,
    "data-bare": colour === "none" ? "" : null,
    "data-moe": moe ? "" : null,
  };
}

class Drawing {
  /** Make the page's part; `onHandle(element, index)` is called for every handle that is made. */
  constructor(el, { onSize, onPin, onHandle }) {
    // JupyterLab's own shortcuts must not take the arrows and letters that handles answer to.
    this.root = make("div", "pgplan-ruler-root", el, { "data-lm-suppress-shortcuts": "true" });
    this.makeHead(onSize);
    this.body = make("div", "pgplan-ruler-body", this.root);
    ["layer", "stage", "layers"].forEach((word, row) => {
      const name = `pgplan-ruler-gutter pgplan-ruler-row${row}`;
      make("span", name, this.body, { "aria-hidden": "true" }).textContent = word;
    });
    this.track = make("div", "pgplan-ruler-track", this.body);
    this.strip = make("div", "pgplan-ruler-strip", this.track, { role: "img" });
    this.ticks = pool(() => make("span", "pgplan-ruler-tick", this.track, { "aria-hidden": "true" }));
    this.links = pool(() => make("div", "pgplan-ruler-link", this.track));
    this.stages = pool((stage) => this.makeStage(stage, onPin, onHandle));
    this.track.addEventListener("dblclick", (event) => {
      onPin(this.placed.gaps.filter((gap) => gap < this.xOf(event)).length);
    });
    this.legend = make("div", "pgplan-ruler-legend", this.root, { "aria-hidden": "true" });
    this.entries = pool(() => {
      const entry = make("span", "pgplan-ruler-entry", this.legend);
      entry.swatch = make("span", "pgplan-ruler-cell pgplan-ruler-swatch", entry);
      entry.words = make("span", "", entry);
      return entry;
    });
  }

  makeHead(onSize) {
    const head = make("div", "pgplan-ruler-head", this.root);
    this.status = make("span", "pgplan-ruler-status", head, { role: "status", "aria-live": "polite" });
    make("span", "pgplan-ruler-hint", head).textContent = HINT;
    const sizes = make("span", "pgplan-ruler-sizes", head, { role: "group", "aria-label": "cells sized by" });
    make("span", "pgplan-ruler-hint", sizes, { "aria-hidden": "true" }).textContent = "sized by";
    this.sizes = ["weight", "time"].map((by) => {
      const button = make("button", "pgplan-ruler-size", sizes, { type: "button" });
      button.textContent = by;
      button.addEventListener("click", () => onSize(by));
      return button;
    });
  }

  /** Make a stage: one element, so that to move it is to move all that is in it. */
  makeStage(stage, onPin, onHandle) {
    const element = make("div", "pgplan-ruler-stage", this.track);
    const cells = make("div", "pgplan-ruler-cells", element, { "aria-hidden": "true" });
    element.cells = pool(() => make("div", "pgplan-ruler-cell", cells));
    element.label = this.makeLabel(element, () => onPin(stage));
    element.handle = stage ? this.makeHandle(element, stage - 1, onHandle) : null;
    return element;
  }

  makeLabel(parent, onPress) {
    const label = make("div", "pgplan-ruler-label", parent, { role: "button", tabindex: "-1" });
    label.lines = [0, 1, 2].map((line) => make("span", `pgplan-ruler-line${line}`, label));
    // A screen reader's press has no clicks to count; a mouse needs two.
    label.addEventListener("click", (event) => event.detail === 0 && onPress());
    return label;
  }

  /** Make the handle between a stage and the one before it. */
  makeHandle(parent, index, onHandle) {
    const handle = make("div", "pgplan-ruler-handle", parent, {
      role: "slider",
      tabindex: "0",
      "aria-orientation": "horizontal",
      "aria-keyshortcuts": "Escape P Shift+P",
    });
    make("div", "pgplan-ruler-grip", handle);
    handle.addEventListener("dblclick", (event) => event.stopPropagation());
    onHandle(handle, index);
    return handle;
  }

  /** Return where on the track an event is. */
  xOf(event) {
    return event.clientX - this.track.getBoundingClientRect().left;
  }

  /** Take in how wide there is to draw; to ask the page amid a frame would have it laid out twice. */
  fit(width) {
    this.bodyWidth = Math.round(width);
  }

  say(words) {
    write(this.status, { text: words });
  }

  /**
   * Draw `state` with `cuts`, which may be ahead of it.
   *
   * `held` and `refused` are handles: the one that is dragged, and one that could not go where it should.
   */
  draw({ state, cuts, pinned, sizeBy, held, refused }) {
    const width = (this.bodyWidth ?? this.body.clientWidth) - GUTTER;
    // Hidden, as in a tab that is not open.
    if (width < GUTTER) return;
    const shown = { state, cuts, pinned, width, counts: countsOf(state, cuts), held, refused };
    shown.isDense = width / state.stages.length < ROOMY;
    this.placed = place(state, cuts, sizeBy, width);
    this.sizes.forEach((button) => write(button, { "aria-pressed": `${button.textContent === sizeBy}` }));
    write(this.root, { class: `pgplan-ruler-root${shown.isDense ? " pgplan-ruler-dense" : ""}` });
    this.drawStrip(shown);
    this.drawTicks(shown);
    this.drawStages(shown);
    this.drawLegend(shown);
  }

  drawStrip({ state, counts }) {
    write(this.strip, { "aria-label": `${state.title}, layers per stage ${counts.join(", ")}` });
    write(this.track, { "--pgplan-seam": this.placed.size < SEAMLESS ? "0" : "1px" });
  }

  drawTicks({ state, cuts, width }) {
    const { layers } = this.placed;
    const room = String(layers.length).length * LETTER + 5;
    const step = TICKS.find((each) => (width / layers.length) * each > room + 5) ?? layers.length;
    const shown = [];
    for (let layer = 0; layer < layers.length; layer += step) {
      const x = layers[layer].left + layers[layer].width / 2;
      // Small layers stand closer than others.
      if (!shown.length || x - shown.at(-1).x > room) shown.push({ layer, x });
    }
    this.ticks(shown.length).forEach((element, index) => {
      write(element, { text: String(shown[index].layer), left: `${shown[index].x}px` });
    });
    const linked = state.forbidden.filter(([cut]) => !cuts.includes(cut));
    this.links(linked.length).forEach((element, index) => {
      const [cut, why] = linked[index];
      write(element, { left: `${layers[cut].left}px`, title: `no cut before layer ${cut}: ${why}` });
    });
  }

  drawStages(shown) {
    const { state, cuts, counts, width } = shown;
    shown.isOld = cuts.some((cut, index) => cut !== state.cuts[index]);
    // Every how many stages there is room for a number.
    shown.step = TICKS.find((each) => (width / counts.length) * each > 2 * LETTER + 4);
    this.stages(counts.length).forEach((element, stage) => {
      const { left, width: wide, cells } = this.placed.stages[stage];
      write(element, { left: `${left}px`, width: `${wide}px` });
      this.drawCells(element.cells(cells.length), cells, stage, shown);
      this.drawLabel(element.label, stage, shown);
      if (element.handle) this.drawHandle(element.handle, stage - 1, shown);
    });
  }

  drawCells(elements, cells, stage, { state }) {
    elements.forEach((element, index) => {
      const { kind, layer, width } = cells[index];
      const { label, words } = state.kinds[kind];
      const name = layer === null ? `${label} on stage ${stage}` : `layer ${layer}, ${label}`;
      write(element, { width: `${width}px`, title: `${name}: ${words}` });
      // A cut moves cells; how they look is the same as long as the frame is.
      if (element.kind !== state.kinds[kind]) write(element, look(state.kinds[kind]));
      element.kind = state.kinds[kind];
    });
  }

  drawLabel(element, stage, { state, cuts, pinned, counts, isDense, isOld, step }) {
    const room = (this.placed.stages[stage].width + this.placed.gap) / LETTER;
    const fits = (...texts) => texts.find((text) => text.length <= room) ?? "";
    const [weights, time] = [`${state.weights[stage]} GiB`, `${state.times[stage]} ms`];
    const isPinned = pinned.includes(stage);
    const name = `${stage === state.bottleneck ? "▶ " : ""}stage ${stage}`;
    const layers = plural(counts[stage], "layer");
    const start = cuts[stage - 1] ?? 0;
    const figures = `${weights} of weights per GPU, ${time} in ${state.phase}, on ${state.stages[stage].gpu}`;
    write(element, {
      title: `stage ${stage}: ${layers}; ${figures}. Double click to ${isPinned ? "free" : "pin"} it`,
      "aria-pressed": String(isPinned),
      "aria-label":
        `stage ${stage}: layers ${start} to ${start + counts[stage] - 1}, ` +
        (isOld ? "being planned" : figures),
    });
    const texts = isDense
      ? [stage % step ? "" : String(stage), fits(String(counts[stage])), ""]
      : [
          fits(isPinned ? `${name}, pinned` : name, name, String(stage)),
          fits(layers, String(counts[stage])),
          fits(`${weights} · ${time}`, weights),
        ];
    element.lines.forEach((line, index) => write(line, { text: texts[index] }));
    write(element.lines[2], { class: `pgplan-ruler-line2${isOld ? " pgplan-ruler-old" : ""}` });
  }

  drawHandle(element, index, { state, cuts, pinned, counts, width, held, refused }) {
    const { gaps, gap } = this.placed;
    const has = (stage) =>
      `stage ${stage} has ${plural(counts[stage], "layer")}${pinned.includes(stage) ? ", pinned" : ""}`;
    const [low, high] = limits(cuts, index, state.cells.length);
    const near = Math.min(gaps[index] - (gaps[index - 1] ?? 0), (gaps[index + 1] ?? width) - gaps[index]);
    const target = Math.max(gap, Math.min(TARGET, Math.floor(near)));
    const mark = index === refused ? " pgplan-ruler-refused" : index === held ? " pgplan-ruler-held" : "";
    write(element, {
      // From the edge of the stage behind it.
      left: `${(-(gap + target) / 2).toFixed(1)}px`,
      width: `${target.toFixed(1)}px`,
      class: `pgplan-ruler-handle${mark}`,
      "--pgplan-grip": `${Math.min(6, gap).toFixed(1)}px`,
      "aria-label": `cut ${index + 1} of ${gaps.length}`,
      "aria-valuemin": String(low),
      "aria-valuemax": String(high),
      "aria-valuenow": String(cuts[index]),
      "aria-valuetext":
        `cut between layer ${cuts[index] - 1} and ${cuts[index]}: ${has(index)}, ${has(index + 1)}`,
    });
  }

  drawLegend({ state }) {
    const kinds = [...new Map(state.kinds.map((kind) => [kind.label, kind])).values()];
    this.entries(kinds.length).forEach((entry, index) => {
      write(entry.swatch, look(kinds[index]));
      write(entry.words, { text: kinds[index].label });
    });
  }
}
