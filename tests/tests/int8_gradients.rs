//! Gradients of whole int8 networks against central finite differences of the definitions that do not round: zero
//! points, masks of clamped results, and values that several layers read, whose gradients add.

use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::passes::differentiate;
use tinyforge_tests::convnets::{contents, graph, rows};
use tinyforge_tests::graphs::assert_close;
use tinyforge_tests::random::Random;

const STEP: f64 = 1e-5;

/// Two sums follow each other, so that the first is read by a convolution and by the second.
const RESIDUAL: &str = "0: 3x3/2 3->6 8-4 | 1: dw3 6->6 4-4 | 2: 1x1 6->5 4-4 | 3: 1x1 5->12 4-4 | 4: dw3 12->12 4-4 |
    5: 1x1 12->5 4-4 + | 6: 1x1 5->9 4-4 | 7: dw3 9->9 4-4 | 8: 1x1 9->5 4-4 + | 9: 1x1 5->8 4-4 |
    10: dw5/2 8->8 4-2 | 11: 1x1 8->7 2-2";

/// Every kind of convolution, nothing added.
const PLAIN: &str = "0: 3x3 2->8 5-5 | 1: 3x3/2 8->10 5-3 | 2: dw5 10->10 3-3 | 3: 5x5/2 10->8 3-2 | 4: dw3 8->8 2-2";

fn filled(graph: &Graph, v: Value, seed: u64) -> Tensor {
    let info = graph.info(v);
    let mut random = Random::new(seed << 8 | u64::from(v.0));
    let mut tensor = Tensor::zeros(&info.ty);
    let mut fill = |of: &mut dyn FnMut(&mut Random) -> f64| tensor.data.iter_mut().for_each(|x| *x = of(&mut random));
    match info.name.as_str() {
        "images" => fill(&mut |r| r.below(256) as f64 - 128.0),
        "labels" => fill(&mut |r| r.below(4) as f64),
        // Gradients of the last layers are around 1.
        "loss_weights" => fill(&mut |r| r.within(50.0, 100.0)),
        name => return contents(name, &info.ty, taps(graph, name)),
    }
    tensor
}

/// Products in an output of the convolution that a scale belongs to.
fn taps(graph: &Graph, name: &str) -> u32 {
    let weight = name.rsplit_once('.').and_then(|(conv, _)| graph.find(&format!("{conv}.weight")));
    let shape = weight.map(|w| graph.ty(w).shape.clone()).unwrap_or_default();
    match shape[..] {
        [_, r, s, i] => r * s * i,
        [r, s, _] => r * s,
        _ => 1,
    }
}

/// How often the most read value of the graph is read by its nodes.
fn most_read(graph: &Graph) -> usize {
    let is_image = |v: &Value| matches!(graph.ty(*v), Type { shape, .. } if shape.len() == 4);
    let uses = graph.uses();
    let made = graph.nodes.iter().flat_map(|n| &n.outs).filter(|v| is_image(v));
    made.map(|v| uses[v.index()].len()).max().unwrap_or(0)
}

fn check(table: &str, batch: u32, seed: u64) {
    let forward = graph(&rows(table), batch, 4);
    let mut differentiated = forward.clone();
    differentiate::run(&mut differentiated).expect("all rows have gradients");
    let memory = Memory::run_smooth(&differentiated, |v| filled(&differentiated, v, seed));
    let loss = |change: (Value, usize, f64)| -> Vec<f64> {
        let memory = Memory::run_smooth(&forward, |v| {
            let mut tensor = filled(&forward, v, seed);
            if v == change.0 {
                tensor.data[change.1] += change.2;
            }
            tensor
        });
        memory.get(forward.result("loss").expect("the net has one")).data.clone()
    };
    let mut passes = 0;
    for w in forward.declared(Kind::Weight) {
        let name = &forward.info(w).name;
        let grad = differentiated.result(&format!("grad:{name}")).expect("the loss depends on it");
        let found = &memory.get(grad).data;
        // Some elements of each tensor, other ones for another seed.
        let places: Vec<usize> = (seed as usize % 5..found.len()).step_by(1 + found.len() / 6).collect();
        let difference = |&i: &usize| -> f64 {
            let (up, down) = (loss((w, i, STEP)), loss((w, i, -STEP)));
            up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * STEP)).sum()
        };
        let wanted: Vec<f64> = places.iter().map(difference).collect();
        let found: Vec<f64> = places.iter().map(|&i| found[i]).collect();
        // Backward is sums in f32, layer behind layer.
        let size = wanted.iter().fold(1e-3f64, |most, g| most.max(g.abs()));
        assert_close(&format!("seed {seed}, {name}"), &found, &wanted, 1e-4, size);
        passes += wanted.iter().filter(|g| **g != 0.0).count();
    }
    assert!(passes > 20, "{passes} gradients are not 0");
}

#[test]
fn gradients_of_values_that_are_read_twice_add() {
    let net = graph(&rows(RESIDUAL), 1, 4);
    assert_eq!(most_read(&net), 2, "a residual net reads values twice");
    assert_eq!(net.nodes.iter().filter(|n| n.op == Op::I8Add).count(), 2);
    (1..=2).for_each(|seed| check(RESIDUAL, seed as u32, seed));
}

#[test]
fn gradients_of_every_kind_of_convolution_are_differences() {
    (1..=3).for_each(|seed| check(PLAIN, 1 + seed as u32 % 2, seed));
}
