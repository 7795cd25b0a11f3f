//! Consecutive ranges of layers for nodes in a given order, by dynamic programming.

use std::ops::Range;

/// A node's cost for a range of layers; infinite where it can't hold it.
pub(super) type Cost<'a> = dyn Fn(usize, &Range<usize>) -> f64 + 'a;

/// The split with the least cost: the costs of the nodes taken together by `together`, which must not fall when one of them
/// rises. Each node gets a layer at least. `None` if each split costs infinitely much.
pub(super) fn split(
    nodes: usize,
    layers: usize,
    cost: &Cost<'_>,
    together: fn(f64, f64) -> f64,
) -> Option<Vec<Range<usize>>> {
    // [nodes used][layers placed]: the least cost, and where the last of those nodes starts.
    let mut best = vec![vec![(f64::INFINITY, 0usize); layers + 1]; nodes + 1];
    best[0][0] = (0.0, 0);
    for n in 0..nodes {
        for end in n + 1..=layers {
            for start in n..end {
                let before = best[n][start].0;
                if before.is_finite() {
                    let all = together(before, cost(n, &(start..end)));
                    if all < best[n + 1][end].0 {
                        best[n + 1][end] = (all, start);
                    }
                }
            }
        }
    }
    if best[nodes][layers].0.is_infinite() {
        return None;
    }
    let mut ranges = Vec::with_capacity(nodes);
    let mut end = layers;
    for n in (1..=nodes).rev() {
        let start = best[n][end].1;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    Some(ranges)
}

/// Halvings in the search for the least full split.
const HALVINGS: usize = 24;

/// Of the splits that take at most `slack` times as long as the fastest one that fits (no node over 1.0 full): the least full.
/// `None` if none fits.
pub(super) fn fast(
    nodes: usize,
    layers: usize,
    fill: &Cost<'_>,
    time: &Cost<'_>,
    slack: f64,
) -> Option<Vec<Range<usize>>> {
    let sum = |ranges: &[Range<usize>]| ranges.iter().enumerate().map(|(n, r)| time(n, r)).sum::<f64>();
    let fastest = |max: f64| {
        let cost = |n: usize, r: &Range<usize>| if fill(n, r) <= max { time(n, r) } else { f64::INFINITY };
        split(nodes, layers, &cost, |a, b| a + b)
    };
    let mut found = fastest(1.0)?;
    let limit = sum(&found) * slack;
    let (mut too_low, mut enough) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let max = 0.5 * (too_low + enough);
        match fastest(max).filter(|ranges| sum(ranges) <= limit) {
            Some(ranges) => (enough, found) = (max, ranges),
            None => too_low = max,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against trying every split of three nodes.
        #[test]
        fn no_split_is_better(
            layers in proptest::collection::vec(1u64..1000, 3..12),
            room in proptest::array::uniform3(1.0f64..5000.0),
            rate in proptest::array::uniform3(1.0f64..10.0),
        ) {
            let need = |r: &Range<usize>| layers[r.clone()].iter().sum::<u64>() as f64;
            let fill = |n: usize, r: &Range<usize>| need(r) / room[n];
            let time = |n: usize, r: &Range<usize>| need(r) / rate[n];
            let count = layers.len();
            let all: Vec<_> = (1..count - 1)
                .flat_map(|i| (i + 1..count).map(move |j| [0..i, i..j, j..count]))
                .collect();
            let fullest = |s: &[Range<usize>]| (0..3).map(|n| fill(n, &s[n])).fold(0.0, f64::max);
            let whole = |s: &[Range<usize>]| (0..3).map(|n| time(n, &s[n])).sum::<f64>();
            let found = split(3, count, &fill, f64::max).unwrap();
            prop_assert!(all.iter().any(|s| s[..] == found[..]));
            for other in &all {
                prop_assert!(fullest(&found) <= fullest(other));
            }
            let fitting: Vec<_> = all.iter().filter(|s| fullest(&s[..]) <= 1.0).collect();
            let quick = fast(3, count, &fill, &time, 1.1);
            prop_assert_eq!(quick.is_some(), !fitting.is_empty());
            if let Some(quick) = quick {
                let best = fitting.iter().map(|s| whole(&s[..])).fold(f64::INFINITY, f64::min);
                prop_assert!(fullest(&quick) <= 1.0 && whole(&quick) <= best * 1.1001);
                for other in fitting.iter().filter(|s| whole(&s[..]) <= best * 1.0999) {
                    prop_assert!(fullest(&quick) <= fullest(&other[..]) + 1e-4);
                }
            }
        }
    }
}
