// What a user does with Node's "etcd3" package: node etcd3_guest.js HOST PORT CA CERT KEY, one line of JSON a step.
"use strict";

const fs = require("fs");
const { Etcd3 } = require("etcd3");

const [host, port, ca, certificate, key] = process.argv.slice(2);
const say = (...facts) => process.stdout.write(JSON.stringify(facts) + "\n");

async function visit(client) {
  say("get of nothing", await client.get("guest").string());
  await client.put("guest").value("one");
  say("put", (await client.put("guest").value("two").getPrevious()).value.toString());
  say("get", await client.get("guest").string(), await client.get("guest").number());
  await client.put("guest/a").value(1);
  await client.put("guest/b").value(2);
  say("getAll", await client.getAll().prefix("guest/").numbers(), await client.getAll().prefix("guest/").count());
  const txn = await client
    .if("guest", "Value", "==", "two")
    .and("guest", "Version", ">", 1)
    .then(client.put("guest").value("three"))
    .else(client.delete().key("guest"))
    .commit();
  say("txn", txn.succeeded, await client.get("guest").string());

  const seen = [];
  const watcher = await client.watch().prefix("watched/").withPreviousKV().create();
  const done = new Promise((resolve) => {
    watcher.on("put", (kv, before) => seen.push(["put", kv.value.toString(), before && before.value.toString()]));
    watcher.on("delete", (kv, before) => {
      seen.push(["delete", kv.key.toString(), before.value.toString()]);
      resolve();
    });
  });
  await client.put("watched/x").value("1");
  await client.put("watched/x").value("2");
  await client.delete().key("watched/x");
  await done;
  await watcher.cancel();
  say("watch", seen);

  const lease = client.lease(300);
  await lease.put("leased").value("x");
  await lease.keepaliveOnce();
  say("lease", await client.get("leased").string());
  await lease.revoke();
  say("revoked", await client.get("leased").string());

  const held = await client.lock("lock").ttl(60).acquire();
  const refused = await client.lock("lock").ttl(60).acquire().then(() => "acquired", (error) => error.name);
  await held.release();
  say("lock", refused, await client.lock("lock").ttl(60).do(() => "in the lock"));

  const election = client.election("election", 60);
  const campaign = election.campaign("me");
  await new Promise((resolve, reject) => campaign.on("elected", resolve).on("error", reject));
  say("election", await election.leader());
  await campaign.proclaim("still me");
  say("proclaimed", await election.leader());
  await campaign.resign();
  say("resigned", await election.leader());
}

const client = new Etcd3({
  hosts: `https://${host}:${port}`,
  credentials: {
    rootCertificate: fs.readFileSync(ca),
    privateKey: fs.readFileSync(key),
    certChain: fs.readFileSync(certificate),
  },
});
visit(client).then(
  () => client.close(),
  (error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exit(1);
  },
);
