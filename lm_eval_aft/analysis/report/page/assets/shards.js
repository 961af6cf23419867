// Transcripts: gzip in base64, some dozens of questions a shard, unpacked when one of them is opened or searched.

const KEPT = 24; // unpacked shards in memory

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
    kept.delete(number); // and in again at the end: the first is the one longest unused
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
