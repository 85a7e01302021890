// Microsoft's Node client from making a queue to deleting it; prints a word for each part that held.
"use strict";
const assert = require("node:assert");
const { ServiceBusClient, ServiceBusAdministrationClient } = require("@azure/service-bus");

const connection = process.argv[2];
const admin = new ServiceBusAdministrationClient(connection);
const client = new ServiceBusClient(connection, { retryOptions: { maxRetries: 0 } });

async function administration() {
  const made = await admin.createQueue("node", { maxDeliveryCount: 5, lockDuration: "PT5S" });
  assert.equal(made.lockDuration, "PT5S");
  assert.equal(await admin.queueExists("nowhere"), false);
  assert.equal((await admin.getNamespaceProperties()).messagingSku, "Standard");
  made.maxDeliveryCount = 7;
  assert.equal((await admin.updateQueue(made)).maxDeliveryCount, 7);
  const names = [];
  for await (const queue of admin.listQueues()) names.push(queue.name);
  assert.deepEqual(names, ["node"]);
}

async function send(sender, receiver) {
  await sender.sendMessages({ body: { deep: [1] }, applicationProperties: { number: 1, text: "x" }, subject: "label" });
  const batch = await sender.createMessageBatch();
  for (let n = 0; n < 4; n++) assert(batch.tryAddMessage({ body: `b${n}` }));
  await sender.sendMessages(batch);
  const messages = [];
  while (messages.length < 5) messages.push(...(await receiver.receiveMessages(5, { maxWaitTimeInMs: 5000 })));
  assert.deepEqual(messages.map((each) => each.body), [{ deep: [1] }, "b0", "b1", "b2", "b3"]);
  assert.deepEqual(messages[0].applicationProperties, { number: 1, text: "x" });
  assert.equal(messages[0].subject, "label");
  assert.deepEqual(messages.map((each) => each.sequenceNumber.toNumber()), [1, 2, 3, 4, 5]);
  return messages;
}

async function settle(receiver, [done, again, later, dead, renewed]) {
  await receiver.completeMessage(done);
  await receiver.abandonMessage(again, { tried: "once" });
  await receiver.deferMessage(later);
  await receiver.deadLetterMessage(dead, { deadLetterReason: "why", deadLetterErrorDescription: "text" });
  assert((await receiver.renewMessageLock(renewed)) > new Date());
  await receiver.completeMessage(renewed);
  const [deferred] = await receiver.receiveDeferredMessages(later.sequenceNumber);
  await receiver.completeMessage(deferred);
  const [back] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5000 });
  assert.equal(back.deliveryCount, 1);
  assert.deepEqual(back.applicationProperties, { tried: "once" });
  await receiver.completeMessage(back);
  await assert.rejects(receiver.completeMessage(back));
}

async function schedule(sender, receiver) {
  const soon = new Date(Date.now() + 1000);
  const [cancelled] = await sender.scheduleMessages([{ body: "no" }], soon);
  await sender.cancelScheduledMessages(cancelled);
  await sender.scheduleMessages([{ body: "yes" }], soon);
  const [peeked] = await receiver.peekMessages(5);
  assert.equal(peeked.state, "scheduled");
  const [message] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5000 });
  assert.equal(message.body, "yes");
  await receiver.completeMessage(message);
}

async function deadLetters() {
  const receiver = client.createReceiver("node", { subQueueType: "deadLetter", receiveMode: "receiveAndDelete" });
  const [message] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5000 });
  assert.equal(message.deadLetterReason, "why");
  assert.equal(message.deadLetterErrorDescription, "text");
}

async function large(sender) {
  const body = "x".repeat(200000);
  await sender.sendMessages({ body });
  const receiver = client.createReceiver("node", { receiveMode: "receiveAndDelete" });
  const [message] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5000 });
  assert.equal(message.body, body);
  await receiver.close();
  await assert.rejects(sender.sendMessages({ body: body + body }), { code: "MessageSizeExceeded" });
}

async function subscribe(sender) {
  const receiver = client.createReceiver("node");
  const seen = new Set();
  const all = new Promise((resolve, reject) => {
    receiver.subscribe(
      {
        processMessage: async (message) => { if (seen.add(message.body).size === 50) resolve(); },
        processError: async ({ error }) => reject(error),
      },
      { maxConcurrentCalls: 5 },
    );
  });
  await sender.sendMessages(Array.from({ length: 50 }, (_, n) => ({ body: n })));
  await all;
  await receiver.close();
}

(async () => {
  await administration();
  console.log("administration");
  const sender = client.createSender("node");
  const receiver = client.createReceiver("node");
  const messages = await send(sender, receiver);
  console.log("send");
  await settle(receiver, messages);
  console.log("settle");
  await schedule(sender, receiver);
  console.log("schedule");
  await deadLetters();
  console.log("dead");
  await large(sender);
  console.log("large");
  await subscribe(sender);
  console.log("subscribe");
  await client.close();
  await admin.deleteQueue("node");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
