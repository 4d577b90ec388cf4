// The connection to the pipeline: server-sent events, read by fetch.
//
// Not by EventSource, which can't send a token. The token comes from the address (#token=…, taken out of it at once) or
// from the form, and lives in this page's memory alone.

const RETRY_MS = [1000, 2000, 5000];
/** A second is told each second: after this long something is wrong. */
const SILENCE_MS = 6000;

let token = takeTokenFromAddress();

function takeTokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) history.replaceState(null, "", location.pathname + location.search);
  return found;
}

/** What is asked from now on with this token. */
export function useToken(text) {
  token = text;
}

/**
 * Calls `on.event(name, data)` for each event, and again after each loss; `on.state("live" | "lost", seconds)`;
 * `on.refused(wasTried)` where a token is needed, which should resolve once there is one.
 */
export async function follow(on) {
  let losses = 0;
  for (;;) {
    try {
      const answer = await fetch("/events", { headers: token ? { authorization: `Bearer ${token}` } : {}, cache: "no-store" });
      if (answer.status === 401) {
        await on.refused(token !== null);
        continue;
      }
      if (!answer.ok) throw new Error(`answered ${answer.status}`);
      await read(answer.body.getReader(), (name, data) => {
        losses = 0;
        on.state("live");
        on.event(name, data);
      });
    } catch {
      // Gone: it has stopped, or the network has. Told below, and tried again.
    }
    const wait = RETRY_MS[Math.min(losses, RETRY_MS.length - 1)];
    losses += 1;
    on.state("lost", wait / 1000);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** Reads events until the stream ends or falls silent. */
async function read(reader, take) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await withinSilence(reader);
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const name = lines.find((line) => line.startsWith("event: "));
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (name && data.length > 0) take(name.slice(7), JSON.parse(data.join("\n")));
    }
  }
}

function withinSilence(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => {
      reader.cancel().catch(() => {});
      reject(new Error("silent"));
    }, SILENCE_MS);
  });
  return Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer));
}
