// Sums over lanes and workgroups, with subgroups of LANES lanes.

var<workgroup> reduction: array<f32, WORKGROUP / LANES>;

// (subgroupAdd does the same with several times the code where lanes might be missing.)
fn lanes_sum(value: f32, thread: u32) -> f32 {
    var sum = value;
    for (var mask = 1u; mask < LANES; mask = mask << 1u) {
        sum += from_lane_xor(sum, mask);
    }
    return sum;
}

fn workgroup_sum(value: f32, thread: u32) -> f32 {
    let part = lanes_sum(value, thread);
    if ((thread & (LANES - 1u)) == 0u) {
        reduction[thread / LANES] = part;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WORKGROUP / LANES; i++) {
        sum += reduction[i];
    }
    workgroupBarrier();
    return sum;
}

// The value of the lane whose number differs in the bits of `mask`.
fn from_lane_xor(value: f32, mask: u32) -> f32 {
    return subgroupShuffleXor(value, mask);
}
