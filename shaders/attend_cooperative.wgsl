// The attention of attend.wgsl by cooperative matrices of 16x16 (f16 to f32), for subgroups of 32.
//
// A workgroup has HEADS heads of one token and one segment of its positions, 64 positions at a time. The cache has each
// value of a key as an upper and a lower 16-bit float (latent_query.wgsl). Keys pass through shared memory in slabs of 64
// columns for each of TEAMS teams of subgroups; the next slab is loaded while one is multiplied. They do so twice: for the
// scores, where a subgroup has 16 heads and positions and its team's columns, and for the result, where it has 16 heads and
// columns of each slab. Queries and the weights of the softmax are split here. The product of two lower floats is left out;
// if EXACT is 0, only the upper ones are multiplied, and nothing else is read.
//
// With two teams each makes half as many sequential loads. They need all of 48 KB of shared memory, so they are for SINGLE
// and WHOLE only.

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

const WIDTH = LATENT + ROPE;
const TILE = 64u;
const WORKGROUP = 8u * HEADS * TEAMS; // four subgroups of a team for 16 heads
const MATES = WORKGROUP / HEADS; // threads of a head

// In quads of columns. The pitches keep rows in other banks of shared memory, and at multiples of 16 bytes.
const KEY_QUADS = WIDTH / 4u; // the upper floats of a key, then its lower ones
const SLAB = 16u * TEAMS;
const PITCH = SLAB + 2u;
const SLABS = (KEY_QUADS + SLAB - 1u) / SLAB;
const LATENT_SLABS = LATENT / 4u / SLAB;
const ROWS = WORKGROUP / SLAB; // positions that the threads load at once, a quad each
const PASSES = TILE / ROWS;
const QUERY_LOADS = HEADS * SLAB / WORKGROUP;
const SCORE_PITCH = TILE + 4u;
const LOWER_KEYS = TILE * PITCH;
const LOWER_LINES = HEADS * PITCH;

// A power of two on the weights, as LATENT_POWER is one on the latents in the cache: so lower floats keep their bits.
const WEIGHT_POWER = 16384.0;

@group(0) @binding(1) var<storage, read_write> parts: array<f32>; // [segment, head, LATENT]
@group(0) @binding(3) var<storage, read> cache: array<vec4<f16>>;

var<workgroup> segment_here: Segment;
var<workgroup> moved: vec4<u32>; // whether some head's largest score has changed, four times
var<workgroup> slots: array<u32, TILE>; // where each position's key begins, in quads
var<workgroup> keys: array<vec4<f16>, (1u + EXACT) * LOWER_KEYS>;
var<workgroup> lines: array<vec4<f16>, (1u + EXACT) * LOWER_LINES>; // queries, then weights
var<workgroup> scores: array<f32, HEADS * SCORE_PITCH>;
var<workgroup> corrections: array<f32, HEADS>;

// A thread's share of a slab on its way: its quad of the positions of each pass, upper floats and lower ones, and of its
// query; and where those positions' keys begin.
var<private> next: array<array<vec4<f16>, 1u + EXACT>, PASSES>;
var<private> next_query: array<vec4<f32>, QUERY_LOADS>;
var<private> bases: array<u32, PASSES>;

// The first of the subgroup's heads, of its positions, and of its columns of a slab of the result; its team.
fn heads_of(thread: u32) -> u32 {
    return thread / (128u * TEAMS) * 16u;
}

fn positions_of(thread: u32) -> u32 {
    return thread / 32u % 4u * 16u;
}

fn columns_of(thread: u32) -> u32 {
    return thread / 32u % (4u * TEAMS) * 16u;
}

fn team_of(thread: u32) -> u32 {
    return thread / 128u % TEAMS;
}

fn upper(value: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(value) + vec4(0x1000u)) & vec4(0xffffe000u));
}

fn highest_of_mates(value: f32) -> f32 {
    var highest = value;
    for (var i = 1u; i < MATES; i = 2u * i) {
        highest = max(highest, subgroupShuffleXor(highest, i));
    }
    return highest;
}

// Four columns of a query, the latent ones without the power that the cache's have.
fn query_quad(line: u32, quad: u32) -> vec4<f32> {
    return q[line * KEY_QUADS + quad] * select(1.0, 1.0 / f32(LATENT_POWER), quad < LATENT / 4u);
}

