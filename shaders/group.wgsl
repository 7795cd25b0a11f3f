// Sorts (token, choice) pairs by expert and cuts each expert's pairs into tiles; one workgroup.
//
// `tiles[0].x` is how many tiles there are; a tile is expert, first of `sorted`, count. The order of an expert's pairs
// is any: a pair's result does not depend on its place.

struct Params {
    pairs: u32,
    tile: u32, // a tile has no more pairs
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> sorted: array<u32>;
@group(0) @binding(2) var<storage, read_write> tiles: array<vec4<u32>>;

const EACH = (EXPERTS + WORKGROUP - 1u) / WORKGROUP; // experts of a thread

var<workgroup> counts: array<atomic<u32>, EXPERTS>; // then where an expert's next pair goes
var<workgroup> totals: array<vec2<u32>, WORKGROUP>; // pairs and tiles up to a thread's experts

fn expert(pair: u32) -> u32 {
    return min(ids[pair], EXPERTS - 1u);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) thread: u32) {
    for (var e = thread; e < EXPERTS; e += WORKGROUP) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var i = thread; i < p.pairs; i += WORKGROUP) {
        atomicAdd(&counts[expert(i)], 1u);
    }
    workgroupBarrier();
    var mine = vec2(0u);
    for (var k = 0u; k < EACH; k++) {
        let e = thread * EACH + k;
        if (e < EXPERTS) {
            let count = atomicLoad(&counts[e]);
            mine += vec2(count, (count + p.tile - 1u) / p.tile);
        }
    }
    totals[thread] = mine;
    workgroupBarrier();
    for (var distance = 1u; distance < WORKGROUP; distance = distance * 2u) {
        var before = vec2(0u);
        if (thread >= distance) {
            before = totals[thread - distance];
        }
        workgroupBarrier();
        totals[thread] += before;
        workgroupBarrier();
    }
    var next = totals[thread] - mine;
    for (var k = 0u; k < EACH; k++) {
        let e = thread * EACH + k;
        if (e < EXPERTS) {
            let count = atomicLoad(&counts[e]);
            atomicStore(&counts[e], next.x);
            for (var done = 0u; done < count; done += p.tile) {
                tiles[1u + next.y] = vec4(e, next.x + done, min(p.tile, count - done), 0u);
                next.y += 1u;
            }
            next.x += count;
        }
    }
    if (thread == WORKGROUP - 1u) {
        tiles[0] = vec4(totals[thread].y, 0u, 0u, 0u);
    }
    workgroupBarrier();
    for (var i = thread; i < p.pairs; i += WORKGROUP) {
        sorted[atomicAdd(&counts[expert(i)], 1u)] = i;
    }
}
