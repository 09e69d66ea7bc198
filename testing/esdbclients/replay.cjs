// Replays a served log by one of the official clients and prints what it saw as one JSON object.
// Arguments: the client's package, a connection string, the number of events in the log, the name of
// a persistent subscription to make.
const [lib, uri, total, group] = process.argv.slice(2);
const api = require(lib);
const client = (api.EventStoreDBClient ?? api.KurrentDBClient).connectionString(uri);
const count = Number(total);

const place = (e) => `${e.event.streamId}@${e.event.revision}:${e.event.position.commit}`;

// take gives the first n events of a stream of them, and leaves it.
async function take(events, n, ack) {
  const out = [];
  for await (const e of events) {
    if (!e.event) continue;
    out.push(place(e));
    if (ack) await events.ack(e);
    if (out.length === n) break;
  }
  return out;
}

async function failure(f) {
  try {
    await f();
  } catch (e) {
    return e.type ?? String(e);
  }
  return "none";
}

async function main() {
  const { START, END, FORWARDS, BACKWARDS } = api;
  const out = { client: lib };
  const first = [];
  for await (const e of client.readStream("volume-a", { direction: FORWARDS, fromRevision: START })) {
    first.push(place(e));
    if (first.length === 1) {
      const meta = e.event.metadata; // the clients parse what is JSON
      out.sample = {
        type: e.event.type, id: e.event.id, created: new Date(e.event.created).toISOString(),
        data: Buffer.from(e.event.data).toString(), actor: meta.actor, hash: meta.hash,
        position: meta.position,
      };
    }
  }
  out.stream = first;
  out.all = await take(client.readAll({ direction: FORWARDS, fromPosition: START }), count);
  out.last = await take(client.readAll({ direction: BACKWARDS, fromPosition: END, maxCount: 2 }), 2);
  out.missing = await failure(async () => {
    for await (const _ of client.readStream("volume-none")) { /* nothing comes */ }
  });
  out.filtered = await take(client.subscribeToAll({
    fromPosition: START, filter: api.eventTypeFilter({ prefixes: ["Quota"] }),
  }), Math.floor(count / 3));
  out.pattern = await take(client.subscribeToAll({
    fromPosition: START, filter: api.streamNameFilter({ regex: "b$" }),
  }), Math.floor(count / 3));
  out.append = await failure(() => client.appendToStream("volume-a", api.jsonEvent({
    type: "VolumeDeleted", data: {},
  })));
  await client.createPersistentSubscriptionToAll(group,
    api.persistentSubscriptionToAllSettingsFromDefaults({ startFrom: START }));
  out.persistent = await take(client.subscribeToPersistentSubscriptionToAll(group), count, true);
  const one = api.persistentSubscriptionToStreamSettingsFromDefaults({ startFrom: START });
  await client.createPersistentSubscriptionToStream("volume-a", group, one);
  out.ofStream = await take(client.subscribeToPersistentSubscriptionToStream("volume-a", group),
    first.length, true);
  console.log(JSON.stringify(out));
  await client.dispose();
}

main().then(() => process.exit(0), (e) => {
  console.error(e);
  process.exit(1);
});
