//! The data of a plan.

use crate::DType;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A compiled run: what is stored where, and the straight-line code of every entry.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// What was planned, in a word or two: model and scheme.
    pub name: String,
    /// The memories, sections of one range of addresses, in ascending order: far ones first, the near one last.
    pub spaces: Vec<Space>,
    /// Every tensor starts at a multiple of this, a power of two.
    pub align_bytes: u32,
    /// The model's files, as they were named to the compiler.
    pub files: Vec<String>,
    /// Weights, state and constants: they keep their place from load to end.
    pub stored: Vec<Stored>,
    /// `train`, `eval`, `prefill`, `decode`, ...: one arena serves all, one at a time.
    pub entries: Vec<Entry>,
    /// What the process needs beside the arena.
    pub fixed: Vec<Fixed>,
    /// Worker threads that scratch was planned for.
    pub threads: u32,
}

/// A memory and how much of it the plan takes: a section of the addresses that all offsets are in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Space {
    /// `ram`, `vram`, `sram`, `flash`, ...
    pub name: String,
    /// First address.
    pub first_byte: u64,
    /// Bytes taken.
    pub bytes: u64,
    /// Whether steps and loading may write it after the start: flash is not.
    pub is_written: bool,
    /// Whether it lies outside the arena: steps cannot reach it, only transfers do.
    pub is_far: bool,
    /// Whether a far one is memory of the host, which is filled at load; the others are files.
    pub is_host: bool,
}

impl Space {
    /// First address past the section.
    pub fn end(&self) -> u64 {
        self.first_byte.saturating_add(self.bytes)
    }
}

/// A part of the process's memory that is not in the arena.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fixed {
    /// What it is.
    pub name: String,
    /// An upper bound.
    pub bytes: u64,
}

/// What a stored tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StoredKind {
    /// A parameter.
    Weight,
    /// Outlives a step beside the parameters; saved in checkpoints.
    State,
    /// Computed at load.
    Const,
}

/// What the names of states end with, or hold before a number, in which gradients of micro-batches add up. They are
/// zero between steps, and a plan that does all micro-batches in one run has none.
pub const GRADIENT_SUM: &str = ".grad_sum";

/// What stands between a tensor's name and a number, where a large one is stored in parts: each a panel of its rows,
/// counted from 0. In a checkpoint the parts are one tensor.
pub const PART: &str = ".part.";

/// Rows of a table of classes whose logits are summed apart, in order, so that a table can be stored in parts of any
/// number of such segments: every kernel of a linear layer's cross-entropy takes its sums over classes so.
pub const VOCAB_SEGMENT: u32 = 1024;

/// The name of the whole tensor that a stored one is part of, and which part.
pub fn part_of(name: &str) -> Option<(&str, u32)> {
    let (whole, part) = name.rsplit_once(PART)?;
    Some((whole, part.parse().ok()?))
}

/// What the name of a state ends with that holds an activation between forward and backward.
pub const SPILLED: &str = ".spilled";

/// What the name of such a state ends with that an update by the host reads: a gradient, or a number.
pub const FOR_HOST: &str = ".host.spilled";

/// A tensor that keeps its place: in the near memory, or in a far one, from where transfers bring copies of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stored {
    /// The name.
    pub name: String,
    /// What it is.
    pub kind: StoredKind,
    /// Whether any entry changes it.
    pub changes: bool,
    /// Storage, shape and place.
    pub tensor: Tensor,
    /// What it holds after load.
    pub source: Source,
}

impl Stored {
    /// Whether gradients of micro-batches add up in it.
    pub fn is_gradient_sum(&self) -> bool {
        self.kind == StoredKind::State && self.name.contains(GRADIENT_SUM)
    }

    /// Whether it holds an activation between forward and backward: nothing of it outlives a step.
    pub fn is_spilled(&self) -> bool {
        self.kind == StoredKind::State && self.name.ends_with(SPILLED)
    }
}

/// What a stored tensor holds after load.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// All zero.
    Zero,
    /// Part of a model's file, converted to the stored type.
    File {
        /// Index into [`Plan::files`].
        file: u32,
        /// First byte in the file.
        offset: u64,
        /// How the file stores the elements.
        dtype: DType,
        /// Whether the file holds the transpose.
        transpose: bool,
    },
    /// Part of a model's file that holds the stored type with its dimensions in another order.
    Permuted {
        /// Index into [`Plan::files`].
        file: u32,
        /// First byte in the file.
        offset: u64,
        /// How the file stores the elements; the stored type is the same.
        dtype: DType,
        /// Lengths of the dimensions in the file.
        shape: Vec<u32>,
        /// Which of them each stored dimension is.
        axes: Vec<u8>,
    },
    /// Bytes known when the plan was made.
    Bytes(Vec<u8>),
    /// Numbers known when the plan was made.
    Table(Vec<f32>),
    /// Uniform in `-bound..bound`, from the run's seed; as int8 rounded to the nearest, ties to even.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
    /// Normal with mean 0, from the run's seed.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// One number everywhere.
    Fill(f32),
    /// Indices of the columns of the stored tensor `of` with the largest L2 norm, ascending.
    TopColumns {
        /// The stored tensor's name.
        of: String,
        /// The stored tensor that an int8 tensor's elements are multiplied with: its first dimension's, or for one of
        /// three dimensions (a depthwise weight) its last.
        scale: Option<String>,
    },
}

