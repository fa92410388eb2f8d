//! Says of every parameter how it is stored and trained.
//!
//! Before: a forward graph as imported. After: the same function of the same inputs, where
//! - trained tensors have the train storage type; vectors and adapters are f32;
//! - low-rank adapters stand beside the linear layers they are for;
//! - weights of which only columns are trained are read by `linear_sub`, or, in int8 graphs, have a const
//!   `<weight>.index` that their gradient reads.
//!
//! A tensor that the file holds quantised and the scheme trains is dequantised once, to the train type; frozen ones
//! stay as the file has them unless a storage type is asked for.
//!
//! An int8 graph (one with int8 convolutions) keeps its storage. In it `bias:N`, `sparse:N` and the layers of a scheme
//! file count convolutions, those of the block `head` left out, and the head is always trained.

use crate::ir::attrs::Attrs;
use crate::ir::graph::{Builder, Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::scheme::{Lora, Scheme, SchemeError, SchemeKind, Sparse};
use std::collections::{BTreeMap, HashMap};
use tinyforge_plan::{DType, Source};

mod int8;

/// Storage of parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storage {
    /// Of trained matrices: f32 or bf16.
    pub trained: DType,
    /// Of frozen matrices that the file holds as floats; `None` leaves them.
    pub frozen: Option<DType>,
}

/// A tensor that the pass added, and how it starts.
#[derive(Clone, PartialEq, Debug)]
pub enum Init {
    /// Uniform in `±bound`, from the run's seed.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
    /// All zero.
    Zero,
    /// Indices of the `count` columns of a weight that have the largest L2 norm, ascending.
    TopColumns {
        /// The weight.
        of: String,
        /// The const that holds an int8 weight's scale for every output channel, up to a common factor.
        scale: Option<String>,
    },
}

/// What the scheme means for one graph.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Parameters {
    /// Names of the trained tensors.
    pub trained: Vec<String>,
    /// Added tensors with their start.
    pub added: Vec<(String, Init)>,
}

impl Parameters {
    /// What a tensor that the pass added starts as; `None` for one that the model brought.
    pub fn start_of(&self, name: &str) -> Option<Source> {
        let (_, init) = self.added.iter().find(|(added, _)| added == name)?;
        Some(match init {
            Init::Uniform { bound } => Source::Uniform { bound: *bound },
            Init::Zero => Source::Zero,
            Init::TopColumns { of, scale } => Source::TopColumns { of: of.clone(), scale: scale.clone() },
        })
    }
}

/// Applies a scheme. `group` is the active group of a `cycle`, counted from the top.
///
/// # Errors
/// The scheme does not suit the model: it names what is not there, or trains nothing.
pub fn run(graph: &mut Graph, scheme: &Scheme, storage: Storage, group: u32) -> Result<Parameters, SchemeError> {
    let map = Map::of(graph);
    let convs = int8::convs(graph);
    let mut parameters = Parameters::default();
    match &scheme.kind {
        SchemeKind::Lora(_) if map.is_int8 => {
            return Err(SchemeError::Misfit(format!("`{scheme}` adapts linear layers, an int8 model has none")));
        }
        SchemeKind::Lora(lora) => add_lora(graph, lora, &mut parameters)?,
        SchemeKind::Bias(last) if map.is_int8 => int8::train_biases(&convs, *last, &mut parameters)?,
        SchemeKind::Sparse(sparse) if map.is_int8 => int8::train_sparse(graph, &convs, sparse, &mut parameters)?,
        SchemeKind::Sparse(sparse) => add_sparse(graph, &map, sparse, &mut parameters)?,
        kind => {
            let names = map.weights.iter().filter(|(_, w)| w.layer.is_some_and(|l| map.picks(kind, group, l, w)));
            parameters.trained.extend(names.map(|(name, _)| name.clone()));
        }
    }
    let blocks = match scheme.kind {
        SchemeKind::Last(n) | SchemeKind::Cycle(n) => Some(n),
        SchemeKind::Bias(n) if !map.is_int8 => n,
        _ => None,
    };
    if let Some(n) = blocks.filter(|&n| n > map.layers) {
        return Err(SchemeError::Misfit(format!("`{scheme}` asks for {n} blocks, the model has {}", map.layers)));
    }
    let head = scheme.head || (map.is_int8 && scheme.kind != SchemeKind::Frozen);
    let ends = map.weights.iter().filter(|(_, w)| (head && w.head) || (scheme.embed && w.embed));
    parameters.trained.extend(ends.map(|(name, _)| name.clone()));
    parameters.trained.sort_by_key(|name| graph.find(name));
    parameters.trained.dedup();
    if parameters.trained.is_empty() && scheme.kind != SchemeKind::Frozen {
        let why = match scheme.kind {
            SchemeKind::Bias(_) => "the model has no biases or norm parameters there",
            _ => "nothing matches",
        };
        return Err(SchemeError::Misfit(format!("`{scheme}` trains nothing: {why}")));
    }
    let ever = match scheme.kind {
        // Every group is trained at some time, and a tensor keeps its storage.
        SchemeKind::Cycle(_) => map.weights.iter().filter(|(_, w)| w.layer.is_some()).map(|(n, _)| n.clone()).collect(),
        _ => parameters.trained.clone(),
    };
    store(graph, storage, &ever);
    Ok(parameters)
}

