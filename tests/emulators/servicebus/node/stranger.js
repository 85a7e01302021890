// Microsoft's Node client as someone would use it who has never seen our tests; prints a word for each part that held.
"use strict";
const assert = require("node:assert");
const { ServiceBusClient, ServiceBusAdministrationClient, isServiceBusError, delay } = require("@azure/service-bus");

const connection = process.argv[2];
const admin = new ServiceBusAdministrationClient(connection);
const client = new ServiceBusClient(connection, { retryOptions: { maxRetries: 1, retryDelayInMs: 100 } });

async function rejects(promise, code) {
  await assert.rejects(promise, (error) => {
    assert(isServiceBusError(error), `no ServiceBusError: ${error}`);
    assert.equal(error.code, code);
    return true;
  });
}

async function drained(receiver, count) {
  const messages = [];
  while (messages.length < count) {
    const more = await receiver.receiveMessages(count - messages.length, { maxWaitTimeInMs: 5000 });
    assert(more.length > 0, `only ${messages.length} of ${count} came`);
    messages.push(...more);
  }
  return messages;
}

const parts = {
  async properties(name) {
    const sender = client.createSender(name);
    const sent = {
      body: Buffer.from([0, 255, 1, 254]),
      messageId: "id-1",
      correlationId: "c-1",
      contentType: "application/octet-stream",
      subject: "s",
      to: "there",
      replyTo: "back",
      timeToLive: 60_000,
      applicationProperties: { text: "grüße 東京", int: 7, real: 3.25, yes: true, none: null },
    };
    await sender.sendMessages(sent);
    const receiver = client.createReceiver(name);
    const [message] = await drained(receiver, 1);
    for (const field of ["messageId", "correlationId", "contentType", "subject", "to", "replyTo", "timeToLive"]) {
      assert.equal(message[field], sent[field], field);
    }
    assert(Buffer.from(message.body).equals(sent.body));
    assert.deepEqual(message.applicationProperties, sent.applicationProperties);
    assert(message.enqueuedTimeUtc instanceof Date && message.lockedUntilUtc > new Date());
    assert(message.expiresAtUtc > new Date());
    await receiver.completeMessage(message);
    await receiver.close();
    await sender.close();
  },

  async amqp(name) {
    const sender = client.createSender(name);
    await sender.sendMessages({ bodyType: "value", body: { a: [1, "x", null] } });
    await sender.sendMessages({ bodyType: "sequence", body: [[1, 2], ["x"]] });
    const receiver = client.createReceiver(name);
    const [value, sequence] = await drained(receiver, 2);
    assert.deepEqual(value._rawAmqpMessage.bodyType, "value");
    assert.deepEqual(value.body, { a: [1, "x", null] });
    assert.equal(sequence._rawAmqpMessage.bodyType, "sequence");
    assert.deepEqual(sequence.body, [[1, 2], ["x"]]);
    await Promise.all([value, sequence].map((each) => receiver.completeMessage(each)));
    await client.createReceiver(name).close();
    await receiver.close();
  },

  async peek(name) {
    const sender = client.createSender(name);
    await sender.sendMessages(Array.from({ length: 30 }, (_, n) => ({ body: n })));
    const receiver = client.createReceiver(name);
    const first = await receiver.peekMessages(10);
    const next = await receiver.peekMessages(25);
    assert.deepEqual([...first, ...next].map((each) => each.body), Array.from({ length: 30 }, (_, n) => n));
    const again = await receiver.peekMessages(2, { fromSequenceNumber: first[3].sequenceNumber });
    assert.deepEqual(again.map((each) => each.body), [3, 4]);
    const runtime = await admin.getQueueRuntimeProperties(name);
    assert.equal(runtime.activeMessageCount, 30);
    await receiver.close();
  },

  async batches(name) {
    const sender = client.createSender(name);
    const batch = await sender.createMessageBatch();
    let count = 0;
    while (batch.tryAddMessage({ body: Buffer.alloc(1000, count) })) count++;
    assert(count > 200 && count < 262, `${count}`);
    await sender.sendMessages(batch);
    const small = await sender.createMessageBatch({ maxSizeInBytes: 2000 });
    assert(small.tryAddMessage({ body: "x" }));
    assert(!small.tryAddMessage({ body: "x".repeat(3000) }));
    const receiver = client.createReceiver(name, { receiveMode: "receiveAndDelete" });
    assert.equal((await drained(receiver, count)).length, count);
    assert.deepEqual(await receiver.receiveMessages(1, { maxWaitTimeInMs: 300 }), []);
    await receiver.close();
  },

  async locks(name) {
    const sender = client.createSender(name);
    await sender.sendMessages([{ body: "a" }, { body: "b" }]);
    const receiver = client.createReceiver(name, { maxAutoLockRenewalDurationInMs: 0 });
    const [a, b] = await drained(receiver, 2);
    const before = a.lockedUntilUtc;
    await delay(200);
    assert((await receiver.renewMessageLock(a)) > before);
    await receiver.deferMessage(b, { why: "later" });
    const other = client.createReceiver(name);
    const [deferred] = await other.receiveDeferredMessages([b.sequenceNumber]);
    assert.equal(deferred.applicationProperties.why, "later");
    assert.equal(deferred.state, "deferred");
    await other.renewMessageLock(deferred);
    await other.deadLetterMessage(deferred, { deadLetterReason: "r", deadLetterErrorDescription: "d", more: 1 });
    await rejects(other.receiveDeferredMessages([b.sequenceNumber]), "MessageNotFound");
    await receiver.abandonMessage(a);
    await rejects(receiver.renewMessageLock(a), "MessageLockLost");
    const dead = client.createReceiver(name, { subQueueType: "deadLetter" });
    const [letter] = await drained(dead, 1);
    assert.equal(letter.deadLetterReason, "r");
    assert.equal(letter.applicationProperties.more, 1);
    await dead.completeMessage(letter);
    await Promise.all([receiver.close(), other.close(), dead.close()]);
  },

  async maximum(name) {
    const sender = client.createSender(name);
    await sender.sendMessages({ body: "poison" });
    const receiver = client.createReceiver(name);
    for (let n = 0; n < 3; n++) {
      const [message] = await drained(receiver, 1);
      assert.equal(message.deliveryCount, n);
      await receiver.abandonMessage(message, { tries: n + 1 });
    }
    const dead = client.createReceiver(name, { subQueueType: "deadLetter", receiveMode: "receiveAndDelete" });
    const [letter] = await drained(dead, 1);
    assert.equal(letter.deadLetterReason, "MaxDeliveryCountExceeded");
    await Promise.all([receiver.close(), dead.close()]);
  },

  async schedule(name) {
    const sender = client.createSender(name);
    const receiver = client.createReceiver(name);
    const numbers = await sender.scheduleMessages([{ body: 1 }, { body: 2 }, { body: 3 }], new Date(Date.now() + 1500));
    assert.equal(numbers.length, 3);
    await sender.cancelScheduledMessages(numbers.slice(0, 2));
    await rejects(sender.cancelScheduledMessages(numbers[0]), "MessageNotFound");
    await sender.sendMessages({ body: 4, scheduledEnqueueTimeUtc: new Date(Date.now() + 1600) });
    assert.deepEqual(await receiver.receiveMessages(1, { maxWaitTimeInMs: 200 }), []);
    const messages = await drained(receiver, 2);
    assert.deepEqual(messages.map((each) => each.body).sort(), [3, 4]);
    for (const each of messages) await receiver.completeMessage(each);
    await receiver.close();
  },

  async iterator(name) {
    const sender = client.createSender(name);
    await sender.sendMessages(Array.from({ length: 7 }, (_, n) => ({ body: n })));
    const receiver = client.createReceiver(name);
    const seen = [];
    for await (const message of receiver.getMessageIterator({ maxWaitTimeInMs: 2000 })) {
      if (message === undefined) continue;
      seen.push(message.body);
      await receiver.completeMessage(message);
      if (seen.length === 7) break;
    }
    assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6]);
    await receiver.close();
  },

  async renewal(name) {
    const sender = client.createSender(name);
    await sender.sendMessages({ body: "long" });
    const receiver = client.createReceiver(name, { maxAutoLockRenewalDurationInMs: 60_000 });
    await new Promise((resolve, reject) => {
      const handle = receiver.subscribe(
        {
          processMessage: async (message) => {
            await delay(4500); // the lock is 3 s
            await receiver.completeMessage(message);
            resolve(handle);
          },
          processError: async ({ error }) => reject(error),
        },
        { autoCompleteMessages: false },
      );
    });
    await receiver.close();
    assert.equal((await admin.getQueueRuntimeProperties(name)).activeMessageCount, 0);
  },

  async errors(name) {
    await rejects(client.createSender("nowhere").sendMessages({ body: 1 }), "MessagingEntityNotFound");
    await rejects(client.createReceiver("nowhere").receiveMessages(1), "MessagingEntityNotFound");
    await rejects(client.createReceiver("nowhere").peekMessages(1), "MessagingEntityNotFound");
    const wrong = new ServiceBusClient(connection.replace(/SharedAccessKey=[^;]*/, "SharedAccessKey=wrong"), {
      retryOptions: { maxRetries: 0 },
    });
    await rejects(wrong.createSender(name).sendMessages({ body: 1 }), "UnauthorizedAccess");
    await wrong.close();
    await assert.rejects(admin.getQueue("nowhere"), { code: "MessageEntityNotFoundError" });
    await assert.rejects(admin.createQueue(name), { statusCode: 409 });
    await assert.rejects(admin.deleteQueue("nowhere"), { statusCode: 404 });
  },

  async listing(name) {
    const listed = [];
    for await (const each of admin.listQueuesRuntimeProperties()) listed.push(each.name);
    assert(listed.includes(name));
    const pages = [];
    for await (const page of admin.listQueues().byPage({ maxPageSize: 1 })) pages.push(page.length);
    assert(pages.length >= 1);
    const queue = await admin.getQueue(name);
    queue.defaultMessageTimeToLive = "PT1H";
    queue.userMetadata = "x <&> y";
    const updated = await admin.updateQueue(queue);
    assert.equal(updated.defaultMessageTimeToLive, "PT1H");
    assert.equal(updated.userMetadata, "x <&> y");
    assert.equal(await admin.queueExists(name), true);
  },
};

(async () => {
  const chosen = process.argv.slice(3);
  for (const [word, part] of Object.entries(parts)) {
    if (chosen.length && !chosen.includes(word)) continue;
    const name = `stranger-${word}`;
    await admin.createQueue(name, { lockDuration: "PT3S", maxDeliveryCount: 3 });
    await part(name);
    await admin.deleteQueue(name);
    console.log(word);
  }
  await client.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