// A power of two that brings a query just below the largest 16-bit float.
fn query_power(line: u32, mate: u32) -> f32 {
    var largest = 0.0;
    for (var quad = mate; quad < KEY_QUADS; quad += MATES) {
        let value = abs(query_quad(line, quad));
        largest = max(largest, max(max(value.x, value.y), max(value.z, value.w)));
    }
    let exponent = clamp(bitcast<u32>(highest_of_mates(largest)) >> 23u, 15u, 254u);
    return bitcast<f32>((268u - exponent) << 23u);
}

// The last slab may have more quads than are left of the key.
fn in_key(quad: u32) -> u32 {
    if (KEY_QUADS % SLAB != 0u) {
        return min(quad, KEY_QUADS - 1u);
    }
    return quad;
}

fn fetch_query(mate: u32, slab: u32, line: u32) {
    for (var i = 0u; i < QUERY_LOADS; i++) {
        let quad = slab * SLAB + i * MATES + mate;
        next_query[i] = query_quad(line, in_key(quad));
        if (KEY_QUADS % SLAB != 0u) {
            next_query[i] *= f32(quad < KEY_QUADS);
        }
    }
}

fn fetch(thread: u32, slab: u32) {
    let quad = in_key(slab * SLAB + thread % SLAB);
    for (var i = 0u; i < PASSES; i++) {
        next[i][0] = cache[bases[i] + quad];
        if (EXACT == 1u) {
            next[i][EXACT] = cache[bases[i] + KEY_QUADS + quad];
        }
    }
}

fn put(thread: u32) {
    let at = thread / SLAB * PITCH + thread % SLAB;
    for (var i = 0u; i < PASSES; i++) {
        keys[at + i * ROWS * PITCH] = next[i][0];
        if (EXACT == 1u) {
            keys[at + i * ROWS * PITCH + EXACT * LOWER_KEYS] = next[i][EXACT];
        }
    }
}

// Four weights or columns of a head's query.
fn put_line(at: u32, value: vec4<f32>) {
    let first = upper(value);
    lines[at] = vec4<f16>(first);
    if (EXACT == 1u) {
        lines[EXACT * LOWER_LINES + at] = vec4<f16>(value - first);
    }
}

// The scores of the tile, the subgroup's heads and positions: from the first slab, which is on its way, until the first of
// the result is. `line` is the query of the thread's head, `power` its power of two.
fn score(thread: u32, line: u32, power: f32) {
    let mate = thread % MATES;
    let to = thread / MATES * PITCH + mate;
    var sums = Sum();
    for (var slab = 0u; slab < SLABS; slab += p.one) {
        workgroupBarrier();
        put(thread);
        for (var i = 0u; i < QUERY_LOADS; i++) {
            put_line(to + i * MATES, power * next_query[i]);
        }
        workgroupBarrier();
        let following = select(0u, slab + 1u, slab + 1u < SLABS);
        fetch(thread, following);
        fetch_query(mate, following, line);
        // Apart, so that they need not wait for each other; and from zero for each slab, since matrix units cut off what
        // they should round.
        var sum = Sum();
        var by_lower = Sum();
        var of_lower = Sum();
        for (var step = 0u; step < 4u; step++) {
            let quad = 16u * team_of(thread) + 4u * step;
            let line_at = heads_of(thread) * PITCH + quad;
            let x = coopLoadT<Left>(&lines[line_at], PITCH);
            let at = positions_of(thread) * PITCH + quad;
            let w = coopLoad<Right>(&keys[at], PITCH);
            sum = coopMultiplyAdd(x, w, sum);
            if (EXACT == 1u) {
                let y = coopLoadT<Left>(&lines[EXACT * LOWER_LINES + line_at], PITCH);
                let v = coopLoad<Right>(&keys[EXACT * LOWER_KEYS + at], PITCH);
                by_lower = coopMultiplyAdd(x, v, by_lower);
                of_lower = coopMultiplyAdd(y, w, of_lower);
            }
        }
        if (EXACT == 1u) {
            sum = sum + (by_lower + of_lower);
        }
        sums = sums + sum;
    }
    let to_scores = heads_of(thread) * SCORE_PITCH + positions_of(thread);
    if (TEAMS > 1u) {
        if (team_of(thread) == 1u) {
            coopStoreT(sums, &scores[to_scores], SCORE_PITCH);
        }
        workgroupBarrier();
        sums = sums + coopLoadT<Sum>(&scores[to_scores], SCORE_PITCH);
        workgroupBarrier();
        if (team_of(thread) == 0u) {
            coopStoreT(sums, &scores[to_scores], SCORE_PITCH);
        }
        return;
    }
    coopStoreT(sums, &scores[to_scores], SCORE_PITCH);
}

