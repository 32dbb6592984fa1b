// A program of ours for Node: objects and buffers that never change, hashed again and again.
// It prints "ready", works until stdin ends, and prints "ok" and the number of digests, or what is wrong.
'use strict';
const { createHash } = require('node:crypto');

const text = ['the plain text of worker.js is', 'known'].join(' ');
const objects = [];
for (let number = 0; number < 1000000; number++)
    objects.push({ number, name: `object ${number}`, halves: [number / 2, number / 4] });
const block = Buffer.alloc(32 << 20, text);

function digest(from) {
    const hash = createHash('sha256');
    for (let number = from; number < from + 1000; number++)
        hash.update(objects[number].name + objects[number].halves.join());
    hash.update(block.subarray(0, 1 << 20));
    return hash.digest('hex');
}

const expected = [];
for (let from = 0; from < 100; from++)
    expected.push(digest(from * 1000));
let done = false, count = 0;

function work() {
    if (done) {
        console.log(`ok ${count}`);
        return;
    }
    const from = count++ % expected.length;
    if (digest(from * 1000) !== expected[from]) {
        console.log('a digest is wrong');
        process.exit(1);
    }
    setImmediate(work);
}

process.stdin.on('end', () => { done = true; }).resume();
console.log('ready');
work();
