// The client for Node, etcd3, through the proxy. One line on stdout per check that held; on the first that does not, a
// sentence on stderr and exit code 1.
//
// The environment says where things are: PROXY and ETCD are addresses (host:port, ETCD several with commas), CA, CERT
// and KEY are PEM files, and NAMESPACE is the prefix that the proxy puts before every key. NODE_PATH names the folder
// of the libraries.
'use strict';

const assert = require('node:assert/strict');
const { readFileSync } = require('node:fs');
const { EtcdLeaseInvalidError, EtcdLockFailedError, Etcd3 } = require('etcd3');

// Bounds one check. It only has to be longer than a loaded two-core machine needs.
const PATIENCE_MILLISECONDS = 40_000;

// The shortest that a cluster with etcd's default election timeout grants.
const TTL_SECONDS = 2;

const NAMESPACE = setting('NAMESPACE');
const proxy = client(setting('PROXY'));
const etcd = client(setting('ETCD'));

const checks = {
  async 'keys are put, read and deleted below the namespace'() {
    const { header } = await proxy.put('kv/a').value('1');
    await proxy.put('kv/b').value('2');
    await etcd.put('kv/c').value('outside');
    assert.equal(await direct('kv/a'), '1');
    assert.deepEqual(await proxy.getAll().prefix('kv/').strings(), { 'kv/a': '1', 'kv/b': '2' });
    assert.deepEqual(await proxy.getAll().prefix('kv/').sort('Key', 'Descend').limit(1).keys(), ['kv/b']);
    assert.equal(await proxy.getAll().all().count(), 2);
    const previous = await proxy.put('kv/a').value('3').getPrevious();
    assert.equal(previous.key.toString(), 'kv/a');
    assert.equal(previous.value.toString(), '1');
    assert.equal(await proxy.get('kv/a').revision(header.revision).string(), '1');
    const deleted = await proxy.delete().all().getPrevious();
    assert.deepEqual(deleted.map((kv) => kv.key.toString()), ['kv/a', 'kv/b']);
    assert.equal(await etcd.get('kv/c').string(), 'outside');
  },

  async 'transactions compare and act below the namespace'() {
    const create = () =>
      proxy
        .if('txn/a', 'Create', '==', 0)
        .then(proxy.put('txn/a').value('1'), proxy.get('txn/a'))
        .else(proxy.delete().key('txn/a'), proxy.getAll().prefix('txn/'))
        .commit();
    const won = await create();
    assert.equal(won.succeeded, true);
    assert.equal(won.responses[1].response_range.kvs[0].key.toString(), 'txn/a');
    assert.equal(await direct('txn/a'), '1');
    const lost = await create();
    assert.equal(lost.succeeded, false);
    assert.equal(lost.responses[0].response_delete_range.deleted, '1');
    assert.deepEqual(lost.responses[1].response_range.kvs, []);
  },

  async 'software transactions keep the sum under competition'() {
    await proxy.put('stm/from').value(100);
    await proxy.put('stm/to').value(0);
    // The default isolation of this client wants all keys to be of one revision, and conflicts for ever otherwise.
    const serializable = 1;
    const move = () =>
      proxy.stm({ retries: 100, isolation: serializable }).transact(async (tx) => {
        await tx.put('stm/from').value((await tx.get('stm/from').number()) - 1);
        await tx.put('stm/to').value((await tx.get('stm/to').number()) + 1);
      });
    await Promise.all(Array.from({ length: 10 }, move));
    assert.equal(await direct('stm/from'), '90');
    assert.equal(await direct('stm/to'), '10');
  },

  async 'a watch tells every change of its range and no other'() {
    const watched = await watch(proxy.watch().prefix('w/').withPreviousKV());
    await etcd.put('w/a').value('outside');
    await etcd.put(`${NAMESPACE}w/a`).value('1');
    const { header } = await proxy.put('w/a').value('2');
    await proxy.delete().key('w/a');
    assert.deepEqual(await watched.take(3), ['put w/a=1', 'put w/a=2 was 1', 'delete w/a was 2']);
    await watched.watcher.cancel();
    const replayed = await watch(proxy.watch().key('w/a').startRevision(header.revision).only('delete'));
    assert.deepEqual(await replayed.take(1), ['delete w/a']);
    await replayed.watcher.cancel();
  },

  async 'many watches on one stream each get each event'() {
    const all = await Promise.all(Array.from({ length: 30 }, () => watch(proxy.watch().key('many'))));
    for (const value of ['1', '2', '3']) {
      await proxy.put('many').value(value);
    }
    for (const watched of all) {
      assert.deepEqual(await watched.take(3), ['put many=1', 'put many=2', 'put many=3']);
    }
    await Promise.all(all.map((watched) => watched.watcher.cancel()));
  },

  async 'what was compacted is refused to watches'() {
    const first = (await proxy.put('compact').value('1')).header.revision;
    const last = (await proxy.put('compact').value('2')).header.revision;
    await proxy.kv.compact({ revision: last });
    const failure = (etcd3, key) =>
      new Promise((resolve) => etcd3.watch().key(key).startRevision(first).watcher().on('error', resolve));
    const through = await failure(proxy, 'compact');
    assert.match(through.message, /^Watcher canceled/);
    assert.equal(through.message, (await failure(etcd, `${NAMESPACE}compact`)).message);
  },

  async 'a lease outlives its time while it is kept, and takes its keys with it'() {
    const lease = proxy.lease(TTL_SECONDS);
    await lease.put('leased').value('1');
    const watched = await watch(proxy.watch().key('leased'));
    const left = await proxy.leaseClient.leaseTimeToLive({ ID: await lease.grant(), keys: true });
    assert.deepEqual(left.keys.map(String), ['leased']);
    // The client asks every third of the time, so this is more than twice the time.
    await new Promise((resolve, reject) => {
      let answers = 0;
      lease.on('keepaliveSucceeded', () => ++answers === 7 && resolve());
      lease.on('lost', reject);
    });
    assert.equal(await direct('leased'), '1');
    lease.release();
    assert.deepEqual(await watched.take(1), ['delete leased']);
    await watched.watcher.cancel();
  },

  async 'a lease that is revoked elsewhere is lost'() {
    const lease = proxy.lease(TTL_SECONDS);
    const id = await lease.grant();
    const lost = new Promise((resolve) => lease.on('lost', resolve));
    await etcd.leaseClient.leaseRevoke({ ID: id });
    assert.ok((await lost) instanceof EtcdLeaseInvalidError);
  },

  async 'a lock excludes its rivals until it is freed'() {
    const mine = proxy.lock('locked').ttl(60);
    await mine.acquire();
    const kv = (await etcd.getAll().prefix(`${NAMESPACE}locked`).exec()).kvs[0];
    assert.equal(kv.lease, await mine.leaseId());
    await assert.rejects(proxy.lock('locked').ttl(60).acquire(), EtcdLockFailedError);
    await mine.release();
    const theirs = await proxy.lock('locked').ttl(60).acquire();
    await theirs.release();
    assert.equal(await etcd.get(`${NAMESPACE}locked`).exists(), false);
  },

  async 'an election has one leader, and observers see each'() {
    const election = proxy.election('elected', TTL_SECONDS);
    const first = election.campaign('one');
    await first.wait();
    assert.equal(await election.leader(), 'one');
    assert.equal(await direct((await first.getCampaignKey()).toString()), 'one');
    const observer = await election.observe();
    assert.equal(observer.leader(), 'one');
    const second = election.campaign('two');
    const changed = new Promise((resolve) => observer.on('change', (leader) => leader === 'two' && resolve()));
    await first.resign();
    await second.wait();
    await changed;
    await observer.cancel();
    await second.resign();
  },

  async 'errors are those of etcd'() {
    await assert.rejects(proxy.put('').value('v').exec(), /etcdserver: key is not provided/);
    await assert.rejects(proxy.get('kv/a').revision('1099511627776').exec(), /required revision is a future revision/);
    await assert.rejects(proxy.put('kv/a').value('v').lease(4711).exec(), EtcdLeaseInvalidError);
  },
};