// Adds the weighted latents of the slab that is on its way, the subgroup's 16 columns.
fn mix(thread: u32, slab: u32, before: Sum) -> Sum {
    workgroupBarrier();
    put(thread);
    workgroupBarrier();
    if (slab + 1u < LATENT_SLABS) {
        fetch(thread, slab + 1u);
    }
    var sum = Sum();
    var by_lower = Sum();
    var of_lower = Sum();
    for (var row = 0u; row < TILE; row += 16u) {
        let line_at = heads_of(thread) * PITCH + row / 4u;
        let x = coopLoadT<Left>(&lines[line_at], PITCH);
        let at = row * PITCH + columns_of(thread) / 4u;
        let w = coopLoadT<Right>(&keys[at], PITCH);
        sum = coopMultiplyAdd(x, w, sum);
        if (EXACT == 1u) {
            let y = coopLoadT<Left>(&lines[EXACT * LOWER_LINES + line_at], PITCH);
            let v = coopLoadT<Right>(&keys[EXACT * LOWER_KEYS + at], PITCH);
            by_lower = coopMultiplyAdd(x, v, by_lower);
            of_lower = coopMultiplyAdd(y, w, of_lower);
        }
    }
    if (EXACT == 1u) {
        sum = sum + (by_lower + of_lower);
    }
    return before + sum;
}

// A sum of 16 heads and columns, each head times its correction.
fn corrected(thread: u32, sum: Sum) -> Sum {
    let at = thread / 32u * 256u;
    workgroupBarrier();
    coopStoreT(sum, &scores[at], 16u);
    workgroupBarrier();
    for (var i = thread % 32u; i < 256u; i += 32u * p.one) {
        scores[at + i] *= corrections[heads_of(thread) + i / 16u];
    }
    workgroupBarrier();
    return coopLoadT<Sum>(&scores[at], 16u);
}