/// A tensor's storage, shape and place in the near arena.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tensor {
    /// How the elements are stored.
    pub dtype: DType,
    /// Lengths of the dimensions, outermost first.
    pub shape: Vec<u32>,
    /// First byte in the arena.
    pub offset: u64,
    /// Which value it holds: the same number wherever the same contents are meant.
    pub value: u32,
}

impl Tensor {
    /// The number of elements; `u64::MAX` when there are more.
    pub fn elems(&self) -> u64 {
        self.shape.iter().fold(1u64, |n, &d| n.saturating_mul(u64::from(d)))
    }

    /// Bytes taken; `u64::MAX` when they are more.
    pub fn bytes(&self) -> u64 {
        self.elems().div_ceil(self.dtype.block_elems()).saturating_mul(self.dtype.block_bytes())
    }

    /// First byte past the tensor; `u64::MAX` when it lies beyond.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes())
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).map(|&d| d as usize).product()
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().map_or(1, |&d| d as usize)
    }
}

/// A number that belongs to a kernel call.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Number {
    /// A size, a count or a flag.
    Int(i64),
    /// A real number.
    Float(f64),
}

/// Which part of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Part {
    /// Outputs and losses.
    Forward,
    /// Gradients.
    Backward,
    /// Weights and state.
    Update,
}

/// One kernel launch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// The kernel's name: the op's.
    pub kernel: String,
    /// Operands, in the op's order.
    pub args: Vec<Tensor>,
    /// Results. One may lie where an operand lies that dies here.
    pub outs: Vec<Tensor>,
    /// How many of the leading operands are changed in place.
    pub changes: u32,
    /// The op's numbers, in the order of its row.
    pub attrs: Vec<(String, Number)>,
    /// First byte of scratch.
    pub scratch_offset: u64,
    /// Bytes of scratch.
    pub scratch_bytes: u64,
    /// Index into [`Entry::blocks`].
    pub block: u32,
    /// Which part of a step.
    pub part: Part,
    /// Arithmetic of this launch.
    pub flops: u64,
    /// Name of the first result, or of what is changed.
    pub label: String,
}

impl Step {
    /// The int attribute of this name, 0 where there is none.
    pub fn int(&self, name: &str) -> i64 {
        match self.attr(name) {
            Some(Number::Int(v)) => v,
            _ => 0,
        }
    }

    /// The int attribute of this name as a size.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    /// The float attribute of this name, 0 where there is none.
    pub fn float(&self, name: &str) -> f32 {
        match self.attr(name) {
            Some(Number::Float(v)) => v as f32,
            Some(Number::Int(v)) => v as f32,
            None => 0.0,
        }
    }

    fn attr(&self, name: &str) -> Option<Number> {
        self.attrs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Direction {
    /// From a far memory to the near one.
    In,
    /// Back, after a change.
    Out,
}

/// A stored tensor of a far memory on its way to the near one or back, beside the steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// Index into [`Plan::stored`].
    pub stored: u32,
    /// First byte of the copy in the near memory.
    pub near_byte: u64,
    /// Which way.
    pub direction: Direction,
    /// It may begin once all steps before this one have ended.
    pub begins: u32,
    /// It must have ended before this step begins; the number of steps where only the entry's end waits for it.
    pub ends: u32,
}

/// A copy of a stored tensor of a far memory that is in the near one when an entry begins, and again when it ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resident {
    /// Index into [`Plan::stored`].
    pub stored: u32,
    /// First byte of the copy in the near memory.
    pub near_byte: u64,
}

/// A named tensor of an entry.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Storage, shape and place.
    pub tensor: Tensor,
}

impl Named {
    /// The micro-batch, counted from 0, and the name in it: `m2.tokens` is `tokens` of the third. Entries that do all
    /// micro-batches of a step in one run have such names.
    pub fn micro_batch(&self) -> (u32, &str) {
        let split = self.name.strip_prefix('m').and_then(|rest| rest.split_once('.'));
        let numbered = split.and_then(|(number, name)| Some((number.parse().ok()?, name)));
        numbered.unwrap_or((0, &self.name))
    }
}