function setting(name) {
  const value = process.env[name];
  if (!value) {
    console.error(`the environment variable ${name} is missing`);
    process.exit(2);
  }
  return value;
}

function client(addresses) {
  return new Etcd3({
    hosts: addresses.split(',').map((address) => `https://${address}`),
    credentials: {
      rootCertificate: readFileSync(setting('CA')),
      certChain: readFileSync(setting('CERT')),
      privateKey: readFileSync(setting('KEY')),
    },
    // TLS wants a name, and 127.0.0.1 is none.
    grpcOptions: { 'grpc.ssl_target_name_override': 'localhost' },
  });
}

async function direct(key) {
  const value = await etcd.get(NAMESPACE + key).string();
  assert.notEqual(value, null, `etcd has no key ${NAMESPACE}${key}`);
  return value;
}

// A watch that is there, and whose events can be taken one after the other.
async function watch(builder) {
  const events = [];
  let wake = () => {};
  const watcher = await builder.create();
  const heard = (type) => (kv, previous) => {
    const text = type === 'put' ? `put ${kv.key}=${kv.value}` : `delete ${kv.key}`;
    events.push(previous ? `${text} was ${previous.value}` : text);
    wake();
  };
  watcher.on('put', heard('put')).on('delete', heard('delete'));
  const take = async (count) => {
    while (events.length < count) {
      await new Promise((resolve) => (wake = resolve));
    }
    return events.splice(0);
  };
  return { watcher, take };
}

async function main() {
  for (const [proves, run] of Object.entries(checks)) {
    let timer;
    const patience = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`it took longer than ${PATIENCE_MILLISECONDS} ms`)), PATIENCE_MILLISECONDS);
    });
    try {
      await Promise.race([run(), patience]);
    } catch (error) {
      console.error(`FAILED ${proves}: ${error.stack}`);
      process.exit(1);
    } finally {
      clearTimeout(timer);
    }
    console.log(`ok ${proves}`);
  }
  // Timers of the client would keep the process for another minute.
  process.exit(0);
}

main();