// Writes a sum to the parts, of which row `row` is the workgroup's first; it has `heads` heads.
fn write(thread: u32, sum: Sum, row: u32, heads: u32, slab: u32) {
    let column = 4u * slab * SLAB + columns_of(thread);
    let first = row + heads_of(thread);
    if (WHOLE == 1u) { // every workgroup has all its heads
        coopStoreT(sum, &parts[first * LATENT + column], LATENT);
        return;
    }
    let at = thread / 32u * 256u;
    workgroupBarrier();
    coopStoreT(sum, &scores[at], 16u);
    workgroupBarrier();
    for (var i = thread % 32u; i < 256u; i += 32u) {
        if (heads_of(thread) + i / 16u < heads) {
            parts[(first + i / 16u) * LATENT + column + i % 16u] = scores[at + i];
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let segment = segment_of(group.x);
    if (thread == 0u) {
        segment_here = segment_at(segment);
    }
    let here = workgroupUniformLoad(&segment_here);
    let head_first = group.y * HEADS;
    let head = thread / MATES;
    let mate = thread % MATES;
    let line = here.token * p.heads + min(head_first + head, p.heads - 1u);
    let row = segment * p.heads + head_first;
    let heads = p.heads - head_first;
    var power = 0.0;

    var largest = LOWEST;
    var total = 0.0;
    // Named one by one: a cooperative matrix is no value to index.
    var sum0 = Sum();
    var sum1 = Sum();
    var sum2 = Sum();
    var sum3 = Sum();
    var sum4 = Sum();
    var sum5 = Sum();
    var sum6 = Sum();
    var sum7 = Sum();
    for (var first = here.start; first < here.end; first += TILE) {
        workgroupBarrier();
        if (thread < TILE) {
            slots[thread] = slot_of(here, first + thread) * 2u * KEY_QUADS;
        }
        workgroupBarrier();
        for (var i = 0u; i < PASSES; i++) {
            bases[i] = slots[i * ROWS + thread / SLAB];
        }
        fetch(thread, 0u);
        fetch_query(mate, 0u, line);
        if (first == here.start) {
            power = query_power(line, mate);
        }
        let unit = p.scale / power;
        score(thread, line, power);
        workgroupBarrier();
        var values: array<vec4<f32>, TILE / 4u / MATES>;
        var highest = largest;
        for (var i = 0u; i < TILE / 4u / MATES; i++) {
            let position = 4u * (i * MATES + mate);
            for (var k = 0u; k < 4u; k++) {
                let found = unit * scores[head * SCORE_PITCH + position + k];
                values[i][k] = select(LOWEST, found, first + position + k < here.end);
                highest = max(highest, values[i][k]);
            }
        }
        highest = highest_of_mates(highest);
        let correction = exp(largest - highest);
        largest = highest;
        total *= correction;
        for (var i = 0u; i < TILE / 4u / MATES; i++) {
            let weights = exp(values[i] - highest);
            total += dot(weights, vec4(1.0));
            put_line(head * PITCH + i * MATES + mate, WEIGHT_POWER * weights);
        }
        if (mate == 0u) {
            corrections[head] = correction;
        }
        workgroupBarrier();
        if (SINGLE == 1u) {
            // One tile: nothing is added to, so a loop will do.
            for (var slab = 0u; slab < LATENT_SLABS; slab += p.one) {
                write(thread, mix(thread, slab, Sum()), row, heads, slab);
            }
            continue;
        }
        if (first > here.start) {
            if (thread == 0u) {
                var some = false;
                for (var i = 0u; i < HEADS; i += p.one) {
                    some = some || corrections[i] != 1.0;
                }
                moved = vec4(u32(some));
            }
            if (workgroupUniformLoad(&moved).x != 0u) {
                sum0 = corrected(thread, sum0);
                if (LATENT_SLABS > 1u) { sum1 = corrected(thread, sum1); }
                if (LATENT_SLABS > 2u) { sum2 = corrected(thread, sum2); }
                if (LATENT_SLABS > 3u) { sum3 = corrected(thread, sum3); }
                if (LATENT_SLABS > 4u) { sum4 = corrected(thread, sum4); }
                if (LATENT_SLABS > 5u) { sum5 = corrected(thread, sum5); }
                if (LATENT_SLABS > 6u) { sum6 = corrected(thread, sum6); }
                if (LATENT_SLABS > 7u) { sum7 = corrected(thread, sum7); }
            }
        }
        sum0 = mix(thread, 0u, sum0);
        if (LATENT_SLABS > 1u) { sum1 = mix(thread, 1u, sum1); }
        if (LATENT_SLABS > 2u) { sum2 = mix(thread, 2u, sum2); }
        if (LATENT_SLABS > 3u) { sum3 = mix(thread, 3u, sum3); }
        if (LATENT_SLABS > 4u) { sum4 = mix(thread, 4u, sum4); }
        if (LATENT_SLABS > 5u) { sum5 = mix(thread, 5u, sum5); }
        if (LATENT_SLABS > 6u) { sum6 = mix(thread, 6u, sum6); }
        if (LATENT_SLABS > 7u) { sum7 = mix(thread, 7u, sum7); }
    }

    for (var i = 1u; i < MATES; i = 2u * i) {
        total += subgroupShuffleXor(total, i);
    }
    if (mate == 0u && head_first + head < p.heads) {
        // With the powers that are on the parts.
        stats[segment * p.heads + head_first + head] = vec2(largest, total * f32(LATENT_POWER) * WEIGHT_POWER);
    }
    if (SINGLE == 1u) {
        return;
    }
    write(thread, sum0, row, heads, 0u);
    if (LATENT_SLABS > 1u) { write(thread, sum1, row, heads, 1u); }
    if (LATENT_SLABS > 2u) { write(thread, sum2, row, heads, 2u); }
    if (LATENT_SLABS > 3u) { write(thread, sum3, row, heads, 3u); }
    if (LATENT_SLABS > 4u) { write(thread, sum4, row, heads, 4u); }
    if (LATENT_SLABS > 5u) { write(thread, sum5, row, heads, 5u); }
    if (LATENT_SLABS > 6u) { write(thread, sum6, row, heads, 6u); }
    if (LATENT_SLABS > 7u) { write(thread, sum7, row, heads, 7u); }
}
