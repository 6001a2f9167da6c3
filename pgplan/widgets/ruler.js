// The ruler's behaviour: pointer, keys, and the kernel.
//
// The first move of a frame is sent at once, all others with the frame; ipywidgets keeps one message in flight
// and the latest value waiting. `cuts` is the truth of what is on display: `figures` of older cuts change no handles.

const STEP = 5;

class Ruler {
  constructor(model, el) {
    this.model = model;
    // The layers, and what the stages amount to: `frame` and `figures` of the kernel.
    this.state = {};
    this.cuts = [];
    this.frame = 0;
    this.isDirty = false;
    // What is dragged: its handle, the pointer, where on the handle it was taken, and what ends listening.
    this.drag = null;
    // Where Escape takes the focused handle back to.
    this.origin = 0;
    this.refused = -1;
    this.isTold = false;
    // Counts drags and key presses: each is one change to be taken back.
    this.gesture = 0;
    this.drawing = new Drawing(el, {
      onSize: (by) => this.send("size_by", by),
      onPin: (stage) => this.pin(stage),
      onHandle: (element, index) => this.listen(element, index),
    });
    this.watch();
  }

  // --- what the user does -----------------------------------------------------------------------------

  listen(element, handle) {
    element.addEventListener("focus", () => (this.origin = this.cuts[handle]));
    element.addEventListener("keydown", (event) => this.press(event, handle));
    element.addEventListener("pointerdown", (event) => this.grab(event, handle, element));
  }

