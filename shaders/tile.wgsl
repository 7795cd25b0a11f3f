// Included: products of two tiles in shared memory, TILE_ROWS by TILE_COLUMNS sums over SLAB cells of four values each.
//
// A thread has four rows by four columns; TEAM threads have the whole tile. The teams share the slab's cells, and their
// sums are put together at the end, in the same memory. Threads write whole cells only: writing one value of a vector may
// write all of it.
//
// Row cells have four neighbouring inner values of one row. Column cells too, unless BY_COLUMNS is set: then they have
// four neighbouring columns of one inner value.

const ROW_GROUPS = TILE_ROWS / 4u;
const COLUMN_GROUPS = TILE_COLUMNS / 4u;
const TEAM = ROW_GROUPS * COLUMN_GROUPS;
const TEAMS = WORKGROUP / TEAM;
const TEAM_CELLS = SLAB / TEAMS;

// One more than there are lines, so that the cells of one line lie in different banks.
const ROW_STRIDE = TILE_ROWS + 1u;
const COLUMN_STRIDE = TILE_COLUMNS + 1u;
const GROUP_STRIDE = COLUMN_GROUPS + 1u; // with BY_COLUMNS
const COLUMNS_AT = SLAB * ROW_STRIDE;

var<workgroup> cells: array<vec4<f32>, max(SLAB * (ROW_STRIDE + 4u * GROUP_STRIDE), TEAMS * TILE_ROWS * COLUMN_GROUPS)>;

struct Place {
    team: u32,
    row: u32,    // first of the thread's; the others are ROW_GROUPS apart
    column: u32, // its group of columns: see `column_of`
}

// A row of sums for each of the thread's rows.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Neighbouring threads have few columns by few rows: few cells, read by many.
fn place(thread: u32) -> Place {
    const COLUMN_LANES = min(8u, COLUMN_GROUPS);
    let at = thread % TEAM;
    let column = at % COLUMN_LANES + at / (COLUMN_LANES * ROW_GROUPS) * COLUMN_LANES;
    return Place(thread / TEAM, (at / COLUMN_LANES) % ROW_GROUPS, column);
}

// Column `i` of four in a group.
fn column_of(group: u32, i: u32) -> u32 {
    return select(i * COLUMN_GROUPS + group, 4u * group + i, BY_COLUMNS == 1u);
}

fn put_row(cell: u32, row: u32, value: vec4<f32>) {
    cells[cell * ROW_STRIDE + row] = value;
}

fn put_column(cell: u32, column: u32, value: vec4<f32>) {
    cells[COLUMNS_AT + cell * COLUMN_STRIDE + column] = value;
}

// With BY_COLUMNS.
fn put_columns(inner: u32, group: u32, value: vec4<f32>) {
    cells[COLUMNS_AT + inner * GROUP_STRIDE + group] = value;
}

fn add_row(sums: vec4<f32>, row: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
    if (BY_COLUMNS == 1u) {
        return fma(vec4(row.w), d, fma(vec4(row.z), c, fma(vec4(row.y), b, fma(vec4(row.x), a, sums))));
    }
    var sum = fma(vec4(row.x), vec4(a.x, b.x, c.x, d.x), sums);
    sum = fma(vec4(row.y), vec4(a.y, b.y, c.y, d.y), sum);
    sum = fma(vec4(row.z), vec4(a.z, b.z, c.z, d.z), sum);
    return fma(vec4(row.w), vec4(a.w, b.w, c.w, d.w), sum);
}

// Adds the slab's products to a thread's sums. `one` is 1.
fn multiply(at: Place, before: Sums, one: u32) -> Sums {
    var sums = before;
    for (var i = 0u; i < TEAM_CELLS; i += one) {
        let cell = at.team * TEAM_CELLS + i;
        var column = COLUMNS_AT + cell * COLUMN_STRIDE + at.column;
        var step = COLUMN_GROUPS;
        if (BY_COLUMNS == 1u) {
            column = COLUMNS_AT + 4u * cell * GROUP_STRIDE + at.column;
            step = GROUP_STRIDE;
        }
        let a = cells[column];
        let b = cells[column + step];
        let c = cells[column + 2u * step];
        let d = cells[column + 3u * step];
        let row = cell * ROW_STRIDE + at.row;
        sums.a = add_row(sums.a, cells[row], a, b, c, d);
        sums.b = add_row(sums.b, cells[row + ROW_GROUPS], a, b, c, d);
        sums.c = add_row(sums.c, cells[row + 2u * ROW_GROUPS], a, b, c, d);
        sums.d = add_row(sums.d, cells[row + 3u * ROW_GROUPS], a, b, c, d);
    }
    return sums;
}

// Brings a thread's sums where `sum_at` finds them; the slab is gone.
fn put_sums(at: Place, sums: Sums) {
    let first = (at.team * TILE_ROWS + at.row) * COLUMN_GROUPS + at.column;
    cells[first] = sums.a;
    cells[first + ROW_GROUPS * COLUMN_GROUPS] = sums.b;
    cells[first + 2u * ROW_GROUPS * COLUMN_GROUPS] = sums.c;
    cells[first + 3u * ROW_GROUPS * COLUMN_GROUPS] = sums.d;
}

// The sums of a group of columns.
fn sum_at(row: u32, group: u32) -> vec4<f32> {
    var sum = cells[row * COLUMN_GROUPS + group];
    for (var team = 1u; team < TEAMS; team++) {
        sum += cells[(team * TILE_ROWS + row) * COLUMN_GROUPS + group];
    }
    return sum;
}
