//! Plans of small models.

use super::predict::RateSource;
use super::*;
use crate::layer_state::LayerState;

fn node(id: &str, memory: u64) -> Node {
    Node::new(id, memory, 1.0)
}

fn bytes(layers: Vec<u64>) -> ModelBytes {
    // 4 bytes a token and layer.
    let states = vec![LayerState::LatentPages { width: 1 }; layers.len()];
    ModelBytes { embedding: 5, token_layers: layers.clone(), layers, head: 7, hidden: 4, states }
}

fn layers(plan: &Plan) -> Vec<(&str, Range<usize>)> {
    plan.stages.iter().map(|s| (s.node.as_str(), s.layers())).collect()
}

#[test]
fn says_by_how_much_it_does_not_fit() {
    let (b, nodes) = (bytes(vec![100; 4]), [node("a", 150), node("b", 150)]);
    let error = Plan::new(&b, &nodes, 0).unwrap_err();
    let PlanError::DoesNotFit { needed, usable, total_needed, total_usable, .. } = &error else {
        panic!("{error:?}")
    };
    // 207 and 205 of weights, each with 2 of scratch.
    assert_eq!((*needed, *usable, *total_needed, *total_usable), (209, 150, 416, 300));
    assert!(error.to_string().contains("59 bytes too little"), "{error}");
    let plan = Plan::regardless(&b, &nodes, 0).unwrap();
    assert_eq!(layers(&plan), [("a", 0..2), ("b", 2..4)]);
    assert_eq!(plan.stages.iter().map(|s| s.missing_bytes).collect::<Vec<_>>(), [57, 59]);
}

#[test]
fn refuses_more_nodes_than_layers() {
    let nodes = [node("a", 10), node("b", 10)];
    assert_eq!(Plan::new(&bytes(vec![1]), &nodes, 0), Err(PlanError::TooManyNodes { nodes: 2, layers: 1 }));
    assert_eq!(Plan::new(&bytes(vec![1]), &[], 0), Err(PlanError::NoNodes));
}

#[test]
fn memory_that_is_not_free_is_not_used() {
    let b = bytes(vec![100; 4]);
    let mut nodes = [node("a", 1000), node("b", 1000)];
    nodes[0].free = Some(150); // 31 of it is the reserve
    assert_eq!(layers(&Plan::new(&b, &nodes, 0).unwrap()), [("a", 0..1), ("b", 1..4)]);
    nodes[1].free = Some(300);
    assert!(matches!(Plan::new(&b, &nodes, 0), Err(PlanError::DoesNotFit { .. })));
}

#[test]
fn the_fast_node_gets_what_fits_it() {
    let rate = |bytes_per_second| Some(Rate { bytes_per_second, flops: None, source: RateSource::Flag });
    let b = bytes(vec![100; 10]);
    let mut nodes = [node("quick", 850), node("slow", 2000)];
    // Equally fast: by memory.
    (nodes[0].rate, nodes[1].rate) = (rate(1e9), rate(1e9));
    assert_eq!(layers(&Plan::new(&b, &nodes, 0).unwrap())[0].1, 0..3);
    nodes[0].rate = rate(4e9);
    let plan = Plan::new(&b, &nodes, 0).unwrap();
    assert_eq!(layers(&plan)[0].1, 0..8);
    assert!(plan.reason.contains("predicted time"), "{}", plan.reason);
    let found = plan.predict(&b, Link::default()).unwrap();
    let expected = 800.0 / 4e9 / predict::EFFICIENCY;
    assert!((found.stage_seconds[0] - expected).abs() < 1e-12, "{found:?}");
    // Nothing is predicted of a node that nothing is known of.
    nodes[1].rate = None;
    let plan = Plan::new(&b, &nodes, 0).unwrap();
    assert!(plan.predict(&b, Link::default()).is_none() && plan.reason.contains("by bytes"));
}

#[test]
fn layers_set_by_hand_are_kept() {
    let b = bytes(vec![100; 10]);
    let mut nodes = [node("a", 2000), node("b", 2000), node("me", 2000)];
    let mut of = |set: &[(usize, Range<usize>)]| {
        for node in &mut nodes {
            node.layers = None;
        }
        for (n, range) in set {
            nodes[*n].layers = Some(range.clone());
        }
        Plan::new(&b, &nodes, 0)
            .map(|plan| plan.stages.iter().map(|s| (s.node.clone(), s.layers())).collect::<Vec<_>>())
    };
    let is = |found: Result<Vec<(String, Range<usize>)>, PlanError>, expected: [(&str, Range<usize>); 3]| {
        let expected: Vec<_> = expected.into_iter().map(|(id, range)| (id.to_owned(), range)).collect();
        assert_eq!(found, Ok(expected));
    };
    is(of(&[(1, 0..6)]), [("b", 0..6), ("a", 6..8), ("me", 8..10)]);
    is(of(&[(2, 9..10), (0, 0..2)]), [("a", 0..2), ("b", 2..9), ("me", 9..10)]);
    is(of(&[(0, 4..8)]), [("b", 0..4), ("a", 4..8), ("me", 8..10)]);
    is(of(&[(0, 5..9), (1, 0..5), (2, 9..10)]), [("b", 0..5), ("a", 5..9), ("me", 9..10)]);
    for (set, part) in [
        (&[(0, 0..4), (1, 3..6)][..], "layer 3"),
        (&[(0, 0..11)], "10 layers"),
        (&[(2, 0..3)], "me holds the last layers"),
        (&[(0, 2..4), (1, 6..8)], "0-1"),
        (&[(0, 0..5), (1, 5..10)], "nothing is left for me"),
        (&[(0, 0..5), (2, 5..10)], "nothing is left for b"),
    ] {
        let error = of(set).unwrap_err();
        assert!(matches!(error, PlanError::Layers(_)), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