/// How many groups a `cycle` of `n` blocks has.
pub fn cycle_groups(graph: &Graph, n: u32) -> u32 {
    Map::of(graph).layers.div_ceil(n.max(1))
}

/// Where a weight is read.
#[derive(Default)]
struct Weight {
    layer: Option<u32>,
    head: bool,
    embed: bool,
    is_vector: bool,
}

/// What the graph says of its weights: blocks named `layers.N` or `N` are counted, `embed` and `head` are the ends.
struct Map {
    weights: BTreeMap<String, Weight>,
    layers: u32,
    is_int8: bool,
}

impl Map {
    fn of(graph: &Graph) -> Map {
        let mut order: HashMap<u32, u32> = HashMap::new();
        let mut weights: BTreeMap<String, Weight> = BTreeMap::new();
        for node in &graph.nodes {
            let block = graph.blocks[node.block as usize].as_str();
            let next = order.len() as u32;
            let is_end = matches!(block, "embed" | "head" | "");
            let layer = (!is_end).then(|| *order.entry(node.block).or_insert(next));
            for &a in node.args.iter().filter(|a| graph.info(**a).decl == Some(Kind::Weight)) {
                let weight = weights.entry(graph.info(a).name.clone()).or_default();
                weight.layer = layer.or(weight.layer);
                weight.head |= block == "head";
                weight.embed |= block == "embed";
                weight.is_vector = graph.ty(a).shape.len() == 1;
            }
        }
        let is_int8 = graph.nodes.iter().any(|n| int8::is_conv(n.op));
        Map { weights, layers: order.len() as u32, is_int8 }
    }

    fn picks(&self, kind: &SchemeKind, group: u32, layer: u32, weight: &Weight) -> bool {
        let from_top = self.layers - 1 - layer;
        match kind {
            SchemeKind::Full => true,
            SchemeKind::Last(n) => from_top < *n,
            SchemeKind::Bias(n) => weight.is_vector && n.is_none_or(|n| from_top < n),
            SchemeKind::Cycle(n) => from_top / n == group,
            SchemeKind::Frozen | SchemeKind::Lora(_) | SchemeKind::Sparse(_) => false,
        }
    }
}

fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

const ATTENTION_TARGETS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "o_proj", "c_attn"];

fn add_lora(graph: &mut Graph, lora: &Lora, parameters: &mut Parameters) -> Result<(), SchemeError> {
    let names: Vec<&str> = match lora.targets.is_empty() {
        true => ATTENTION_TARGETS.to_vec(),
        false => lora.targets.iter().map(String::as_str).collect(),
    };
    let mut hit = vec![false; names.len()];
    let nodes = std::mem::take(&mut graph.nodes);
    let mut b = Builder::new(graph);
    for node in nodes {
        let target = (node.op == Op::Linear).then(|| b.graph.info(node.args[1]).name.clone()).and_then(|weight| {
            let module = module_of(&weight);
            let all_linear = lora.targets.first().is_some_and(|t| t == "all-linear");
            let ends = |n: &&str| module.rsplit('.').next() == Some(n) || module == *n;
            let at = names.iter().position(|n| ends(n) || (all_linear && weight.contains('.')))?;
            let in_block = !matches!(b.graph.blocks[node.block as usize].as_str(), "head" | "embed");
            in_block.then(|| (module.to_string(), at))
        });
        match target {
            Some((module, at)) => {
                hit[at] = true;
                adapter(&mut b, node, &module, lora, parameters);
            }
            None => b.graph.nodes.push(node),
        }
    }
    let missed = names.iter().zip(&hit).find(|(_, hit)| !**hit && !lora.targets.is_empty());
    if let Some((name, _)) = missed {
        return Err(SchemeError::Misfit(format!("no linear layer of the model is named `{name}`")));
    }
    Ok(())
}

