// Where everything on the ruler is, and where a handle may go: functions of plain data.

// Pixels: what a cell is wide at least, and the gap between two stages.
const THINNEST = 2;
const GAP = { least: 3, most: 8 };

/** Return where a handle may go: first and last cut that leave its neighbours a layer each. */
function limits(cuts, handle, layers) {
  return [(cuts[handle - 1] ?? 0) + 1, (cuts[handle + 1] ?? layers) - 1];
}

/**
 * Return the allowed cut nearest to what was meant, and why it is not `target` itself.
 *
 * `distance(cut)` says how far a cut is from what was meant; `why` maps forbidden cuts to reasons. Where
 * nothing is allowed the handle stays.
 */
function settle({ cuts, handle, layers, target, why, distance }) {
  const [low, high] = limits(cuts, handle, layers);
  let best = cuts[handle];
  let least = why.has(best) ? Infinity : distance(best);
  for (let cut = low; cut <= high; cut++) {
    if (!why.has(cut) && distance(cut) < least) [best, least] = [cut, distance(cut)];
  }
  let reason = "";
  if (why.has(target)) reason = `No cut before layer ${target}: ${why.get(target)}`;
  else if (target < low) reason = `Stage ${handle} keeps at least one layer`;
  else if (target > high) reason = `Stage ${handle + 1} keeps at least one layer`;
  return { cut: best, reason };
}

/** Tell whether `cuts` part the layers of `state` into as many stages as it has. */
function isCuts(cuts, state) {
  const ends = [0, ...cuts, state.cells.length];
  const rise = ends.every((end, index) => !index || end > ends[index - 1]);
  return rise && ends.length === state.stages.length + 1;
}

/** Return how many layers each stage has. */
function countsOf(state, cuts) {
  const ends = [0, ...cuts, state.cells.length];
  return state.stages.map((_, stage) => ends[stage + 1] - ends[stage]);
}

/**
 * Return where everything is on `width` pixels: the box of each stage, those of its cells in it, those of all
 * layers, the middles of the gaps between stages, and where that of a handle would be for any other cut.
 */
function place(state, cuts, sizeBy, width) {
  const { cells, stages, kinds } = state;
  const gap = Math.max(GAP.least, Math.min(GAP.most, width / stages.length / 6));
  const room = width - gap * (stages.length - 1);
  const count = stages.reduce((sum, { before, after }) => sum + before.length + after.length, cells.length);
  // What is thin must still be seen, e.g. an embedding's time: every cell has as much, the rest is shared.
  const least = Math.min(THINNEST, room / count / 2);
  const sizes = kinds.map((kind) => least + (room - least * count) * kind[sizeBy]);
  const sums = [0];
  cells.forEach((kind, layer) => sums.push(sums[layer] + sizes[kind]));

  const placed = { stages: [], layers: [], gaps: [], gap, size: room / count };
  // Cells keep their size whatever the cuts are: a gap is as far right as the layers before it (`sums`) and
  // what else stands there (`offsets`).
  const offsets = [];
  let offset = 0;
  stages.forEach(({ before, after }, stage) => {
    const [start, stop] = [cuts[stage - 1] ?? 0, cuts[stage] ?? cells.length];
    const left = sums[start] + offset;
    // Whole pixels, so that seams are equally wide, and from the stage's own edge, so that one that is only
    // moved stays as it is inside.
    const box = { left: Math.round(left), width: 0, cells: [] };
    let right = 0;
    const add = (kind, layer) => {
      const from = Math.round(right);
      right += sizes[kind];
      box.cells.push({ kind, layer, left: from, width: Math.round(right) - from });
    };
    before.forEach((kind) => add(kind, null));
    for (let layer = start; layer < stop; layer++) add(cells[layer], layer);
    after.forEach((kind) => add(kind, null));
    const last = box.cells.at(-1);
    box.width = Math.round(left + right) - box.left;
    last.width = Math.max(1, box.width - last.left);
    for (const cell of box.cells) {
      if (cell.layer !== null) placed.layers.push({ left: box.left + cell.left, width: cell.width });
    }
    placed.stages.push(box);
    offset += [...before, ...after].reduce((sum, kind) => sum + sizes[kind], 0);
    offsets.push(offset + gap / 2);
    offset += gap;
  });
  placed.gapOf = (handle, cut) => sums[cut] + offsets[handle];
  placed.gaps = cuts.map((cut, handle) => placed.gapOf(handle, cut));
  return placed;
}
