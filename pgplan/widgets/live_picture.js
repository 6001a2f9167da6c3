// The picture: an SVG in pieces, drawn anew only where it differs.
//
// `pieces` is all of it, the opening tag first, then one element each; `changes` are the pieces that are
// different by now, and `count` how many there are. `hovers` lies over them and tells a stage's figures under
// the pointer.

const FORGET_AFTER_MS = 50;
// The SVG's height is a multiple of so many of its pixels.
const HEIGHT_STEP = 256;

/** Return the elements that pieces of SVG describe. */
function parse(pieces) {
  const holder = document.createElement("template");
  holder.innerHTML = `<svg xmlns="http://www.w3.org/2000/svg">${pieces.join("")}</svg>`;
  return [...holder.content.firstChild.children];
}

/** Make `old` equal to `fresh`, touching as little as can be: what stays need not be laid out again. */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    old.data = fresh.data;
  } else if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    old.replaceWith(fresh);
  } else {
    dress(old, fresh);
    const children = [...fresh.childNodes];
    [...old.childNodes].forEach((child, index) => morph(child, children[index]));
  }
}

/** Give an element the attributes of another one. */
function dress(old, fresh) {
  for (const name of old.getAttributeNames()) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "xmlns" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

class LivePicture {
  constructor(model, el) {
    this.model = model;
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.strips = document.createElementNS("http://www.w3.org/2000/svg", "g");
    this.svg.append(this.strips);
    this.frame = document.createElement("div");
    this.frame.style.cssText = "min-height: 0; overflow: clip";
    this.frame.append(this.svg);
    el.append(this.frame);
    // What is on the page.
    this.tag = "";
    this.height = 0;
    this.shown = [];
    this.told = "";
    // One message changes several attributes.
    this.changed = () => (this.due ??= Promise.resolve().then(() => this.draw()));
    this.events = ["pieces", "changes", "count", "hovers"].map((name) => `change:${name}`);
    this.events.forEach((event) => model.on(event, this.changed));
    this.draw();
  }

  draw() {
    this.due = null;
    const all = this.model.get("pieces").slice(0, this.model.get("count"));
    for (const [index, piece] of Object.entries(this.model.get("changes"))) all[index] = piece;
    const [tag, ...pieces] = all;
    if (!tag) return;
    if (tag !== this.tag) this.open(tag);
    this.patch(pieces);
    clearTimeout(this.timer);
    const hovers = this.model.get("hovers");
    if (hovers) this.tell(hovers);
    // A tooltip comes half a second after the pointer; to take an old one away need not delay the frame.
    else this.timer = setTimeout(() => this.tell(""), FORGET_AFTER_MS);
  }

  /**
   * Give the SVG its opening tag. In an SVG whose height changes all text is laid out again, so it stays as
   * high as it ever was, in a frame that shows what there is to see.
   */
  open(tag) {
    this.tag = tag;
    const [fresh] = parse([`${tag}</svg>`]);
    const [width, height] = ["width", "height"].map((name) => Number(fresh.getAttribute(name)));
    this.height = Math.max(this.height, Math.ceil(height / HEIGHT_STEP) * HEIGHT_STEP);
    fresh.setAttribute("height", this.height);
    fresh.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    dress(this.svg, fresh);
    this.frame.style.aspectRatio = `${width} / ${height}`;
  }

  /** Draw the pieces that differ from those on the page. */
  patch(pieces) {
    const { shown, svg, strips } = this;
    shown.splice(pieces.length).forEach(() => strips.previousSibling.remove());
    const differing = [...pieces.keys()].filter((index) => pieces[index] !== shown[index]);
    const elements = parse(differing.map((index) => pieces[index]));
    const drawn = [...svg.children];
    differing.forEach((index, at) => {
      if (index < shown.length) morph(drawn[index], elements[at]);
      else strips.before(elements[at]);
      shown[index] = pieces[index];
    });
  }

  /** Lay over the pieces what they tell under the pointer. */
  tell(hovers) {
    if (hovers === this.told) return;
    this.told = hovers;
    const [strips] = parse([hovers || "<g/>"]);
    this.strips.replaceWith(strips);
    this.strips = strips;
  }

  close() {
    clearTimeout(this.timer);
    this.events.forEach((event) => this.model.off(event, this.changed));
    this.frame.remove();
  }
}

export default {
  initialize({ model }) {
    model.set("is_running", true);
    model.save_changes();
  },
  render({ model, el }) {
    const picture = new LivePicture(model, el);
    return () => picture.close();
  },
};