/// `y = x wᵀ` becomes `y + (alpha / rank) (x Aᵀ) Bᵀ`.
fn adapter(b: &mut Builder, node: Node, module: &str, lora: &Lora, parameters: &mut Parameters) {
    let (inputs, outputs) = (b.graph.ty(node.args[1]).cols(), b.graph.ty(node.args[1]).rows());
    let pairs = [("lora_A", [lora.rank, inputs]), ("lora_B", [outputs, lora.rank])];
    let [a, up] = pairs.map(|(part, shape)| {
        let name = format!("{module}.{part}.weight");
        match b.graph.find(&name) {
            Some(known) => known,
            None => {
                let bound = 1.0 / f64::from(inputs).sqrt();
                let init = if part == "lora_A" { Init::Uniform { bound } } else { Init::Zero };
                parameters.trained.push(name.clone());
                parameters.added.push((name.clone(), init));
                b.declare(Kind::Weight, &name, Type::f32(&shape))
            }
        }
    });
    let (x, y) = (node.args[0], node.outs[0]);
    let y_name = b.graph.info(y).name.clone();
    let compute = node.attrs.int("compute");
    b.at(node.block, Region::Forward);
    b.rename(y, &format!("{y_name}.base"));
    b.graph.nodes.push(node);
    let low = b.push1(&format!("{y_name}.low"), Op::Linear, &[x, a], &[("compute", compute.into())]);
    let alpha = lora.alpha / f64::from(lora.rank);
    let attrs = [("alpha", alpha.into()), ("compute", compute.into())];
    let sum = b.push1(&y_name, Op::LinearAdd, &[low, up, y], &attrs);
    exchange(b.graph, y, sum);
}

/// Nodes that are still to come read `from`, and are to read `to` in its place: the two exchange their places in the
/// table of values, and their numbers in the last nodes, which are all that mention them so far.
fn exchange(graph: &mut Graph, from: Value, to: Value) {
    graph.values.swap(from.index(), to.index());
    let swap = |v: &mut Value| {
        *v = match *v {
            v if v == from => to,
            v if v == to => from,
            v => v,
        }
    };
    let base = graph.nodes.iter().rposition(|n| n.outs.contains(&from)).expect("it has just been defined");
    graph.nodes[base..].iter_mut().flat_map(|n| n.args.iter_mut().chain(&mut n.outs)).for_each(swap);
}

/// A chosen weight: its name and how many of its columns are trained.
fn add_sparse(graph: &mut Graph, map: &Map, sparse: &Sparse, parameters: &mut Parameters) -> Result<(), SchemeError> {
    let bias_last = sparse.bias_last.unwrap_or(map.layers.div_ceil(2));
    if bias_last > map.layers {
        let why = format!("biases of the last {bias_last} blocks are asked for, the model has {}", map.layers);
        return Err(SchemeError::Misfit(why));
    }
    let biases =
        map.weights.iter().filter(|(_, w)| w.is_vector && w.layer.is_some_and(|l| map.layers - 1 - l < bias_last));
    parameters.trained.extend(biases.map(|(name, _)| name.clone()));
    for (name, ratio) in chosen_weights(graph, map, sparse)? {
        let v = graph.find(&name).expect("chosen from the graph");
        let keep = (f64::from(graph.ty(v).cols()) * ratio) as u32;
        if keep == 0 {
            continue;
        }
        if keep < graph.ty(v).cols() {
            sub_tensor(graph, v, &name, keep)?;
            parameters.added.push((format!("{name}.index"), Init::TopColumns { of: name.clone(), scale: None }));
        }
        parameters.trained.push(name);
    }
    Ok(())
}

