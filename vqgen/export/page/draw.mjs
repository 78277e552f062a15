// Captions to pictures in the browser: tokens, uniform numbers, one pass and the decoder.
// Explained, and compared with Python, in nbs/56_export.web.ipynb.
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // several would need headers that a plain server does not send

// --- tokens ---

const SPACE = "▁"; // stands for a space, and where a word begins
const PUNCTUATION = /([\p{P}$+<=>^`|~])/u;

/** The token ids of captions, by what tokenizer.json says (as vqgen trains it), at most `longest`. */
export class CaptionTokenizer {
  constructor(tree, longest) {
    const { model, added_tokens: added, post_processor: template } = tree;
    this.longest = longest;
    this.vocab = new Map(Object.entries(model.vocab));
    this.ranks = new Map(model.merges.map((pair, rank) => [pair.join("\0"), rank]));
    this.unknown = model.unk_token;
    this.spelled = model.byte_fallback;
    this.added = new Map(added.map((token) => [token.content, token.id]));
    const escaped = [...this.added.keys()].map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    this.marks = new RegExp(`(${escaped.sort((a, b) => b.length - a.length).join("|")})`);
    const ends = template.single.map((part) => part.SpecialToken && template.special_tokens[part.SpecialToken.id]);
    [this.start, this.end] = [ends[0].ids, ends.at(-1).ids];
  }

  encode(caption) {
    const parts = caption.split(this.marks).filter(Boolean);
    const inner = parts.flatMap((part) => this.added.get(part) ?? this.plain(part));
    const ids = [...this.start, ...inner, ...this.end];
    return ids.length > this.longest ? [...ids.slice(0, this.longest - 1), ids.at(-1)] : ids;
  }

  plain(text) {
    const folded = Array.from(text.normalize("NFKC"), (letter) => letter.toLowerCase()).join("");
    const spaced = folded.replaceAll(" ", SPACE);
    const marked = spaced.startsWith(SPACE) ? spaced : SPACE + spaced;
    const words = marked.match(/▁[^▁]*/g).flatMap((word) => word.split(PUNCTUATION).filter(Boolean));
    return words.flatMap((word) => this.merge(word));
  }

  // Byte-pair encoding: of all neighbours that may merge, those of the lowest rank do, the leftmost first.
  merge(word) {
    const tokens = Array.from(word).flatMap((letter) => this.spell(letter));
    for (;;) {
      let [best, place] = [Infinity, -1];
      for (let i = 0; i + 1 < tokens.length; i++) {
        const rank = this.ranks.get(`${tokens[i]}\0${tokens[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return tokens.map((token) => this.vocab.get(token));
      tokens.splice(place, 2, tokens[place] + tokens[place + 1]);
    }
  }

  spell(letter) {
    if (this.vocab.has(letter)) return [letter];
    if (!this.spelled) return [this.unknown];
    const bytes = Array.from(new TextEncoder().encode(letter));
    return bytes.map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  }
}

// --- numbers ---

/** `count` numbers in [0, 1), the same for the same whole `seed`: mulberry32, 24 bits of each. */
export function uniformNumbers(seed, count) {
  let state = seed >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 8) / 2 ** 24;
  });
}

// --- pictures ---

