// The picture: an SVG in pieces, drawn anew only where it differs.
//
// `pieces` is all of it, the opening tag first, then one element each; `changes` are the pieces that are
// different by now.

const HOVERS_AFTER_MS = 50;

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

/** Tell whether a piece holds the strips that tell a stage's figures under the pointer. */
function isHover(piece) {
  return piece.startsWith('<g fill="transparent">');
}

class LivePicture {
  constructor(model, el) {
    this.model = model;
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    el.append(this.svg);
    // Pieces to draw and those that are drawn, both without the opening tag.
    this.pieces = [];
    this.shown = [];
    this.changed = () => this.draw();
    this.events = ["change:pieces", "change:changes"];
    this.events.forEach((event) => model.on(event, this.changed));
    this.draw();
  }

  draw() {
    const all = [...this.model.get("pieces")];
    for (const [index, piece] of Object.entries(this.model.get("changes"))) all[index] = piece;
    const [tag, ...pieces] = all;
    if (!tag) return;
    if (tag !== this.tag) dress(this.svg, parse([`${tag}</svg>`])[0]);
    this.tag = tag;
    this.pieces = pieces;
    this.shown.splice(pieces.length).forEach(() => this.svg.lastChild.remove());
    this.patch((piece) => !isHover(piece));
    // A tooltip comes half a second after the pointer; it need not delay the frame.
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.patch(isHover), HOVERS_AFTER_MS);
  }

  /** Draw the pieces that differ from what is shown, of those on the page already only such as `isMeant`. */
  patch(isMeant) {
    const { pieces, shown, svg } = this;
    const differing = [...pieces.keys()].filter(
      (index) => pieces[index] !== shown[index] && (index >= shown.length || isMeant(pieces[index])),
    );
    const elements = parse(differing.map((index) => pieces[index]));
    const drawn = [...svg.children];
    differing.forEach((index, at) => {
      if (index < drawn.length) morph(drawn[index], elements[at]);
      else svg.append(elements[at]);
      shown[index] = pieces[index];
    });
  }

  close() {
    clearTimeout(this.timer);
    this.events.forEach((event) => this.model.off(event, this.changed));
    this.svg.remove();
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