/// Straight-line code over the arena.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// `train`, `update`, `eval`, `prefill`, `decode`, ...
    pub name: String,
    /// Filled by the caller before a run.
    pub inputs: Vec<Named>,
    /// Valid after a run.
    pub results: Vec<Named>,
    /// The code.
    pub steps: Vec<Step>,
    /// What moves beside the steps, in the order in which each link takes it.
    pub transfers: Vec<Transfer>,
    /// Copies that are there from run to run: what is left at the end serves the next beginning.
    pub residents: Vec<Resident>,
    /// Names of the blocks.
    pub blocks: Vec<String>,
    /// Where memory is fullest.
    pub peak: Peak,
}

impl Entry {
    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Tensor> {
        self.inputs.iter().find(|n| n.name == name).map(|n| &n.tensor)
    }

    /// The result of this name.
    pub fn result(&self, name: &str) -> Option<&Tensor> {
        self.results.iter().find(|n| n.name == name).map(|n| &n.tensor)
    }

    /// Micro-batches that one run does.
    pub fn micro_batches(&self) -> u32 {
        self.inputs.iter().map(|n| n.micro_batch().0).max().unwrap_or(0).saturating_add(1)
    }

    /// Arithmetic of one run.
    pub fn flops(&self) -> u64 {
        sum(self.steps.iter().map(|s| s.flops))
    }
}

/// Where an entry's memory is fullest, and what fills it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Peak {
    /// Highest byte of the arena that the entry touches.
    pub bytes: u64,
    /// Bytes of tensors that are live at the fullest step: no placement can do with less.
    pub lower_bound_bytes: u64,
    /// The fullest step.
    pub step: u32,
    /// What is live there, largest first.
    pub holders: Vec<Holder>,
}

/// Something that is live at the peak.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The value's name, or `scratch`.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

