// Lays out graphs that chance has made, and gives back whatever is wrong with them. Run in the page.

const { layout } = await import("/page/layout.js");

let state = 7;
const below = (bound) => {
  state = (state * 1103515245 + 12345) % 2147483648;
  return Math.floor((state / 2147483648) * bound);
};

/** Stages, and edges from earlier to later ones; now and then two edges between the same. */
function graph() {
  const stages = Array.from({ length: 1 + below(24) }, (_, index) => `stage-${index}`);
  const edges = [];
  for (let to = 1; to < stages.length; to += 1) {
    for (let count = below(4); count > 0; count -= 1) {
      edges.push({ from: stages[below(to)], to: stages[to], port: below(3) === 0 ? "rejected" : "" });
    }
  }
  return { stages, edges };
}

const SHAPES = {
  wide: { along: 166, across: 66, gapAlong: 92, gapAcross: 24, perLayer: Infinity, isDirect: () => false },
  narrow: { along: 68, across: 158, gapAlong: 54, gapAcross: 10, perLayer: 2, isDirect: (edge) => edge.port !== "" },
};

const faults = [];
for (let round = 0; round < 300; round += 1) {
  const { stages, edges } = graph();
  for (const [shape, size] of Object.entries(SHAPES)) {
    const fault = (text) => faults.push(`${shape} graph ${round}: ${text}`);
    const found = layout(stages, edges, size);
    const at = (name) => found.places.get(name);
    for (const name of stages) {
      const { along, across } = at(name);
      const isInside = along >= size.along / 2 && along <= found.along - size.along / 2 && across >= size.across / 2 - 0.01 && across <= found.across - size.across / 2 + 0.01;
      if (!isInside) fault(`${name} is outside`);
    }
    for (const edge of edges) {
      if (!(at(edge.from).along < at(edge.to).along)) fault(`${edge.to} does not come after ${edge.from}`);
    }
    for (const one of stages) {
      for (const other of stages) {
        const isNear = one < other && at(one).along === at(other).along && Math.abs(at(one).across - at(other).across) < size.across + size.gapAcross - 0.01;
        if (isNear) fault(`${one} lies on ${other}`);
      }
      const beside = stages.filter((other) => at(other).along === at(one).along).length;
      if (beside > size.perLayer) fault(`${beside} stages side by side`);
    }
    if (found.routes.length !== edges.length) fault("an edge is missing");
    for (const { edge, points } of found.routes) {
      const ends = [points[0].across === at(edge.from).across, points.at(-1).across === at(edge.to).across];
      if (!ends.every(Boolean)) fault(`the way from ${edge.from} to ${edge.to} ends elsewhere`);
    }
    if (JSON.stringify(layout(stages, edges, size).routes) !== JSON.stringify(found.routes)) fault("another time it is another");
  }
}
return faults;
