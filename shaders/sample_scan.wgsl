// Sampling, first step; a workgroup is a block of a row: changes the logits as a request asks for, and finds the block's
// likeliest tokens and its sum of exponentials.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> keys: array<u32>; // [S, V]
@group(0) @binding(2) var<storage, read_write> blocks: array<u32>; // [S, blocks, 1 + 2 * (1 + tops)]: sum, then (key, id)
@group(0) @binding(3) var<storage, read_write> state: array<atomic<u32>>; // [S, STATE]
@group(0) @binding(4) var<storage, read> requests: array<Request>;
@group(0) @binding(5) var<storage, read> lists: array<u32>;

var<workgroup> cells: array<u32, BLOCK>; // logits, then keys

fn allowed(r: Request, token: u32) -> bool {
    if (r.mask_words == NO_MASK) {
        return true;
    }
    let word = token / 32u;
    return word < r.mask_words && ((lists[r.mask + word] >> (token % 32u)) & 1u) == 1u;
}

// Of this thread's cells the first that comes after `last`.
fn next(thread: u32, first: u32, count: u32, last: vec2<u32>) -> vec2<u32> {
    var best = NONE;
    for (var i = thread; i < count; i += WORKGROUP) {
        let cell = vec2(cells[i], first + i);
        if (cell.x > best.x && comes_first(last, cell)) {
            best = cell;
        }
    }
    return best;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let s = group.y;
    let r = requests[s];
    let first = group.x * BLOCK;
    let count = min(BLOCK, p.vocabulary - first);
    for (var i = thread; i < count; i += WORKGROUP) {
        cells[i] = bitcast<u32>(logits[r.row * p.vocabulary + first + i]);
    }
    workgroupBarrier();
    for (var change = thread; change < r.change_count; change += WORKGROUP) {
        let at = r.changes + 4u * change;
        let i = lists[at] - first;
        if (i < count) {
            var value = bitcast<f32>(cells[i]) + bitcast<f32>(lists[at + 1u]);
            if (lists[at + 2u] > 0u) {
                value *= select(r.repetition_inverse, r.repetition, value < 0.0);
            }
            cells[i] = bitcast<u32>(value);
        }
    }
    // Apart from the products, so that a product and a difference are not rounded as one.
    workgroupBarrier();
    for (var change = thread; change < r.change_count; change += WORKGROUP) {
        let at = r.changes + 4u * change;
        let i = lists[at] - first;
        if (i < count) {
            cells[i] = bitcast<u32>(bitcast<f32>(cells[i]) - bitcast<f32>(lists[at + 3u]));
        }
    }
    workgroupBarrier();
    for (var i = thread; i < count; i += WORKGROUP) {
        let bits = cells[i];
        let token = first + i;
        var key = key_of(bits);
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            atomicMin(&state[s * STATE + BAD_ID], token);
        } else if (!allowed(r, token)) {
            key = 0u;
        }
        cells[i] = key;
        keys[s * p.vocabulary + token] = key;
    }
    let line = (s * p.blocks + group.x) * (3u + 2u * p.tops);
    var mine = next(thread, first, count, vec2(0xffffffffu, 0u));
    let best = first_of(mine, thread);
    let largest = value_of(best.x);
    var sum = 0.0;
    for (var i = thread; i < count; i += WORKGROUP) {
        if (cells[i] > 0u) {
            sum += weight_of(cells[i], largest, 1.0);
        }
    }
    sum = running_sum(sum, thread);
    if (thread == WORKGROUP - 1u) {
        blocks[line] = bitcast<u32>(sum);
        blocks[line + 1u] = best.x;
        blocks[line + 2u] = best.y;
        atomicMax(&state[s * STATE + MAX_KEY], best.x);
    }
    for (var t = 0u; t < p.tops; t++) {
        let top = first_of(mine, thread);
        if (thread == 0u) {
            blocks[line + 3u + 2u * t] = top.x;
            blocks[line + 4u + 2u * t] = top.y;
        }
        if (all(mine == top)) {
            mine = next(thread, first, count, top);
        }
    }
}
