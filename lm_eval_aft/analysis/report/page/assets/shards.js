// Samples: gzip in base64, some dozens of questions a shard. A shard is unpacked when one of its questions is opened or
// searched.

// Unpacked shards in memory.
const KEPT = 24;

function shardReader() {
  const kept = new Map();

  async function unpack(number) {
    const packed = atob(document.getElementById("shard-" + number).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  return function read(number) {
    const found = kept.get(number) || unpack(number);
    // It is put in again at the end, so that the first one is the least recently used.
    kept.delete(number);
    kept.set(number, found);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return found;
  };
}

function contains(sample, words) {
  const has = (text) => text.toLowerCase().includes(words);
  return (
    has(sample.question) ||
    has(sample.gold) ||
    has(sample.answer) ||
    sample.texts.some((text) => has(text.text)) ||
    sample.messages.some((message) => has(message.text))
  );
}
