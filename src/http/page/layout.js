// Where the stages of the graph stand: in layers, each stage behind all it reads, with as few crossings as a few sweeps
// find (Sugiyama's method). Coordinates are "along" the flow and "across" it; the caller turns them into x and y.

const SWEEPS = 12;
const SMOOTHINGS = 16;
/** Where a long edge passes a layer. */
const PASSAGE = 14;

/**
 * @param stages names, each after those it reads
 * @param edges `{from, to}` by name
 * @param size `{along, across, gapAlong, gapAcross, perLayer, isDirect}` of a stage, between two, how many fit side by side,
 *   and whether an edge goes straight over the layers between
 * @returns `{places: Map name -> {along, across}, routes: [{edge, points}], along, across}`; places are centres
 */
export function layout(stages, edges, size) {
  const layerOf = layers(stages, edges, size.perLayer);
  const { rows, chains } = withPassages(stages, edges, layerOf, size.isDirect);
  order(rows, chains);
  const across = spread(rows, chains, size);
  const step = size.along + size.gapAlong;
  const centre = (node) => ({ along: node.layer * step + size.along / 2, across: across.get(node) });
  const places = new Map();
  let width = 0;
  for (const row of rows) {
    for (const node of row) {
      width = Math.max(width, across.get(node) + extent(node, size) / 2);
      if (node.name !== null) places.set(node.name, centre(node));
    }
  }
  const routes = chains.map(({ edge, nodes }) => ({ edge, points: nodes.map(centre) }));
  return { places, routes, along: rows.length * step - size.gapAlong, across: width };
}

/** The layer of each stage: behind all it reads, and no layer with more than fit. */
function layers(stages, edges, perLayer) {
  const layerOf = new Map(stages.map((name) => [name, 0]));
  const filled = [];
  for (const name of sorted(stages, edges)) {
    let layer = 0;
    for (const edge of edges) {
      if (edge.to === name) layer = Math.max(layer, layerOf.get(edge.from) + 1);
    }
    while ((filled[layer] ?? 0) >= perLayer) layer += 1;
    filled[layer] = (filled[layer] ?? 0) + 1;
    layerOf.set(name, layer);
  }
  return layerOf;
}

/** Stages after those they read; the graph has no cycles. */
function sorted(stages, edges) {
  const done = new Set();
  const result = [];
  while (result.length < stages.length) {
    const before = result.length;
    for (const name of stages) {
      if (!done.has(name) && edges.every((edge) => edge.to !== name || done.has(edge.from))) {
        done.add(name);
        result.push(name);
      }
    }
    if (result.length === before) return [...result, ...stages.filter((name) => !done.has(name))];
  }
  return result;
}

/** Rows of nodes, with a passage wherever an edge crosses a layer, and for each edge the nodes on its way. */
function withPassages(stages, edges, layerOf, isDirect) {
  const nodes = new Map(stages.map((name) => [name, { name, layer: layerOf.get(name), before: [], after: [] }]));
  const rows = [];
  const put = (node) => {
    (rows[node.layer] ??= []).push(node);
    return node;
  };
  stages.forEach((name) => put(nodes.get(name)));
  for (let layer = 0; layer < rows.length; layer += 1) rows[layer] ??= [];
  const chains = edges.map((edge) => {
    const [from, to] = [nodes.get(edge.from), nodes.get(edge.to)];
    const way = [from];
    for (let layer = from.layer + 1; layer < to.layer && !isDirect(edge); layer += 1) {
      way.push(put({ name: null, layer, before: [], after: [] }));
    }
    way.push(to);
    for (let place = 1; place < way.length && !isDirect(edge); place += 1) {
      way[place - 1].after.push(way[place]);
      way[place].before.push(way[place - 1]);
    }
    return { edge, nodes: way };
  });
  return { rows, chains };
}

/** Puts the nodes of each row beside those they are joined to; keeps the order with the fewest crossings. */
function order(rows, chains) {
  let best = rows.map((row) => [...row]);
  let fewest = crossings(rows, chains);
  for (let sweep = 0; sweep < SWEEPS && fewest > 0; sweep += 1) {
    const forward = sweep % 2 === 0;
    for (let step = 1; step < rows.length; step += 1) {
      const row = rows[forward ? step : rows.length - 1 - step];
      const beside = rows[forward ? step - 1 : rows.length - step];
      const place = new Map(beside.map((node, index) => [node, index]));
      const wish = new Map(
        row.map((node, index) => {
          const joined = (forward ? node.before : node.after).map((other) => place.get(other)).filter((at) => at !== undefined);
          return [node, joined.length > 0 ? mean(joined) : index];
        }),
      );
      row.sort((one, other) => wish.get(one) - wish.get(other));
    }
    const now = crossings(rows, chains);
    if (now < fewest) {
      fewest = now;
      best = rows.map((row) => [...row]);
    }
  }
  best.forEach((row, index) => rows[index].splice(0, row.length, ...row));
}

function crossings(rows, chains) {
  const place = new Map(rows.flatMap((row) => row.map((node, index) => [node, index])));
  const between = rows.map(() => []);
  for (const { nodes } of chains) {
    for (let step = 1; step < nodes.length; step += 1) {
      if (nodes[step].layer > nodes[step - 1].layer + 1) continue;
      between[nodes[step - 1].layer].push([place.get(nodes[step - 1]), place.get(nodes[step])]);
    }
  }
  let count = 0;
  for (const steps of between) {
    for (let one = 0; one < steps.length; one += 1) {
      for (let other = one + 1; other < steps.length; other += 1) {
        if ((steps[one][0] - steps[other][0]) * (steps[one][1] - steps[other][1]) < 0) count += 1;
      }
    }
  }
  return count;
}

/** How far across each node stands: near those it is joined to, and not on its neighbours. */
function spread(rows, chains, size) {
  const at = new Map();
  for (const row of rows) {
    let edge = 0;
    for (const node of row) {
      at.set(node, edge + extent(node, size) / 2);
      edge += extent(node, size) + size.gapAcross;
    }
  }
  for (let round = 0; round < SMOOTHINGS; round += 1) {
    const all = round % 2 === 0 ? rows : [...rows].reverse();
    for (const row of all) {
      const wish = row.map((node) => {
        const joined = [...node.before, ...node.after].map((other) => at.get(other));
        return joined.length > 0 ? mean(joined) : at.get(node);
      });
      apart(row, wish, size).forEach((place, index) => at.set(row[index], place));
    }
  }
  const least = Math.min(...rows.flatMap((row) => row.map((node) => at.get(node) - extent(node, size) / 2)));
  for (const [node, place] of at) at.set(node, place - least);
  return at;
}

/** The wishes of a row, moved apart so far that no two overlap, and back so that they are met on the whole. */
function apart(row, wish, size) {
  const places = [];
  row.forEach((node, index) => {
    const least =
      index === 0 ? -Infinity : places[index - 1] + (extent(row[index - 1], size) + extent(node, size)) / 2 + size.gapAcross;
    places.push(Math.max(wish[index], least));
  });
  const shift = mean(wish.map((place, index) => place - places[index]));
  return places.map((place) => place + shift);
}

const extent = (node, size) => (node.name === null ? PASSAGE : size.across);
const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / Math.max(1, numbers.length);