fn chosen_weights(graph: &Graph, map: &Map, sparse: &Sparse) -> Result<Vec<(String, f64)>, SchemeError> {
    let linear: Vec<String> = graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Linear | Op::Conv2d))
        .map(|n| graph.info(n.args[1]).name.clone())
        .collect();
    if sparse.weights.is_empty() {
        const FIRST: [&str; 8] = ["q_proj", "k_proj", "v_proj", "c_attn", "gate_proj", "up_proj", "c_fc", "o_proj"];
        let upper = map.layers.div_ceil(4);
        let wanted = |name: &&String| {
            let layer = map.weights.get(*name).and_then(|w| w.layer);
            layer.is_some_and(|l| map.layers - 1 - l < upper)
                && FIRST.iter().any(|f| module_of(name).rsplit('.').next() == Some(f))
        };
        return Ok(linear.iter().filter(wanted).map(|name| (name.clone(), 0.25)).collect());
    }
    let mut chosen = Vec::new();
    for weight in &sparse.weights {
        if weight.rate != 1.0 {
            let why = format!("the rate {} of a weight is of int8 models: this one has one rate", weight.rate);
            return Err(SchemeError::Misfit(why));
        }
        let found = linear.iter().enumerate().find(|(layer, name)| weight.means(name, *layer)).map(|(_, name)| name);
        let found = found.ok_or_else(|| {
            let what = weight.tensor.clone().unwrap_or(format!("layer {}", weight.layer.unwrap_or(0)));
            SchemeError::Misfit(format!("`{what}` is no linear or convolution weight; the model has {}", linear.len()))
        })?;
        chosen.push((found.clone(), weight.ratio));
    }
    Ok(chosen)
}

/// Rewrites the linear layer that reads `w` so that only `keep` columns are trained.
fn sub_tensor(graph: &mut Graph, w: Value, name: &str, keep: u32) -> Result<(), SchemeError> {
    let readers: Vec<usize> = (0..graph.nodes.len()).filter(|&i| graph.nodes[i].args.contains(&w)).collect();
    let [at] = readers[..] else {
        return Err(SchemeError::Misfit(format!(
            "`{name}` is used {} times, a share of it cannot be trained",
            readers.len()
        )));
    };
    if graph.nodes[at].op != Op::Linear {
        return Err(SchemeError::Misfit(format!("`{name}`: channels can be chosen of linear layers only")));
    }
    let tail = graph.nodes.split_off(at);
    let node = tail[0].clone();
    let mut b = Builder::new(graph);
    b.at(node.block, Region::Forward);
    let index = b.declare(Kind::Const, &format!("{name}.index"), Type::i32(&[keep]));
    let out_name = b.graph.info(node.outs[0]).name.clone();
    let xs = b.push1(&format!("{out_name}.inputs"), Op::GatherCols, &[node.args[0], index], &[]);
    let mut args = vec![node.args[0], w, xs];
    args.extend(&node.args[2..]);
    let given = ["compute", "rows"].map(|name| (name, node.attrs.int(name).into()));
    let attrs = Attrs::of(Op::LinearSub.def().attrs, &given);
    graph.nodes.push(Node { op: Op::LinearSub, args, attrs, ..node });
    graph.nodes.extend(tail.into_iter().skip(1));
    Ok(())
}

fn store(graph: &mut Graph, storage: Storage, trained: &[String]) {
    let is_integer = |dtype: DType| matches!(dtype, DType::I8 | DType::I32);
    for info in graph.values.iter_mut().filter(|v| v.decl == Some(Kind::Weight) && !is_integer(v.ty.dtype)) {
        let is_vector = info.ty.shape.len() == 1;
        let is_trained = trained.contains(&info.name);
        let is_adapter = info.name.contains(".lora_");
        info.ty.dtype = match (is_vector || is_adapter, is_trained, storage.frozen) {
            (true, ..) => DType::F32,
            (false, true, _) => storage.trained,
            (false, false, Some(dtype)) if info.ty.dtype.is_float() => dtype,
            _ => info.ty.dtype,
        };
    }
}
