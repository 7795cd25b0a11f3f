// Included by products in floating point: a unit of activations as they multiply a unit of codes. What the codes' places ask for
// is filled in for PLACES: of quad `q`, what each of its four activations is multiplied by.

struct Prepared {
    values: array<vec4<f32>, 8>, // scaled to the places that codes have in a float
    sums: array<f32, PARTS>,     // of the activations of each group
}

fn prepare(values: array<vec4<f32>, 8>, factor: f32) -> Prepared {
    var prepared: Prepared;
    @unroll for (var part = 0u; part < PARTS; part++) {
        var sum = vec4(0.0);
        @unroll for (var q = part * (8u / PARTS); q < (part + 1u) * (8u / PARTS); q++) {
            let value = values[q] * factor;
            sum += value;
            prepared.values[q] = value * PLACES;
        }
        prepared.sums[part] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    return prepared;
}