async function read(name, kind) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} is missing (${answer.status}): export the page again`);
  return answer[kind]();
}

async function openGraph(name) {
  return ort.InferenceSession.create(new Uint8Array(await read(name, "arrayBuffer")));
}

/** What draws: the two graphs and the tokenizer that lie beside this file. */
export class Drawing {
  static async load() {
    const found = new Drawing();
    const [facts, tree, pass, decoder] = await Promise.all([
      read("drawing.json", "json"), read("tokenizer.json", "json"), openGraph("pass.onnx"), openGraph("decoder.onnx")]);
    Object.assign(found, { facts, pass, decoder, tokenizer: new CaptionTokenizer(tree, facts.max_length) });
    return found;
  }

  /** The codes, a BigInt64Array, of the picture of `caption`. */
  async codes(caption, seed, temperature) {
    const ids = this.tokenizer.encode(caption);
    const places = this.facts.grid_size ** 2;
    const { codes } = await this.pass.run({
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("bool", new Uint8Array(ids.length).fill(1), [1, ids.length]),
      numbers: new ort.Tensor("float32", uniformNumbers(seed, places), [1, places]),
      temperature: new ort.Tensor("float32", Float32Array.of(temperature), []),
    });
    return codes.data;
  }

  /** `codes` as they stand after `round` rounds: -1 where they are not decided yet. */
  after(codes, round) {
    const known = codes.map(() => -1n);
    for (const place of this.facts.rounds.slice(0, round).flat()) known[place] = codes[place];
    return known;
  }

  /** The picture of `codes`, an ImageData; grey where they are -1. */
  async paint(codes) {
    const { grid_size: grid, downsample } = this.facts;
    const side = grid * downsample;
    const { images } = await this.decoder.run({ codes: new ort.Tensor("int64", codes, [1, grid, grid]) });
    const picture = new ImageData(side, side);
    for (let pixel = 0; pixel < side * side; pixel++) {
      for (let colour = 0; colour < 3; colour++) {
        picture.data[4 * pixel + colour] = (images.data[colour * side * side + pixel] + 1) * 127.5;
      }
      picture.data[4 * pixel + 3] = 255;
    }
    return picture;
  }
}

// --- the page ---

/** Let the elements of the page draw; each change draws anew, and of changes in between only the last. */
async function start(page) {
  const { caption, seed, temperature, round, play, picture, status, codes: shown } = page;
  const drawing = await Drawing.load();
  const { grid_size: grid, downsample, rounds } = drawing.facts;
  [picture.width, picture.height] = [grid * downsample, grid * downsample];
  [round.max, round.value, temperature.value] = [rounds.length, rounds.length, drawing.facts.temperature];
  let codes = null;
  let reel = 0; // which film may go on: each that is begun, and each change by hand, ends the one before

  async function show() {
    const known = drawing.after(codes, Number(round.value));
    const title = `round ${round.value} of ${rounds.length}`;
    picture.getContext("2d").putImageData(await drawing.paint(known), 0, 0);
    picture.title = title;
  }

  async function draw() {
    const begin = performance.now();
    const wanted = caption.value;
    codes = await drawing.codes(wanted, Number(seed.value), Number(temperature.value));
    round.value = rounds.length;
    await show();
    const rows = Array.from({ length: grid }, (_, row) => codes.slice(row * grid, (row + 1) * grid).join(" "));
    shown.value = rows.join("\n");
    status.value = `drawn in ${Math.ceil(performance.now() - begin)} ms`;
    picture.setAttribute("aria-label", wanted);
  }

  // The rounds one by one.
  async function film() {
    const mine = ++reel;
    for (let step = 1; step <= rounds.length && mine === reel; step++) {
      round.value = step;
      request(show);
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  let [next, busy] = [null, false];
  async function request(task) {
    if (next !== draw) next = task; // who waits for a new picture need not wait for a round of the old one
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const task = next;
        next = null;
        await task();
      }
    } catch (fault) {
      status.value = fault.message;
    } finally {
      busy = false;
    }
  }

  for (const [controls, task] of [[[caption, seed, temperature], draw], [[round], show]]) {
    for (const control of controls) {
      control.addEventListener("input", () => {
        reel++;
        request(task);
      });
    }
  }
  play.addEventListener("click", film);
  await request(draw);
  status.value = `first picture ${(performance.now() / 1000).toFixed(2)} s after the page was asked for`;
}

const names = ["caption", "seed", "temperature", "round", "play", "picture", "status", "codes"];
const page = Object.fromEntries(names.map((name) => [name, document.getElementById(name)]));
if (page.caption) start(page).catch((fault) => (page.status.value = fault.message));
