//! The published schemes: their memory figure on the three networks that they are for, and what they train.

use tinyforge_compiler::ir::graph::{Graph, Kind, Region};
use tinyforge_compiler::passes::parameterize::{self, Parameters, Storage};
use tinyforge_compiler::passes::{differentiate, prune};
use tinyforge_compiler::scheme::published::{PUBLISHED, published_bits};
use tinyforge_compiler::scheme::{Scheme, SchemeKind, Sparse, SparseWeight};
use tinyforge_plan::DType;
use tinyforge_tests::convnets::{MBV2, MCUNET, PROXYLESS, graph, rows};
use tinyforge_tests::graphs::{assert_text_is_graph, assert_verified};

const STORAGE: Storage = Storage { trained: DType::F32, frozen: None };

fn net(name: &str) -> Graph {
    let table = match name {
        "mcunet-5fps" => MCUNET,
        "mbv2-w0.35" => MBV2,
        _ => PROXYLESS,
    };
    graph(&rows(table), 1, 10)
}

fn parameterized(mut graph: Graph, scheme: &Scheme) -> (Graph, Parameters) {
    let parameters = parameterize::run(&mut graph, scheme, STORAGE, 0).expect("the scheme suits the net");
    (graph, parameters)
}

/// The figure in KiB.
fn kib(name: &str, scheme: &Scheme) -> f64 {
    let (graph, parameters) = parameterized(net(name), scheme);
    published_bits(&graph, &parameters.trained) as f64 / 8.0 / 1024.0
}

#[test]
fn tables_have_the_published_lengths() {
    for (table, convs, head) in [(MCUNET, 42, 160), (MBV2, 51, 112), (PROXYLESS, 60, 96)] {
        let rows = rows(table);
        assert_eq!((rows.len(), rows[rows.len() - 1].channels[1]), (convs, head));
        let chained = rows.windows(2).all(|w| w[0].channels[1] == w[1].channels[0] && w[0].sides[1] == w[1].sides[0]);
        assert!(chained, "every convolution reads what the one before makes");
    }
}

#[test]
fn published_figures_come_out() {
    for published in &PUBLISHED {
        let found = kib(published.net, &published.scheme());
        assert_eq!(found as u64, published.label_kib, "{} {}kb is {found}", published.net, published.label_kib);
    }
}

#[test]
fn the_last_twelve_convolutions_are_448_kib() {
    let weights = (30..42).map(|layer| SparseWeight::of_layer(layer, 1.0)).collect();
    let kind = SchemeKind::Sparse(Sparse { bias_last: Some(12), weights });
    let found = kib("mcunet-5fps", &Scheme { kind, head: true, embed: false });
    assert!((448.04..448.06).contains(&found), "it is {found}");
}

/// The convolution that a value's name belongs to.
fn conv_of(name: &str) -> Option<u32> {
    name.strip_prefix("convs.")?.split('.').next()?.parse().ok()
}

/// Backward ends at the lowest trained convolution: no mask, no gradient and no saved image is left below it.
#[test]
fn nothing_is_left_below_the_lowest_trained_convolution() {
    for published in &PUBLISHED {
        let (mut graph, parameters) = parameterized(net(published.net), &published.scheme());
        let convs = graph.nodes.iter().filter(|n| n.outs[0] != n.args[0] && n.args.len() == 4).count() as u32 - 1;
        differentiate::run(&mut graph).expect("all ops have gradients");
        prune::run(&mut graph, |name| parameters.trained.iter().any(|t| t == name));
        assert_verified(&graph);
        assert_text_is_graph(&graph);
        let biases = convs - published.bias_last;
        let trained = published.weights.iter().filter(|w| w.1 > 0.0).map(|w| w.0);
        let lowest = trained.min().unwrap_or(biases).min(biases);
        let backward =
            graph.nodes.iter().filter(|n| n.region == Region::Backward).flat_map(|n| n.outs.iter().chain(&n.args));
        let below: Vec<&str> = backward
            .chain(graph.nodes.iter().filter(|n| n.region == Region::Forward).flat_map(|n| n.outs.iter().skip(1)))
            .map(|&v| graph.info(v).name.as_str())
            .filter(|name| conv_of(name).is_some_and(|conv| conv + 1 < lowest))
            .collect();
        assert!(below.is_empty(), "{} {}: {below:?}", published.net, published.label_kib);
        let grads = graph.results.iter().filter(|(name, _)| name.starts_with("grad:")).count();
        assert_eq!(grads, parameters.trained.len());
    }
}

#[test]
fn schemes_count_convolutions() {
    let trained = |scheme: &str| {
        let (graph, parameters) = parameterized(net("mcunet-5fps"), &Scheme::parse(scheme).expect("a scheme"));
        assert!(graph.values.iter().all(|v| v.decl != Some(Kind::Weight) || !v.ty.dtype.is_float()));
        parameters.trained
    };
    let head = ["head.weight", "head.bias"];
    let biases = trained("bias:3");
    assert_eq!(biases, ["convs.39.bias", "convs.40.bias", "convs.41.bias", head[0], head[1]]);
    assert_eq!(trained("bias").len(), 42 + 2);
    assert_eq!(trained("full").len(), 2 * (42 + 1));
    // The last block: 39, 40 and 41.
    assert_eq!(trained("last:1").len(), 2 * (3 + 1));
    assert!(trained("last:1").contains(&"convs.39.weight".to_string()));
    // Half of the biases, and what expands channels in the upper quarter.
    let sparse = trained("sparse");
    assert_eq!(sparse.iter().filter(|n| n.ends_with(".bias")).count(), 21 + 1);
    let weights: Vec<&String> = sparse.iter().filter(|n| n.ends_with(".weight")).collect();
    assert_eq!(weights, ["convs.33.weight", "convs.36.weight", "convs.39.weight", "head.weight"]);
}

#[test]
fn schemes_that_do_not_suit_are_refused() {
    let fails = |scheme: Scheme, part: &str| {
        let error = parameterize::run(&mut net("mcunet-5fps"), &scheme, STORAGE, 0).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    };
    fails(Scheme::parse("lora").expect("a scheme"), "an int8 model has none");
    fails(Scheme::parse("bias:43").expect("a scheme"), "the model has 42");
    fails(Scheme::parse("last:15").expect("a scheme"), "asks for 15 blocks, the model has 14");
    let weights = vec![SparseWeight::of_layer(42, 1.0)];
    let kind = SchemeKind::Sparse(Sparse { bias_last: Some(1), weights });
    fails(Scheme { kind, head: true, embed: false }, "`layer 42` is no convolution");
}
