// One more submission is done: the last kernel of each says so. The host compares (kimi-quant/src/gpu/tally.rs).

@group(0) @binding(0) var<storage, read_write> done: array<u32>;

@compute @workgroup_size(1)
fn main() {
    done[0] += 1u;
}
