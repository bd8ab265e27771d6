// The published JavaScript client of Durable Functions against a server: what it asks, and what has to come of it.
//
// Run by the test `durable`; by hand: node client.js http://127.0.0.1:8080
"use strict";
const assert = require("node:assert");
const { randomUUID } = require("node:crypto");

process.env.WEBSITE_HOSTNAME ??= "stead.test";
const df = require("durable-functions");

const base = process.argv[2].replace(/\/$/, "") + "/runtime/webhooks/durabletask";
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function client(change = (binding) => binding) {
  const binding = change(await (await fetch(base + "/client-binding")).json());
  const input = df.input.durableClient();
  const context = {
    options: { extraInputs: [input] },
    extraInputs: { get: (of) => (of === input ? binding : undefined) },
  };
  return df.getClient(context);
}

async function until(what, holds) {
  for (let tries = 0; tries < 300; tries++) {
    if (await holds()) return;
    await pause(50);
  }
  assert.fail(what);
}

async function entities(durable) {
  const counter = new df.EntityId("counter", "js " + randomUUID() + "@ü:;");
  assert.equal((await durable.readEntityState(counter)).entityExists, false);
  for (const amount of [5, 0, 7]) await durable.signalEntity(counter, "add", amount);
  const number = async () => Object.values((await durable.readEntityState(counter)).entityState ?? {})[0];
  await until("the amounts are added", async () => (await number()) === 12);
  await durable.signalEntity(counter, "reset");
  await until("it is reset", async () => (await number()) === 0);
}

async function decisions(durable) {
  for (const [decision, output] of [[true, "approved"], [false, "rejected"]]) {
    const id = await durable.startNew("Approval", { input: { timeoutSeconds: 600 } });
    const running = await durable.getStatus(id, { showInput: true });
    assert.equal(running.runtimeStatus, "Running");
    assert.equal(running.input.timeoutSeconds, 600);
    await durable.raiseEvent(id, "ApprovalEvent", decision);
    await until("it ends", async () => (await durable.getStatus(id)).runtimeStatus === "Completed");
    assert.equal((await durable.getStatus(id)).output, output);
    await durable.raiseEvent(id, "ApprovalEvent", decision); // behind the end it says nothing
  }
  await assert.rejects(durable.startNew("NoSuchFunction"), /NoSuchFunction/);
  await assert.rejects(durable.getStatus("js-" + randomUUID()));
}

async function management(durable) {
  const id = "js-" + randomUUID();
  assert.equal(await durable.startNew("Approval", { instanceId: id }), id, "without input");
  await assert.rejects(durable.startNew("Approval", { instanceId: id }));
  await durable.suspend(id, "for a while");
  assert.equal((await durable.getStatus(id)).runtimeStatus, "Suspended");
  await durable.resume(id, "go on");
  await durable.terminate(id, "not needed");
  await until("it ends", async () => (await durable.getStatus(id)).runtimeStatus === "Terminated");
  await assert.rejects(durable.rewind(id, "it has not failed"));
  const terminated = await durable.getStatusBy({ runtimeStatus: ["Terminated"] });
  assert(terminated.some((status) => status.instanceId === id));
  assert((await durable.getStatusAll()).length >= terminated.length);
  assert.equal((await durable.purgeInstanceHistory(id)).instancesDeleted, 1);
  assert.equal((await durable.purgeInstanceHistory(id)).instancesDeleted, 0);
}

(async () => {
  const durable = await client();
  for (const part of [entities, decisions, management]) {
    await part(durable);
    console.log(`javascript: ${part.name}`);
  }
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