impl Plan {
    /// The entry of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The stored tensor of this name.
    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.stored.iter().find(|s| s.name == name)
    }

    /// The stored tensor of this name, or, where it is stored in parts, those in order; nothing where there is none.
    pub fn parts_of(&self, name: &str) -> Vec<&Stored> {
        let part =
            |s: &&Stored| if s.name == name { Some(0) } else { Some(part_of(&s.name).filter(|p| p.0 == name)?.1) };
        let mut parts: Vec<&Stored> = self.stored.iter().filter(|s| part(s).is_some()).collect();
        parts.sort_by_key(part);
        parts
    }

    /// First address past all memories.
    pub fn end_byte(&self) -> u64 {
        self.spaces.last().map_or(0, Space::end)
    }

    /// First address that is not far: the arena begins there.
    pub fn arena_start(&self) -> u64 {
        self.spaces.iter().take_while(|s| s.is_far).last().map_or(0, Space::end)
    }

    /// Bytes of all memories that are not far: what a host takes to run the plan over one block of memory.
    pub fn arena_bytes(&self) -> u64 {
        self.end_byte().saturating_sub(self.arena_start())
    }

    /// Bytes of the host's memory that hold far tensors, beside a device's own memory.
    pub fn host_bytes(&self) -> u64 {
        sum(self.spaces.iter().filter(|s| s.is_host).map(|s| s.bytes))
    }

    /// Whether a stored tensor lies in a far memory that is the host's.
    pub fn is_in_host(&self, stored: u32) -> bool {
        let tensor = self.stored.get(stored as usize).map(|s| &s.tensor);
        tensor.and_then(|t| self.space_of(t.offset)).is_some_and(|s| s.is_host)
    }

    /// Whether the host carries out a step, beside the device: it works on tensors that rest in the host's memory.
    pub fn is_on_host(&self, step: &Step) -> bool {
        let first = step.args.first().and_then(|t| self.space_of(t.offset));
        first.is_some_and(|s| s.is_host)
    }

    /// Indices of an entry's steps that the host carries out.
    pub fn host_steps(&self, entry: &Entry) -> Vec<u32> {
        let steps = entry.steps.iter().zip(0..);
        steps.filter(|(step, _)| self.is_on_host(step)).map(|(_, i)| i).collect()
    }

    /// Which of these steps of the host, before a transfer in begins, is the last that changes what the transfer
    /// brings.
    pub fn changed_by(&self, entry: &Entry, host_steps: &[u32], transfer: &Transfer) -> Option<usize> {
        let value = self.stored.get(transfer.stored as usize)?.tensor.value;
        let changes = |s: &Step| s.args.iter().take(s.changes as usize).any(|t| t.value == value);
        let before = host_steps.partition_point(|&i| i < transfer.begins);
        let found = host_steps[..before].iter().rposition(|&i| changes(&entry.steps[i as usize]));
        found.filter(|_| transfer.direction == Direction::In)
    }

    /// Whether a tensor lies in a far memory.
    pub fn is_far(&self, tensor: &Tensor) -> bool {
        tensor.offset < self.arena_start()
    }

    /// First address behind the stored tensors that keep their places in the arena.
    pub fn stored_end(&self) -> u64 {
        self.stored.iter().map(|s| s.tensor.end()).max().unwrap_or(0).max(self.arena_start())
    }

    /// How many copies of an entry go one way, and their bytes.
    pub fn moved(&self, entry: &Entry, direction: Direction) -> (usize, u64) {
        let of = entry.transfers.iter().filter(|t| t.direction == direction);
        let bytes = |t: &Transfer| self.stored.get(t.stored as usize).map_or(0, |s| s.tensor.bytes());
        (of.clone().count(), sum(of.map(bytes)))
    }

    /// A stored tensor as a transfer's copy in the near memory.
    pub fn copy_of(&self, stored: u32, near_byte: u64) -> Option<Tensor> {
        let tensor = &self.stored.get(stored as usize)?.tensor;
        Some(Tensor { offset: near_byte, ..tensor.clone() })
    }

    /// Bytes taken of the near memory.
    pub fn near_bytes(&self) -> u64 {
        self.spaces.last().map_or(0, |s| s.bytes)
    }

    /// The space that an address lies in.
    pub fn space_of(&self, offset: u64) -> Option<&Space> {
        self.spaces.iter().find(|s| (s.first_byte..s.end()).contains(&offset))
    }

    /// Bytes of the parts outside the arena.
    pub fn fixed_bytes(&self) -> u64 {
        sum(self.fixed.iter().map(|f| f.bytes))
    }

    /// What the process takes of the near memory: arena and fixed parts.
    pub fn total_bytes(&self) -> u64 {
        self.near_bytes().saturating_add(self.fixed_bytes())
    }

    /// Bytes that the plan itself takes on the heap, its allocations rounded up.
    pub fn heap_bytes(&self) -> u64 {
        // What an allocation takes beyond its contents.
        const EACH: usize = 24;
        let list = |len: usize, each: usize| if len == 0 { 0 } else { len * each + EACH };
        let text = |s: &str| list(s.len(), 1);
        let tensor = |t: &Tensor| list(t.shape.len(), size_of::<u32>());
        let tensors =
            |list_of: &[Tensor]| list(list_of.len(), size_of::<Tensor>()) + list_of.iter().map(tensor).sum::<usize>();
        let step = |s: &Step| {
            let attrs = list(s.attrs.len(), size_of::<(String, Number)>());
            let names: usize = s.attrs.iter().map(|(name, _)| text(name)).sum();
            size_of::<Step>() + text(&s.kernel) + text(&s.label) + tensors(&s.args) + tensors(&s.outs) + attrs + names
        };
        let entry = |e: &Entry| {
            let moves = list(e.transfers.len(), size_of::<Transfer>()) + list(e.residents.len(), size_of::<Resident>());
            e.steps.iter().map(step).sum::<usize>() + moves
        };
        let stored = |s: &Stored| size_of::<Stored>() + text(&s.name) + tensor(&s.tensor);
        let all = self.entries.iter().map(entry).sum::<usize>() + self.stored.iter().map(stored).sum::<usize>();
        all as u64
    }

    /// Bytes of the stored tensors that `wanted` picks.
    pub fn stored_bytes(&self, wanted: impl Fn(&Stored) -> bool) -> u64 {
        sum(self.stored.iter().filter(|s| wanted(s)).map(|s| s.tensor.bytes()))
    }
}

/// A sum that a damaged plan cannot make wrap around.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// Storage and shape, where a place plays no part.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// How the elements are stored.
    pub dtype: DType,
    /// Lengths of the dimensions.
    pub dims: &'a [u32],
}

/// What a device's kernels can do: asked by the compiler before it plans.
pub trait Kernels {
    /// Bytes of scratch for a call, or why there is no kernel for it.
    fn scratch_bytes(
        &self,
        kernel: &str,
        args: &[Shape],
        outs: &[Shape],
        attrs: &[(String, Number)],
    ) -> Result<u64, String>;

    /// For a kernel that may write its first result over its first operand: how many bytes before the operand the
    /// result must begin, at least, so that nothing is written that is still to be read.
    fn lead_bytes(&self, _kernel: &str, _args: &[Shape], _outs: &[Shape], _attrs: &[(String, Number)]) -> Option<u64> {
        None
    }
}