  grab(event, handle, element) {
    if (event.button !== 0 || this.drag) return;
    event.preventDefault();
    element.focus({ preventScroll: true });
    // Keeps the pointer beyond the window's edge; not every browser grants it every time, so what follows
    // is listened for at the window.
    element.setPointerCapture(event.pointerId);
    this.origin = this.cuts[handle];
    this.begin();
    const offset = this.drawing.xOf(event) - this.drawing.placed.gaps[handle];
    const listening = new AbortController();
    this.drag = { handle, pointer: event.pointerId, offset, listening };
    const { signal } = listening;
    // The one comes with the frames, the other as soon as the pointer moves, where the browser has it.
    for (const move of ["pointermove", "pointerrawupdate"]) {
      window.addEventListener(move, (moved) => this.pull(moved), { signal });
    }
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      window.addEventListener(end, (ended) => this.release(ended), { signal });
    }
    this.schedule();
  }

  /** Let what follows be a change of its own. */
  begin() {
    this.gesture = Math.max(this.gesture, this.model.get("gesture")) + 1;
  }

  pull(event) {
    if (event.pointerId !== this.drag.pointer) return;
    const { handle, offset } = this.drag;
    const x = this.drawing.xOf(event) - offset;
    const distance = (cut) => Math.abs(this.drawing.placed.gapOf(handle, cut) - x);
    let target = 0;
    for (let cut = 1; cut <= this.state.cells.length; cut++) {
      if (distance(cut) < distance(target)) target = cut;
    }
    this.move(handle, target, distance);
  }

  release(event) {
    if (event.pointerId !== this.drag.pointer) return;
    this.drop();
    this.refused = -1;
    this.flush();
    this.adopt();
    this.schedule();
  }

  drop() {
    this.drag?.listening.abort();
    this.drag = null;
  }

  press(event, handle) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (!event.repeat) this.begin();
    const now = this.cuts[handle];
    const [low, high] = limits(this.cuts, handle, this.state.cells.length);
    const step = event.shiftKey ? STEP : 1;
    const target = {
      ArrowLeft: now - step,
      ArrowDown: now - step,
      ArrowRight: now + step,
      ArrowUp: now + step,
      PageDown: now - STEP,
      PageUp: now + STEP,
      Home: low,
      End: high,
      Escape: this.origin,
    }[event.key];
    if (event.key === "Enter") this.origin = now;
    else if (event.key.toLowerCase() === "p") this.pin(handle + (event.shiftKey ? 1 : 0));
    else if (target === undefined) return;
    else this.step(handle, target, { inward: event.key === "Home" || event.key === "End" });
    if (event.key === "Escape") this.drop();
    event.preventDefault();
    event.stopPropagation();
  }

  /** Move to `target`; where it is forbidden, beyond it (or before it: `inward`), else as near as can be. */
  step(handle, target, { inward }) {
    const onward = Math.sign(target - this.cuts[handle]) * (inward ? -1 : 1);
    const detour = this.state.cells.length;
    const distance = (cut) => Math.abs(cut - target) + ((cut - target) * onward < 0 ? detour : 0);
    this.move(handle, target, distance);
  }

  move(handle, target, distance) {
    const layers = this.state.cells.length;
    const why = new Map(this.state.forbidden);
    const { cut, reason } = settle({ cuts: this.cuts, handle, layers, target, why, distance });
    this.refused = reason ? handle : -1;
    this.drawing.say(reason);
    this.isTold = Boolean(reason);
    if (cut !== this.cuts[handle]) {
      this.cuts[handle] = cut;
      this.isDirty = true;
      if (!this.frame) this.flush();
    }
    this.schedule();
  }

  pin(stage) {
    const pinned = this.model.get("pinned");
    const isPinned = pinned.includes(stage);
    const others = pinned.filter((other) => other !== stage);
    this.drawing.say(`Stage ${stage} ${isPinned ? "is free again" : "is pinned: auto keeps its layers"}`);
    this.send("pinned", isPinned ? others : [...others, stage].sort((a, b) => a - b));
  }

  // --- to the kernel and back -------------------------------------------------------------------------

  watch() {
    this.changed = () => (this.due ??= Promise.resolve().then(() => this.receive()));
    this.events = ["frame", "figures", "cuts", "pinned", "size_by"].map((name) => `change:${name}`);
    this.events.forEach((event) => this.model.on(event, this.changed));
    this.resized = new ResizeObserver(([{ contentRect }]) => {
      this.drawing.fit(contentRect.width);
      this.schedule();
    });
    this.resized.observe(this.drawing.body);
    this.changed();
  }

  /**
   * Take in what the kernel says, once for all that a message changes, and draw it at once: the picture, which
   * the kernel sends with it, is laid out in the same go.
   */
  receive() {
    this.due = null;
    const before = this.state.cells;
    this.state = { ...this.model.get("frame"), ...this.model.get("figures") };
    // What was refused to another model, or with other cuts, need not be now.
    if (this.state.cells !== before) this.forget();
    if (!this.isAhead()) this.adopt();
    this.draw();
  }

  /** Tell whether the cuts on display are newer than the model's. */
  isAhead() {
    return (this.drag !== null || this.isDirty) && isCuts(this.cuts, this.state);
  }

  adopt() {
    const { state } = this;
    if (!state.stages) return;
    const cuts = this.model.get("cuts");
    const next = isCuts(cuts, state) ? cuts : state.cuts;
    // With other stages there is nothing left to drag, or to send.
    if (next.length !== this.cuts.length) {
      this.drop();
      this.isDirty = false;
    }
    if (String(next) !== String(this.cuts)) this.forget();
    this.cuts = [...next];
  }

  /** Take back what was said about a refusal. */
  forget() {
    if (this.isTold) this.drawing.say("");
    this.isTold = false;
    this.refused = -1;
  }

  send(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
    this.schedule();
  }

  flush() {
    if (!this.isDirty) return;
    this.isDirty = false;
    this.model.set("gesture", this.gesture);
    this.send("cuts", [...this.cuts]);
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.flush();
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const { model, state, cuts, refused } = this;
    if (!state.stages) return;
    const [pinned, sizeBy] = [model.get("pinned"), model.get("size_by")];
    this.drawing.draw({ state, cuts, pinned, sizeBy, held: this.drag?.handle, refused });
  }

  close() {
    this.drop();
    cancelAnimationFrame(this.frame);
    this.resized.disconnect();
    this.events.forEach((event) => this.model.off(event, this.changed));
    this.drawing.root.remove();
  }
}

export default {
  initialize({ model }) {
    model.set("display", "");
    model.save_changes();
  },
  render({ model, el }) {
    const ruler = new Ruler(model, el);
    return () => ruler.close();
  },
};
