"""Training rows: short conversations packed in rows, and long ones in one line, with what is graded and what belongs together."""

import os
import random
from multiprocessing import get_context

import numpy as np

import tokenizer
from common import CONFIG, IM_END
from corpus import generate, recorded

SHARD = 1000  # short conversations a shard; a shard depends on the seed and its number alone
LONG_SHARD = 40


def assistant_mask(ids):
    """1 for the tokens that the model has to write: assistant text up to <|im_end|>."""
    assistant, middle = tokenizer.SPECIAL_IDS["<|im_assistant|>"], tokenizer.SPECIAL_IDS["<|im_middle|>"]
    mask, at = np.zeros(len(ids), np.uint8), 0
    for begin in [n for n, token in enumerate(ids) if token == assistant]:
        if begin < at:
            continue
        start = ids.index(middle, begin) + 1
        end = ids.index(IM_END, start) + 1
        mask[start:end] = 1
        at = end
    return mask


def make_shard(args):
    """Rows of packed conversations: ids, what is graded, and which conversation a token is of."""
    seed, number, length, count, held = args
    enc = tokenizer.load()
    rows, row = [], ([], [], [])
    for n in range(count):
        rng = random.Random(f"{seed}/{number}/{n}/{held}")
        text = generate.text_of(generate.conversation(rng, held))
        ids = tokenizer.encode_chat(enc, text)
        mask = assistant_mask(ids)
        if len(row[0]) + len(ids) > length and row[0]:
            rows.append(row)
            row = ([], [], [])
        row[0].extend(ids[:length])
        row[1].extend(mask[:length])
        row[2].extend([n % 250 + 1] * min(len(ids), length))
    rows.append(row)
    out = np.zeros((len(rows), 3, length), np.uint16)
    for i, row in enumerate(rows):
        for j in range(3):
            out[i, j, : len(row[j])] = row[j]
    return out


def make_long(args):
    """Long conversations of agents: [(ids, what is graded)], none longer than the context."""
    seed, number, held, count = args
    enc, out, longest = tokenizer.load(), [], CONFIG["max_position_embeddings"]
    for n in range(count):
        rng = random.Random(f"{seed}/long/{number}/{n}/{held}")
        # Characters; the tokenizer makes one token of 2.3 of them.
        size = int(rng.choice([rng.uniform(4_000, 16_000), rng.uniform(16_000, 46_000), rng.uniform(16_000, 46_000), rng.uniform(46_000, 70_000)]))
        ids = tokenizer.encode_chat(enc, generate.text_of(generate.agent(rng, size, held)))
        if len(ids) <= longest:
            out.append((np.array(ids, np.uint16), assistant_mask(ids)))
    return out


def make_recorded(seed, each):
    """Held-out conversations in recorded requests (`corpus/recorded.py`), `each` of every request, as `make_long` gives them."""
    enc, out = tokenizer.load(), []
    for name in recorded.requests():
        for n in range(each):
            c = generate.Conversation(random.Random(f"{seed}/{name}/{n}"), held=True)
            c.tools = recorded.conversation(c, name) or []
            ids = tokenizer.encode_chat(enc, generate.text_of(c))
            out.append((np.array(ids, np.uint16), assistant_mask(ids)))
    return out


def make_rows(seed, conversations, length, held=False):
    count = min(SHARD, conversations)
    jobs = [(seed, n, length, count, held) for n in range(max(1, conversations // SHARD))]
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        return np.concatenate(pool.map(make_shard, jobs, chunksize=1))


class Feed:
    """Batches of `tokens` tokens, made by other processes while the first ones are trained on."""

    def __init__(self, seed, shards, long_shards, length, tokens, workers):
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.length, self.tokens = length, tokens
        self.pool = get_context("spawn").Pool(workers)
        short = [(seed, n, length, SHARD, False) for n in range(shards)]
        long = [(seed, n, False, LONG_SHARD) for n in range(long_shards)]
        self.jobs = {"short": [], "long": []}
        # Short ones are wanted first.
        head = shards // 3
        self.jobs["short"] += [self.pool.apply_async(make_shard, (j,)) for j in short[:head]]
        rest = short[head:]
        for n, job in enumerate(long):
            self.jobs["long"].append(self.pool.apply_async(make_long, (job,)))
            while rest and len(rest) * len(long) > len(short[head:]) * (len(long) - n - 1):
                self.jobs["short"].append(self.pool.apply_async(make_shard, (rest.pop(0),)))
        self.pool.close()
        self.have, self.order = {"short": [], "long": []}, {"short": [], "long": []}

    def _collect(self, kind, wanted):
        """Takes what has been made; waits only while there are fewer than `wanted` fresh rows."""
        fresh = []
        while self.jobs[kind] and (self.jobs[kind][0].ready() or len(self.order[kind]) + len(fresh) < wanted):
            for row in self.jobs[kind].pop(0).get():
                fresh.append(len(self.have[kind]))
                self.have[kind].append(row)
        self.order[kind] = [*self.rng.permutation(fresh), *self.order[kind]] if fresh else self.order[kind]
        if len(self.order[kind]) < wanted:
            self.order[kind] = [*self.rng.permutation(len(self.have[kind])), *self.order[kind]]

    def short(self):
        count = self.tokens // self.length
        self._collect("short", count)
        return np.stack([self.have["short"][self.order["short"].pop()] for _ in range(count)])

    def long(self):
        """Ids and grades of one line, and the conversations' lengths, the last one of padding."""
        self._collect("long", 64)
        ids, graded, lengths, left = np.zeros(self.tokens, np.int64), np.zeros(self.tokens, np.uint8), [], self.tokens
        for skipped in range(8):
            index = self.order["long"].pop()
            row = self.have["long"][index]
            if len(row[0]) > left:
                self.order["long"].insert(0, index)
                continue
            at = self.tokens - left
            ids[at : at + len(row[0])], graded[at : at + len(row[0])] = row
            lengths.append(len(row[0]))
            left -= len(row[0])
        return ids, graded, lengths + ([left] if left else [])

    def stop(self):
        self.pool.terminate()
