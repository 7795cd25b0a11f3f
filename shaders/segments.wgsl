// Included: what the kernels of attention are given, and the segments of positions that their workgroups have.

const LOWEST = -3.0e38;

struct Params {
    heads: u32,
    segments_at: u32, // where the segments begin in `batch`
    first: u32,       // the dispatch's segments
    count: u32,
    scale: f32,
    one: u32, // steps by it keep a loop from being unrolled: the code of a layer's kernels should stay in the cache
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>; // largest score, sum: [segment, head]
@group(0) @binding(4) var<storage, read> batch: array<u32>; // segments, page tables

struct Segment {
    token: u32,
    start: u32, // its positions
    end: u32,
    table: u32, // where its page table begins
}

// The last segments first: in a prompt they are the longest.
fn segment_of(workgroup: u32) -> u32 {
    return p.first + p.count - 1u - workgroup;
}

fn segment_at(segment: u32) -> Segment {
    let at = p.segments_at + 4u * segment;
    return Segment(batch[at], batch[at + 1u], batch[at + 2u], batch[at + 3u]);
}

// The cache slot of a position, the last one's for those behind.
fn slot_of(segment: Segment, position: u32) -> u32 {
    let inside = min(position, segment.end - 1u);
    return batch[segment.table + inside / PAGE] * PAGE + inside % PAGE;
}
