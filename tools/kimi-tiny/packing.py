"""Packed training rows: several conversations in a row, with what is graded and what belongs together."""

import os
import random
from multiprocessing import get_context

import numpy as np

import tokenizer
from common import IM_END
from corpus import generate

SHARD = 2000  # conversations a shard; a shard's rows depend on the seed and its number alone


def assistant_mask(ids):
    """1 for the tokens that the model has to write: assistant text up to <|im_end|>."""
    assistant, middle = tokenizer.SPECIAL_IDS["<|im_assistant|>"], tokenizer.SPECIAL_IDS["<|im_middle|>"]
    mask, at = np.zeros(len(ids), np.uint8), 0
    while assistant in ids[at:]:
        start = ids.index(middle, ids.index(assistant, at)) + 1
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


def make_rows(seed, conversations, length, held=False):
    count = min(SHARD, conversations)
    jobs = [(seed, n, length, count, held) for n in range(max(1, conversations // SHARD))]
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        return np.concatenate(pool.map(make_shard, jobs, chunksize=1))
