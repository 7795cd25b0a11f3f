// Sums over LANES neighbouring threads and over workgroups, without subgroups.

var<workgroup> reduction: array<f32, WORKGROUP>;

fn sum_of(value: f32, thread: u32, first: u32, count: u32) -> f32 {
    reduction[thread] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < count; i++) {
        sum += reduction[first + i];
    }
    workgroupBarrier();
    return sum;
}

fn lanes_sum(value: f32, thread: u32) -> f32 {
    return sum_of(value, thread, thread & ~(LANES - 1u), LANES);
}

fn workgroup_sum(value: f32, thread: u32) -> f32 {
    return sum_of(value, thread, 0u, WORKGROUP);
}

// Not used without subgroups.
fn from_lane_xor(value: f32, mask: u32) -> f32 {
    return value;
}
